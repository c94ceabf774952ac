"""Votes over answers, that stop when they are decided.

Majority (self-consistency, Wang et al. 2022): a vote a candidate. Weighted: a
candidate's vote weighs its trace score, which lies in (0, 1). Once the answer
in front cannot be caught up with by what is still missing, the missing
candidates are given up: the same answer for fewer tokens.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator

from metastone_jax.errors import UserError
from metastone_jax.sampling.engine.candidates import (
  PRUNED,
  Candidate,
  Draft,
  Request,
  by_draw,
  flops,
)
from metastone_jax.sampling.engine.engine import Engine

KINDS = ('majority', 'weighted')
# Sums of the same scores in another order must still tie.
_TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class Election:
  """What the candidates of a problem voted for.

  Attributes:
    request: the problem.
    candidates: those that were started, by number; given-up ones among them.
    answer: the winner; None where nobody answered.
    best: index in `candidates` of the winner's best-scored candidate; of the
      best of all where nobody answered.
    weights: answer -> sum of its votes.
    tokens: drawn for this problem.
    flops: of all that was read and written for it.
  """

  request: Request
  candidates: tuple[Candidate, ...]
  answer: Hashable | None
  best: int
  weights: dict[Hashable, float]
  tokens: int
  flops: float


def vote(
  engine: Engine,
  requests: Iterable[Request],
  answer_of: Callable[[Candidate], Hashable | None],
  *,
  kind: str = 'majority',
  early_stop: bool = True,
  stop: Callable[[Draft], int | None] | None = None,
) -> Iterator[Election]:
  """Elections in the order in which they are decided.

  Args:
    engine: the engine.
    requests: the problems, of different draw indices.
    answer_of: what a candidate votes for; None = it has no vote.
    kind: 'majority' or 'weighted'.
    early_stop: give up candidates that cannot change the answer any more.
    stop: see `Engine.run`.

  Raises:
    UserError: an unknown kind, equal draw indices, or a request that cannot be
      served.
  """
  if kind not in KINDS:
    raise UserError(f'vote={kind!r}; use one of {", ".join(KINDS)}')
  requests = list(requests)
  problems = by_draw(requests)
  ended: dict[int, list[Candidate]] = {draw: [] for draw in problems}
  answers: dict[int, dict[int, Hashable]] = {draw: {} for draw in problems}
  for candidate in engine.run(requests, stop=stop):
    draw = candidate.request.draw
    ended[draw].append(candidate)
    if candidate.reason != PRUNED:
      answer = answer_of(candidate)
      if answer is not None:
        answers[draw][candidate.number] = answer
    missing = len(problems[draw].candidates) - len(ended[draw])
    if early_stop and missing:
      weights = _weights(ended[draw], answers[draw], kind)
      first, second = (*sorted(weights.values(), reverse=True), 0, 0)[:2]
      if first - second > missing + _TIE:
        engine.give_up(draw)
    if engine.pending(draw):
      continue
    candidates = tuple(sorted(ended.pop(draw), key=lambda c: c.number))
    cost = flops(engine.model_config, candidates)
    yield _elected(problems[draw], candidates, answers.pop(draw), kind, cost)


def _weights(candidates, answers, kind: str) -> dict[Hashable, float]:
  """Sums in the order of the candidates' numbers."""
  found: dict[Hashable, float] = {}
  for candidate in sorted(candidates, key=lambda c: c.number):
    if candidate.number in answers:
      answer = answers[candidate.number]
      weight = 1.0 if kind == 'majority' else candidate.score
      found[answer] = found.get(answer, 0.0) + weight
  return found


def _elected(request, candidates, answers, kind: str, cost) -> Election:
  weights = _weights(candidates, answers, kind)
  answer, voters = None, range(len(candidates))
  if weights:
    most = max(weights.values())
    # Ties go to the answer of the first candidate; dicts keep their order.
    answer = next(a for a, w in weights.items() if w >= most - _TIE)
    voters = [i for i in voters if answers.get(candidates[i].number) == answer]
  best = max(
    voters, key=lambda i: (candidates[i].finished, candidates[i].score)
  )
  return Election(
    request,
    candidates,
    answer,
    best,
    weights,
    sum(len(c.token_R) for c in candidates),
    cost,
  )
