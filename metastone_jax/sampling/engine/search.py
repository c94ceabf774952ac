"""Search guided by the score head: beam search over steps, and DVTS.

A problem has N beams. In a round each of them writes its next step, up to a
step mark, </think>, a stop id or `step_tokens`. Then the head's scores of the
traces so far decide which go on, W children each:

  'beam'  the best N / W of all (Snell et al. 2024)
  'dvts'  diverse verifier tree search (Beeching et al. 2024): N / W trees of W
          beams; of each tree the best one, whatever the other trees have

A beam that has ended its thinking keeps its place while its score is good
enough, and has no children. When none of those that were kept thinks on, their
answers are written to the end, and the best of them wins as in `best_of`. With
W = 1 nothing is thrown away: that is best of N.

Numbers. A beam's noise depends on (seed, draw, its number, position). The first
child goes on under its parent's number; every other one takes a number that the
problem has never used, in the order of the parents' numbers. So no noise is
used twice, and a problem's numbers depend on its own scores alone, not on other
problems or on slots: tree t of T has the numbers t, t + T, t + 2T, ...

What a beam has written so far is read again, once for all its children: the
`flops` of an answer count that.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from metastone_jax.errors import check_fields
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.engine.best_of import Answer, choose
from metastone_jax.sampling.engine.candidates import (
  LENGTH,
  STOP,
  Candidate,
  Request,
  by_draw,
)
from metastone_jax.sampling.engine.engine import Engine

KINDS = ('beam', 'dvts')


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """How to search.

  Attributes:
    kind: 'beam' or 'dvts'.
    beams: N, that are written at a time for a problem.
    width: W, children of each beam that is kept; divides N.
    step_tokens: a longer step is judged, and perhaps dropped, unfinished.
  """

  kind: str = 'beam'
  beams: int = 16
  width: int = 4
  step_tokens: int = 256

  def __post_init__(self):
    check_fields(
      'search.',
      self,
      (
        ('kind', self.kind in KINDS, f'one of {", ".join(KINDS)}'),
        ('beams', self.beams >= 1, 'at least 1'),
        (
          'width',
          self.width >= 1 and self.beams % self.width == 0,
          f'a divisor of the {self.beams} beams',
        ),
        ('step_tokens', self.step_tokens >= 1, 'at least 1'),
      ),
    )

  @property
  def num_trees(self) -> int:
    """T: between which nothing is compared."""
    return 1 if self.kind == 'beam' else self.beams // self.width

  @property
  def kept(self) -> int:
    """Beams of a tree that survive a round."""
    return self.beams // self.width // self.num_trees


@dataclasses.dataclass(frozen=True)
class SearchAnswer(Answer):
  """What a problem got; `candidates` are the beams that were kept to the end.

  Attributes:
    rounds: of its longest tree, the answers not counted.
    read: tokens that were prefilled, the prompt included.
  """

  rounds: int
  read: int


def search(
  engine: Engine, requests: Iterable[Request], config: SearchConfig
) -> Iterator[SearchAnswer]:
  """Answers in the order in which they are ready; problems share the slots.

  Args:
    engine: the engine; many turns a chunk let short steps wait for long ones.
    requests: the problems, of different draw indices. Their `candidates` and
      `ends` do not matter: the search says what is written when.
    config: how to search.

  Raises:
    UserError: equal draw indices, or a request that cannot be served.
  """
  requests = list(requests)
  for request in requests:
    request.check(engine.config, engine.context)
  problems = {
    draw: _Problem(request, engine, config)
    for draw, request in by_draw(requests).items()
  }
  queue = collections.deque(p.root() for p in problems.values())
  for piece in engine.run(queue):
    problem = problems[piece.request.draw]
    # Before other problems: fewer of them are half done at a time.
    queue.extendleft(reversed(problem.take(piece)))
    if problem.done:
      del problems[piece.request.draw]
      yield problem.answer()


class _Problem:
  """A request, its trees, and what they have cost so far."""

  def __init__(self, request: Request, engine: Engine, config: SearchConfig):
    self._request, self._engine, self._config = request, engine, config
    self._trees = [
      _Tree(index, request, config, engine.config)
      for index in range(config.num_trees)
    ]
    self._drawn = self._read = 0
    self._flops = 0.0

  @property
  def done(self) -> bool:
    """Whether every tree has its answers."""
    return all(tree.done for tree in self._trees)

  def root(self) -> Request:
    """The first round, of all trees together: they have one prompt."""
    return self._order((), tuple(range(self._config.beams)))

  def take(self, piece: Candidate) -> list[Request]:
    """What is to be written next, now that this is."""
    count, read = len(piece.token_R), len(piece.request.read)
    self._drawn += count
    self._flops += self._engine.model_config.decode_flops(count, read)
    tree = self._trees[piece.number % len(self._trees)]
    return [
      self._order(tuple(parent.token_R.tolist()), numbers)
      for parent, numbers in tree.take(piece)
    ]

  def answer(self) -> SearchAnswer:
    """Of the best beam of all trees."""
    beams = [beam for tree in self._trees for beam in tree.beams]
    candidates = tuple(sorted(beams, key=lambda beam: beam.number))
    best = choose(candidates, self._engine.config)
    return SearchAnswer(
      self._request,
      candidates,
      best,
      candidates[best].token_R,
      candidates[best].finished,
      self._drawn,
      self._flops,
      max(tree.rounds for tree in self._trees),
      self._read,
    )

  def _order(self, drawn: tuple[int, ...], numbers: tuple[int, ...]) -> Request:
    """The next step, or the answer, behind what a beam has drawn."""
    request, config = self._request, self._engine.config
    written, limit = request.written + drawn, request.limit(config)
    step = config.think_end_id not in written
    if step:
      limit = min(limit, len(written) + self._config.step_tokens)
    order = dataclasses.replace(
      request,
      candidates=numbers,
      written=written,
      max_tokens=limit,
      ends='step' if step else 'response',
    )
    self._read += len(order.read)
    self._flops += self._engine.model_config.prefill_flops(len(order.read))
    return order


class _Tree:
  """Beams that are compared with one another.

  A beam is a candidate of the whole request, as far as it has been written.

  Attributes:
    beams: those kept, or as many of this round as have arrived.
    rounds: so far.
    done: the beams are complete responses.
  """

  def __init__(
    self,
    index: int,
    request: Request,
    config: SearchConfig,
    sampling: SamplingConfig,
  ):
    self._request, self._config, self._sampling = request, config, sampling
    # Number of each beam that is being written -> the one it goes on from.
    self._parents: dict[int, Candidate | None] = dict.fromkeys(
      range(index, config.beams, config.num_trees)
    )
    self._unused = config.beams + index
    self.beams: list[Candidate] = []
    self.rounds = 0
    self.done = False

  def take(self, piece: Candidate) -> list[tuple[Candidate, tuple[int, ...]]]:
    """(beam to go on from, numbers of its children), once a round is over."""
    parent = self._parents.pop(piece.number)
    self.beams.append(_joined(self._request, parent, piece, self._sampling))
    if self._parents:
      return []
    self.rounds += piece.request.ends == 'step'
    best = sorted(self.beams, key=self._rank)[: self._config.kept]
    self.beams = sorted(best, key=lambda beam: beam.number)
    going = [beam for beam in self.beams if self._thinks(beam)]
    width = self._config.width
    if not going:
      going = [beam for beam in self.beams if not self._ended(beam)]
      width = 1
    self.done = not going
    gone = {beam.number for beam in going}
    self.beams = [beam for beam in self.beams if beam.number not in gone]
    orders = []
    for beam in going:
      numbers = (beam.number, *(self._fresh() for _ in range(width - 1)))
      self._parents |= dict.fromkeys(numbers, beam)
      orders.append((beam, numbers))
    return orders

  def _fresh(self) -> int:
    """A number that no beam has had."""
    number, self._unused = self._unused, self._unused + self._config.num_trees
    return number

  def _rank(self, beam: Candidate) -> tuple[bool, float, int]:
    """The best first; a beam that was cut off last, as `choose` has it."""
    cut = self._ended(beam) and not beam.finished
    released = self._sampling.released_selection
    return cut and not released, -beam.score, beam.number

  def _ended(self, beam: Candidate) -> bool:
    """Nothing more may be written."""
    written = len(self._request.written) + len(beam.token_R)
    return beam.finished or written == self._request.limit(self._sampling)

  def _thinks(self, beam: Candidate) -> bool:
    """It goes on step by step."""
    closed = self._sampling.think_end_id in beam.token_R
    return not closed and not self._ended(beam)


def _joined(
  request: Request,
  parent: Candidate | None,
  piece: Candidate,
  config: SamplingConfig,
) -> Candidate:
  """What the parent has written and the piece behind it, as one candidate."""
  parts = [piece] if parent is None else [parent, piece]
  token, log_prob, forced, z = (
    np.concatenate([getattr(part, name) for part in parts])
    for name in ('token_R', 'log_prob_R', 'forced_R', 'step_logit_R')
  )
  return Candidate(
    request=request,
    number=piece.number,
    # A step that ends at its mark leaves the response unfinished.
    reason=STOP if token[-1] in config.stop_ids else LENGTH,
    token_R=token,
    log_prob_R=log_prob,
    forced_R=forced,
    step_logit_R=z,
    last_logit=piece.last_logit,
    config=config,
  )
