"""Ways to spend tokens at test time, side by side on held-out problems.

  python -m tests.evidence.test_time --checkpoint=runs/evidence/main-0

One table: accuracy with its 95 % interval (BCa bootstrap over problems), the
difference from best of k on the same problems, and what a problem cost: tokens
drawn, tokens read, FLOPs of both, wherever they ended up. A further strategy is
one more function in `STRATEGIES`.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from metastone_jax import evaluation, sprm
from metastone_jax.checkpoints import CheckpointManager, Pretrained
from metastone_jax.sampling.engine import (
  Candidate,
  Engine,
  EngineConfig,
  Rejection,
  Request,
  SearchConfig,
  best_of,
  search,
  vote,
)
from metastone_jax.sampling.engine.candidates import flops
from metastone_jax.tasks import boxed_answer, score_responses
from metastone_jax.training import loop
from metastone_jax.training.loop.heldout import DRAW_OFFSET

__test__ = False  # for pytest: a script, whatever its name

# Between the draws of one problem; far more problems than any set has.
_DRAW_STRIDE = 2**20


@dataclasses.dataclass
class Row:
  """What a strategy did; P problems, R times each.

  Attributes:
    name: of the strategy.
    correct_PR: the verifier's word, or a mean of several.
    drawn_PR: tokens.
    read_PR: tokens.
    flops_PR: of both.
  """

  name: str
  correct_PR: np.ndarray
  drawn_PR: np.ndarray
  read_PR: np.ndarray
  flops_PR: np.ndarray

  @classmethod
  def zeros(cls, name: str, bench: 'Bench') -> 'Row':
    """Before anything was drawn."""
    return cls(name, *(np.zeros(bench.shape) for _ in range(4)))


class Bench:
  """A checkpoint, its held-out problems and an engine.

  Attributes:
    k: candidates, or beams, a problem.
    shape: (P, R), problems and times that each is answered.
  """

  def __init__(self, args):
    root = pathlib.Path(args.checkpoint)
    recipe = loop.recipe_from_dict(
      json.loads((root / 'config.json').read_text())
    )
    self.setup = loop.Setup.build(recipe, root)
    with CheckpointManager(root / 'checkpoints', read_only=True) as manager:
      _, step = manager.read_extra(args.step)
    with Pretrained(root) as pretrained:
      params = pretrained.load(
        self.setup.model_config, self.setup.sharder, step=step, verified=True
      )
    self._params = self.setup.decode_params(params)
    self._aggregator, self._turns = args.aggregator, args.turns
    self.engine = self.engine_of(args.slots)
    sampler = loop.Sampler.build(
      self.setup,
      self.engine.config,
      problems=args.problems,
      samples=args.k,
      slots=args.slots,
    )
    evaluator = loop.Evaluator(self.setup, sampler)
    self.problems, prompt_PS, length_P = evaluator.batch(
      args.task, args.problems
    )
    self._prompts = [
      tuple(prompt[:length].tolist())
      for prompt, length in zip(prompt_PS, length_P, strict=True)
    ]
    self.k, self.shape = args.k, (args.problems, args.draws)

  def engine_of(self, slots: int) -> Engine:
    """An engine with so many slots."""
    return Engine(
      self._params,
      self.setup.recipe.seed,
      model_config=self.setup.model_config,
      config=dataclasses.replace(
        self.setup.evaluation_sampling, aggregator=self._aggregator
      ),
      engine_config=EngineConfig(num_slots=slots, turns=self._turns),
      sharder=self.setup.hosts.local,
    )

  def requests(self) -> list[Request]:
    """Every problem, R times, with randomness of its own each time."""
    return [
      Request(prompt, DRAW_OFFSET + r * _DRAW_STRIDE + p, tuple(range(self.k)))
      for r in range(self.shape[1])
      for p, prompt in enumerate(self._prompts)
    ]

  def place(self, request: Request) -> tuple[int, int]:
    """(problem, which time) of a request."""
    r, p = divmod(request.draw - DRAW_OFFSET, _DRAW_STRIDE)
    return p, r

  def verify(self, problem: int, candidates: tuple[Candidate, ...]):
    """(right, answer ids) of responses; what was cut off is wrong."""
    finished = np.array([c.finished for c in candidates])
    texts = [
      self.setup.chat.canonical(self.setup.tokenizer.decode(c.token_R.tolist()))
      for c in candidates
    ]
    scores = score_responses(
      self.setup.mixture.tasks, [self.problems[problem]], texts, finished
    )
    return (scores.reward_B > 0.5) & finished, scores.answer_id_B

  def answer_of(self, candidate: Candidate) -> str | None:
    """What it votes for; nothing where it was cut off."""
    if not candidate.finished:
      return None
    text = self.setup.tokenizer.decode(candidate.token_R.tolist())
    box = boxed_answer(self.setup.chat.canonical(text))
    return None if box is None else ''.join(box.split())

  def cost(self, candidates: Sequence[Candidate]) -> tuple:
    """(drawn, read, FLOPs) of responses behind one prompt."""
    return (
      sum(len(c.token_R) for c in candidates),
      len(candidates[0].request.read),
      flops(self.setup.model_config, candidates),
    )


def _put(row: Row, place, correct: float, cost) -> None:
  row.correct_PR[place] = correct
  row.drawn_PR[place], row.read_PR[place], row.flops_PR[place] = cost


def independent(bench: Bench) -> list[Row]:
  """k responses each: the best by score, any one, and the most frequent."""
  k = bench.k
  best, one, majority = (
    Row.zeros(name, bench)
    for name in (f'best of {k}', 'pass@1', f'majority of {k}')
  )
  for answer in best_of(bench.engine, bench.requests()):
    place = bench.place(answer.request)
    right_N, answer_N = bench.verify(place[0], answer.candidates)
    cost = bench.cost(answer.candidates)
    vote = evaluation.majority_at_k(answer_N[None], right_N[None], k)
    _put(best, place, right_N[answer.best], cost)
    _put(majority, place, vote, cost)
    alone = [bench.cost([c]) for c in answer.candidates]
    _put(one, place, right_N.mean(), np.mean(alone, axis=0))
  return [best, one, majority]


def guided(bench: Bench) -> Iterator[Row]:
  """Searches over steps with k beams."""
  for kind, name in (('beam', 'beam search'), ('dvts', 'DVTS')):
    for width in (2, 4):
      if bench.k % width:
        continue
      row = Row.zeros(f'{name}, {bench.k} beams, {width} children', bench)
      config = SearchConfig(kind, bench.k, width)
      for answer in search(bench.engine, bench.requests(), config):
        place = bench.place(answer.request)
        right_N, _ = bench.verify(place[0], answer.candidates)
        cost = answer.tokens, answer.read, answer.flops
        _put(row, place, right_N[answer.best], cost)
      yield row


def pruned(bench: Bench) -> Iterator[Row]:
  """Best of k, hopeless candidates given up (`Rejection`)."""
  for first, keep in ((0, 0.5), (8, 0.5), (16, 0.5), (20, 0.5), (20, 0.25)):
    name = f'best of {bench.k}, beaten traces not answered'
    if first:
      name += f', {keep:.0%} kept at {first} tokens'
    row = Row.zeros(name, bench)
    prune = Rejection(bench.engine.config, first, keep)
    for answer in best_of(bench.engine, bench.requests(), prune=prune):
      place = bench.place(answer.request)
      right_N, _ = bench.verify(place[0], answer.candidates)
      cost = answer.tokens, len(answer.request.read), answer.flops
      _put(row, place, right_N[answer.best], cost)
    yield row


def voted(bench: Bench) -> Iterator[Row]:
  """Votes, to their end and until they are decided.

  With a quarter of a problem's candidates at a time: what has not begun when
  the vote is decided costs nothing.
  """
  engine = bench.engine_of(max(1, bench.k // 4))
  for kind in ('majority', 'weighted'):
    for early in (False, True):
      how = 'until decided' if early else 'to the end'
      row = Row.zeros(f'{kind} vote of {bench.k}, {how}', bench)
      for election in vote(
        engine, bench.requests(), bench.answer_of, kind=kind, early_stop=early
      ):
        place = bench.place(election.request)
        right_N, _ = bench.verify(place[0], election.candidates)
        answered = election.answer is not None
        cost = election.tokens, len(election.request.read), election.flops
        _put(row, place, answered and right_N[election.best], cost)
      yield row


# Each gives one row or several; best of k, which the others are compared with,
# comes first.
STRATEGIES = (independent, pruned, voted, guided)


def _points(interval, sign: str = '') -> str:
  """In percentage points."""
  low, high = (f'{100 * x:{sign}.1f}' for x in (interval.low, interval.high))
  return f'{100 * interval.mean:{sign}.1f} ({low} to {high})'


def main() -> None:
  """Parses the flags, draws, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True, help='folder of a run')
  parser.add_argument('--step', type=int, help='default: the newest')
  parser.add_argument('--task', default='signs')
  parser.add_argument('--problems', type=int, default=256)
  parser.add_argument('--draws', type=int, default=4, help='answers a problem')
  parser.add_argument('--k', type=int, default=8, help='candidates or beams')
  parser.add_argument(
    '--aggregator', default='geometric', choices=sprm.AGGREGATORS
  )
  parser.add_argument('--slots', type=int, default=128)
  parser.add_argument('--turns', type=int, default=4)
  parser.add_argument(
    '--only', default='', help='names of strategies, beside best of k'
  )
  args = parser.parse_args()
  bench = Bench(args)
  print(
    f'{bench.shape[0]} held-out problems, each answered {bench.shape[1]} times'
  )
  print(
    '| strategy | accuracy, % | minus best of k | tokens drawn | tokens read |'
    ' MFLOPs |\n| --- | --- | --- | --- | --- | --- |'
  )
  reference = None
  chosen = args.only.split(',') if args.only else None
  for strategy in STRATEGIES:
    if chosen and strategy.__name__ not in ('independent', *chosen):
      continue
    started = time.monotonic()
    for row in strategy(bench):
      correct_P = row.correct_PR.mean(axis=1)
      reference = correct_P if reference is None else reference
      cells = [
        _points(evaluation.interval(correct_P)),
        _points(evaluation.paired_interval(correct_P, reference), '+'),
        f'{row.drawn_PR.mean():.0f}',
        f'{row.read_PR.mean():.0f}',
        f'{row.flops_PR.mean() / 1e6:.0f}',
      ]
      print(f'| {row.name} | ' + ' | '.join(cells) + ' |', flush=True)
    print(f'<!-- {time.monotonic() - started:.0f} s -->', flush=True)


if __name__ == '__main__':
  main()
