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
from collections.abc import Iterator

import numpy as np

from metastone_jax import evaluation, sprm
from metastone_jax.checkpoints import CheckpointManager, Pretrained
from metastone_jax.sampling.engine import (
  Candidate,
  Engine,
  EngineConfig,
  Request,
  SearchConfig,
  best_of,
  search,
)
from metastone_jax.tasks import score_responses
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
    self.engine = Engine(
      self.setup.decode_params(params),
      recipe.seed,
      model_config=self.setup.model_config,
      config=dataclasses.replace(
        self.setup.evaluation_sampling, aggregator=args.aggregator
      ),
      engine_config=EngineConfig(num_slots=args.slots, turns=args.turns),
      sharder=self.setup.hosts.local,
    )
    evaluator = loop.Evaluator(self.setup, 1, 1)
    self.problems, prompt_PS, length_P = evaluator.batch(
      args.task, args.problems
    )
    self._prompts = [
      tuple(prompt[:length].tolist())
      for prompt, length in zip(prompt_PS, length_P, strict=True)
    ]
    self.k, self.shape = args.k, (args.problems, args.draws)

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

  def cost(self, request: Request, candidates) -> np.ndarray:
    """(drawn, read, FLOPs) of responses behind one prompt."""
    config, read = self.setup.model_config, len(request.read)
    counts = [len(c.token_R) for c in candidates]
    flops = config.prefill_flops(read)
    flops += sum(config.decode_flops(count, read) for count in counts)
    return np.array([sum(counts), read, flops])


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
    cost = bench.cost(answer.request, answer.candidates)
    vote = evaluation.majority_at_k(answer_N[None], right_N[None], k)
    _put(best, place, right_N[answer.best], cost)
    _put(majority, place, vote, cost)
    alone = [bench.cost(answer.request, [c]) for c in answer.candidates]
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


# Each gives one row or several; best of k, which the others are compared with,
# comes first.
STRATEGIES = (independent, guided)


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
  parser.add_argument('--turns', type=int, default=8)
  bench = Bench(parser.parse_args())
  print(
    f'{bench.shape[0]} held-out problems, each answered {bench.shape[1]} times'
  )
  print(
    '| strategy | accuracy, % | minus best of k | tokens drawn | tokens read |'
    ' MFLOPs |\n| --- | --- | --- | --- | --- | --- |'
  )
  reference = None
  for strategy in STRATEGIES:
    started = time.monotonic()
    for row in strategy(bench):
      correct_P = row.correct_PR.mean(axis=1)
      reference = correct_P if reference is None else reference
      cells = [
        _points(evaluation.bootstrap_interval(correct_P)),
        _points(evaluation.paired_interval(correct_P, reference), '+'),
        f'{row.drawn_PR.mean():.0f}',
        f'{row.read_PR.mean():.0f}',
        f'{row.flops_PR.mean() / 1e6:.0f}',
      ]
      print(f'| {row.name} | ' + ' | '.join(cells) + ' |', flush=True)
    print(f'<!-- {time.monotonic() - started:.0f} s -->', flush=True)


if __name__ == '__main__':
  main()
