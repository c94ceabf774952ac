"""Pruning by the running score: hopeless candidates give their slots away.

Speculative rejection (Sun et al. 2024) with the head's own scores: when all of
a problem's candidates that are still written have reached a milestone, the
worst of them are given up. Milestones double, so a long answer is judged a few
times only.
"""

import dataclasses

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.engine.candidates import Draft, score_of


@dataclasses.dataclass
class Rejection:
  """What `Engine.run` takes as `prune`; for one run.

  Attributes:
    config: of the engine.
    first: tokens at the first milestone; the next is at twice as many.
    keep: share of a problem's candidates that survive each milestone.
    least: candidates of a problem that always survive.
  """

  config: SamplingConfig
  first: int
  keep: float = 0.5
  least: int = 1
  _next: dict[int, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.first < 1 or not 0 < self.keep < 1 or self.least < 1:
      raise UserError(
        f'pruning needs first >= 1, 0 < keep < 1 and least >= 1: got '
        f'first={self.first}, keep={self.keep}, least={self.least}'
      )

  def __call__(self, drafts: list[Draft]) -> list[Draft]:
    """The candidates to give up now."""
    problems: dict[int, list[Draft]] = {}
    for draft in drafts:
      problems.setdefault(draft.request.draw, []).append(draft)
    given_up = []
    for draw, group in problems.items():
      milestone = self._next.setdefault(draw, self.first)
      if min(draft.drawn for draft in group) < milestone:
        continue
      self._next[draw] = 2 * milestone
      ranked = sorted(group, key=self.running_score, reverse=True)
      stay = max(self.least, int(np.ceil(self.keep * len(group))))
      given_up += ranked[stay:]
    return given_up

  def running_score(self, draft: Draft) -> float:
    """Of the steps so far; of the last position where there is no mark yet."""
    z_R = np.concatenate([part[3] for part in draft.parts])
    return score_of(
      draft.request.read, draft.token_R, z_R, draft.last_logit, self.config
    )[1]
