"""Partial rollouts: groups whose responses go on at the next step.

A step waits for the longest response of its rollout. With partial rollouts
(Kimi k1.5, arXiv 2501.12599; APRIL, arXiv 2509.18521) more groups are drawn
than an update needs; once enough of them are complete, the others keep their
tokens and sampler log-probs, and the next policy goes on with them. Their
randomness is that of (seed, draw, candidate, position), as if nobody had
interrupted them.
"""

import base64
import collections
import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np

from metastone_jax.sampling.engine import Candidate, Engine, Request
from metastone_jax.sampling.engine.candidates import PRUNED

_ARRAYS = ('token_R', 'log_prob_R', 'forced_R', 'step_logit_R')


@dataclasses.dataclass(frozen=True)
class Group:
  """A problem's candidates, as far as they are written.

  Attributes:
    index: global index of the problem.
    request: for all of its candidates, without anything written.
    candidates: by their place in the request; None = not begun, reason
      'pruned' = unfinished.
  """

  index: int
  request: Request
  candidates: tuple[Candidate | None, ...]

  @classmethod
  def new(cls, index: int, request: Request) -> 'Group':
    """Of which nothing is written."""
    return cls(index, request, (None,) * len(request.candidates))

  @property
  def complete(self) -> bool:
    """All of it is written."""
    return all(c and c.reason != PRUNED for c in self.candidates)

  @property
  def tokens(self) -> np.ndarray:
    """Tokens of each candidate so far."""
    return np.array([len(c.token_R) if c else 0 for c in self.candidates])

  def rest(self) -> list[Request]:
    """What is to be written: in one request, or one a candidate begun."""
    fresh, begun = [], []
    for number, written in zip(
      self.request.candidates, self.candidates, strict=True
    ):
      if written is None or not len(written.token_R):
        fresh.append(number)
      elif written.reason == PRUNED:
        begun.append(
          dataclasses.replace(
            self.request,
            candidates=(number,),
            written=tuple(written.token_R.tolist()),
          )
        )
    if fresh:
      begun.append(dataclasses.replace(self.request, candidates=tuple(fresh)))
    return begun

  def extended(self, new: Candidate) -> 'Group':
    """With what was written now behind what was written before."""
    place = self.request.candidates.index(new.number)
    old = self.candidates[place]
    joined = dataclasses.replace(new, request=self.request)
    if old is not None and len(old.token_R):
      joined = dataclasses.replace(
        joined,
        **{
          name: np.concatenate([getattr(old, name), getattr(new, name)])
          for name in _ARRAYS
        },
      )
      if not len(new.token_R):
        joined = dataclasses.replace(joined, last_logit=old.last_logit)
    return dataclasses.replace(
      self,
      candidates=(
        *self.candidates[:place],
        joined,
        *self.candidates[place + 1 :],
      ),
    )

  # For checkpoints.

  def to_json(self) -> dict:
    """A JSON-able dict that keeps every bit."""
    arrays = {
      f'{place}.{name}': getattr(candidate, name)
      for place, candidate in enumerate(self.candidates)
      if candidate
      for name in (*_ARRAYS, 'last_logit')
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return {
      'index': self.index,
      'reasons': [c and c.reason for c in self.candidates],
      'arrays': base64.b64encode(file.getvalue()).decode(),
    }

  @classmethod
  def from_json(cls, tree: dict, request: Request, config) -> 'Group':
    """The inverse of `to_json`.

    Args:
      tree: the dict.
      request: for all candidates of problem `tree['index']`.
      config: SamplingConfig of the draws.
    """
    with np.load(io.BytesIO(base64.b64decode(tree['arrays']))) as arrays:
      candidates = tuple(
        reason
        and Candidate(
          request,
          number,
          reason,
          *(arrays[f'{place}.{name}'] for name in _ARRAYS),
          last_logit=float(arrays[f'{place}.last_logit']),
          config=config,
        )
        for place, (number, reason) in enumerate(
          zip(request.candidates, tree['reasons'], strict=True)
        )
      )
    return cls(tree['index'], request, candidates)


def go_on(
  engine: Engine,
  groups: Sequence[Group],
  needed: int,
  each: Callable[[Group], None] = lambda group: None,
) -> tuple[list[Group], list[Group]]:
  """Writes until so many groups are complete.

  Args:
    engine: with the parameters of now.
    groups: of different draw indices, at least `needed`.
    needed: complete groups that an update takes.
    each: called with every one of these as soon as it is complete.

  Returns:
    The first `needed` groups that were complete, and all others, each in the
    order of `groups`. One chunk may complete more than are needed; those are
    among the others.
  """
  found = {group.request.draw: group for group in groups}
  complete = [draw for draw, group in found.items() if group.complete]
  for draw in complete[:needed]:
    each(found[draw])
  queue = collections.deque()
  if len(complete) < needed:
    # Those begun first: the oldest are not to grow older.
    for group in sorted(groups, key=lambda group: not group.tokens.any()):
      queue.extend(group.rest())
  for candidate in engine.run(queue):
    draw = candidate.request.draw
    found[draw] = found[draw].extended(candidate)
    if found[draw].complete:
      complete.append(draw)
      if len(complete) <= needed:
        each(found[draw])
      if len(complete) == needed:
        queue.clear()
        for other, group in found.items():
          if not group.complete:
            engine.give_up(other)
  taken = set(complete[:needed])
  return (
    [group for draw, group in found.items() if draw in taken],
    [group for draw, group in found.items() if draw not in taken],
  )
