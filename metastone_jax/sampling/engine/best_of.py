"""Best of k through the engine: many problems, the winner of each.

The same winners as `best_of_k`, the one compiled program, and the same answers
(SPEC 5): form 'complete' picks among complete responses, form 'trace' among
thinking traces, after the best of which the answer is written once.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.sampling.best_of_k import FORMS
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.engine.candidates import (
  PRUNED,
  Candidate,
  Draft,
  Request,
  by_draw,
  flops,
)
from metastone_jax.sampling.engine.engine import Engine, Prune


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a problem got.

  Attributes:
    request: the problem.
    candidates: all of them ('trace': the thinking only), by number.
    best: index of the winner.
    token_A: int32 response of the winner, thinking included.
    finished: it ended by itself.
    tokens: drawn for this problem, thrown away or not.
    flops: of all that was read and written for it.
  """

  request: Request
  candidates: tuple[Candidate, ...]
  best: int
  token_A: np.ndarray
  finished: bool
  tokens: int
  flops: float


def choose(candidates: tuple[Candidate, ...], config: SamplingConfig) -> int:
  """Index of the winner, as `select_best`."""

  def rank(candidate: Candidate) -> tuple[bool, bool, float]:
    natural = candidate.finished and not (
      # A forced </think> ends a trace, but it is no finished thought.
      candidate.request.ends == 'trace' and candidate.forced_R.any()
    )
    return (
      candidate.reason != PRUNED,
      natural and not config.released_selection,
      candidate.score,
    )

  return max(range(len(candidates)), key=lambda i: rank(candidates[i]))


def best_of(
  engine: Engine,
  requests: Iterable[Request],
  *,
  form: str = 'complete',
  answer_length: int = 0,
  prune: Prune | None = None,
  stop: Callable[[Draft], int | None] | None = None,
) -> Iterator[Answer]:
  """Answers in the order in which they are ready.

  Args:
    engine: configured for responses as long as thinking and answer together.
    requests: the problems, of different draw indices. In form 'trace' their
      length limit is that of the thinking, </think> included.
    form: 'complete' or 'trace'.
    answer_length: tokens of the answer in form 'trace', at least 1.
    prune: see `Engine.run`; a candidate given up does not win.
    stop: likewise.

  Raises:
    UserError: an unknown form, 'trace' without an answer length, equal draw
      indices, or a request that cannot be served.
  """
  if form not in FORMS:
    raise UserError(f'form={form!r}; use one of {", ".join(FORMS)}')
  if form == 'trace' and answer_length < 1:
    raise UserError(
      f"form 'trace' writes the answer apart: answer_length={answer_length} "
      'must be at least 1 token'
    )
  requests = list(requests)
  problems = by_draw(requests)
  if form == 'trace':
    for request in requests:
      whole = request.limit(engine.config) + answer_length
      dataclasses.replace(request, max_tokens=whole).check(
        engine.config, engine.context
      )
    requests = [dataclasses.replace(r, ends='trace') for r in requests]
  ended: dict[int, list[Candidate]] = {draw: [] for draw in problems}
  judged: dict[int, tuple[tuple[Candidate, ...], int]] = {}
  queue = collections.deque(requests)
  for candidate in engine.run(queue, prune, stop):
    draw = candidate.request.draw
    request = problems[draw]
    if draw in judged:  # the answer after the best trace
      candidates, best = judged.pop(draw)
      yield _answer(engine, request, candidates, best, candidate)
      continue
    ended[draw].append(candidate)
    if len(ended[draw]) < len(request.candidates):
      continue
    candidates = tuple(sorted(ended.pop(draw), key=lambda c: c.number))
    best = choose(candidates, engine.config)
    if form == 'complete':
      yield _answer(engine, request, candidates, best, None)
      continue
    judged[draw] = candidates, best
    winner = candidates[best]
    written = request.written + tuple(winner.token_R.tolist())
    queue.appendleft(
      dataclasses.replace(
        request,
        candidates=(winner.number,),
        written=written,
        max_tokens=len(written) + answer_length,
        # What the traces had, whatever part of it this one used.
        thinking_budget=winner.request.budget(engine.config),
      )
    )


def _answer(engine, request, candidates, best: int, rest) -> Answer:
  winner = candidates[best]
  last, parts = winner, [winner.token_R]
  cost = flops(engine.model_config, candidates)
  tokens = sum(len(c.token_R) for c in candidates)
  if rest is not None:
    last = rest
    parts.append(rest.token_R)
    cost += flops(engine.model_config, (rest,))
    tokens += len(rest.token_R)
  return Answer(
    request,
    candidates,
    best,
    np.concatenate(parts),
    last.finished,
    tokens,
    cost,
  )
