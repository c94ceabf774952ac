"""Pruning by the running score: hopeless candidates give their slots away.

Two rules, both by the head's own scores:

- A trace that is closed has its score. Where another one of the problem has a
  better one, its answer will hardly be read, so it is not written. (It would be
  if the better one were cut off before it ends.)
- Speculative rejection (Sun et al. 2024): when all of a problem's candidates
  that still think have reached a milestone, the worst of them are given up.
  Milestones double, so a long answer is judged a few times only.
"""

import dataclasses

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.engine.candidates import (
  Candidate,
  Draft,
  score_of,
)


@dataclasses.dataclass
class Rejection:
  """What `Engine.run` takes as `prune`; for one run.

  Attributes:
    config: of the engine.
    first: tokens at the first milestone; the next is at twice as many. 0 = no
      milestones, closed traces only.
    keep: share of a problem's candidates that survive each milestone.
    least: candidates of a problem that always survive one.
  """

  config: SamplingConfig
  first: int = 0
  keep: float = 0.5
  least: int = 1
  _next: dict[int, int] = dataclasses.field(default_factory=dict)
  # The best score of a response that ended by itself, by draw index.
  _best: dict[int, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.first < 0 or not 0 < self.keep < 1 or self.least < 1:
      raise UserError(
        f'pruning needs first >= 0, 0 < keep < 1 and least >= 1: got '
        f'first={self.first}, keep={self.keep}, least={self.least}'
      )

  def __call__(
    self, drafts: list[Draft], ended: list[Candidate]
  ) -> list[Draft]:
    """The candidates to give up now."""
    for candidate in ended:
      if candidate.finished and candidate.request.ends == 'response':
        draw = candidate.request.draw
        best = self._best.get(draw, -np.inf)
        self._best[draw] = max(best, candidate.score)
    problems: dict[int, list[Draft]] = {}
    for draft in drafts:
      # A response that goes on behind a trace was chosen.
      if self.config.think_end_id not in draft.request.written:
        problems.setdefault(draft.request.draw, []).append(draft)
    given_up = []
    for draw, group in problems.items():
      closed, thinking = [], []
      for draft in group:
        (closed if self._closed(draft) else thinking).append(draft)
      given_up += self._beaten(draw, closed)
      given_up += self._worst(draw, thinking)
    return given_up

  def _closed(self, draft: Draft) -> bool:
    """Its thinking has ended, and with it its score."""
    end = self.config.think_end_id
    return draft.request.ends == 'response' and end in draft.token_R

  def _beaten(self, draw: int, closed: list[Draft]) -> list[Draft]:
    """All but the first of the best; none where a finished one is as good."""
    ranked = sorted(closed, key=self.running_score, reverse=True)
    best = self._best.get(draw, -np.inf)
    if ranked and self.running_score(ranked[0]) > best:
      return ranked[1:]
    return ranked

  def _worst(self, draw: int, thinking: list[Draft]) -> list[Draft]:
    """Those that do not survive a milestone, if they have reached one."""
    milestone = self._next.setdefault(draw, self.first)
    if not thinking or not milestone:
      return []
    if min(draft.drawn for draft in thinking) < milestone:
      return []
    self._next[draw] = 2 * milestone
    ranked = sorted(thinking, key=self.running_score, reverse=True)
    stay = max(self.least, int(np.ceil(self.keep * len(thinking))))
    return ranked[stay:]

  def running_score(self, draft: Draft) -> float:
    """Of the steps so far; of the last position where there is no mark yet."""
    z_R = np.concatenate([part[3] for part in draft.parts])
    return score_of(
      draft.request.read, draft.token_R, z_R, draft.last_logit, self.config
    )[1]
