"""How often the 95 % intervals hold the truth, by simulation.

  python -m tests.evidence.coverage            # 4,000 runs a line, an hour
  python -m tests.evidence.coverage --runs=500

A run draws problems from a population, samples from the problems, and asks for
the interval; the population's own value is known. Problems differ in how hard
they are: the chance of a right sample is Beta(c a, c (1 - a)) with mean a, the
accuracy. c = 1 is U-shaped (most problems nearly always or never solved, as
measured on competition sets), c = 4 is a single hump.

Prints a table in Markdown: how often (%) the interval held the truth, at four
accuracies; in brackets, below `intervals.SMALL` problems, the bootstrap (BCa).
On stderr each line also says how often the truth lay below and above.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags
from scipy import special

from metastone_jax.evaluation import auc, estimators, intervals
from metastone_jax.evaluation.samples import EvaluationSamples

_RUNS = flags.DEFINE_integer('runs', 4000, 'Simulated evaluations a line.')
_AUC_RUNS = flags.DEFINE_integer('auc_runs', 4000, 'Of the lines about AUC.')
_SIZES = flags.DEFINE_list('sizes', ['30', '512'], 'Problems an evaluation.')

ACCURACIES = (0.1, 0.3, 0.5, 0.9)
K = 8
# Samples a problem where k of them are chosen from, and where an AUC is meant.
N, AUC_N = 16, 8
# Problems that make the truth.
_POPULATION = 200_000
_WRONG_ANSWERS = 4
# Scores: right ones are so many standard deviations higher, on average.
_GAP, _GAP_SPREAD, _PROBLEM_SPREAD = 1.0, 0.5, 0.8
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Of one line: shares of the runs.

  Attributes:
    held: the interval held the truth.
    below: the truth lay below it.
    above: the truth lay above it.
    width: of the interval, on average.
    methods: that the runs took.
  """

  held: float
  below: float
  above: float
  width: float
  methods: tuple[str, ...]

  @classmethod
  def of(cls, found: list[intervals.Interval], truth: float) -> 'Coverage':
    """Counts; an interval without bounds holds everything."""
    low = np.nan_to_num([i.low for i in found], nan=-np.inf)
    high = np.nan_to_num([i.high for i in found], nan=np.inf)
    below, above = truth < low - 1e-12, truth > high + 1e-12
    return cls(
      1 - (below | above).mean(),
      below.mean(),
      above.mean(),
      (high - low).mean(),
      tuple(sorted({i.method for i in found})),
    )

  def text(self) -> str:
    """`95.1 (2.4, 2.5)`."""
    shares = 100 * np.array([self.held, self.below, self.above])
    return '{:.1f} ({:.1f}, {:.1f})'.format(*shares)


def chances(rng, accuracy: float, c: float, shape) -> np.ndarray:
  """The chance of a right sample, a problem each."""
  q = rng.beta(c * accuracy, c * (1 - accuracy), shape)
  return np.clip(q, 1e-9, 1 - 1e-9)


def moved(rng, chance, shift: float) -> np.ndarray:
  """Chances of another checkpoint: most problems easier, some harder."""
  logit = special.logit(chance) + shift
  return special.expit(logit + 0.7 * rng.standard_normal(chance.shape))


def samples_of(rng, chance_P: np.ndarray, number: int):
  """(scores, correct, answers) of `number` samples a problem."""
  shape = (len(chance_P), number)
  correct = rng.random(shape) < chance_P[:, None]
  wrong = rng.integers(1, 1 + _WRONG_ANSWERS, shape)
  gap_P1 = _GAP + _GAP_SPREAD * rng.standard_normal((shape[0], 1))
  offset_P1 = _PROBLEM_SPREAD * rng.standard_normal((shape[0], 1))
  logits = gap_P1 * correct + rng.standard_normal(shape) + offset_P1
  return special.expit(logits), correct, np.where(correct, 0, wrong)


# Value of a problem, from a generator and the chances: float64 of their shape.
Measure = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def pass_at_1(number: int) -> Measure:
  """Accuracy of `number` samples."""
  return lambda rng, chance: rng.binomial(number, chance) / number


def best_of_k(rng, chance):
  """Of 8, over all subsets of 16."""
  scores, correct, _ = samples_of(rng, chance.ravel(), N)
  found = estimators.best_of_k(scores, correct, K, per_problem=True)
  return found.reshape(chance.shape)


def best_minus_majority(rng, chance):
  """The score head against the vote, on the same samples."""
  scores, correct, answers = samples_of(rng, chance.ravel(), N)
  found = estimators.best_of_k(scores, correct, K, per_problem=True)
  found -= estimators.majority_at_k(answers, correct, K, per_problem=True)
  return found.reshape(chance.shape)


def two_checkpoints(number: int, shift: float) -> Measure:
  """Pass@1 of one minus that of the other, on the same problems."""

  def difference(rng, chance):
    other = moved(rng, chance, shift)
    right = rng.binomial(number, other) - rng.binomial(number, chance)
    return right / number

  return difference


def coverage_of(
  measure: Measure,
  kind: str,
  *,
  accuracy: float,
  c: float,
  size: int,
  runs: int,
  truth: float | None = None,
  seed: int = 0,
) -> tuple[Coverage, Coverage]:
  """(the method of `intervals` at that size, BCa) for means over problems.

  Args:
    measure: of a problem.
    kind: see `intervals`.
    accuracy: mean chance.
    c: concentration of the chances.
    size: problems of an evaluation.
    runs: evaluations.
    truth: of the population; default: simulated.
    seed: of everything.
  """
  rng = np.random.default_rng(seed)
  if truth is None:
    truth = float(
      np.mean(
        [
          measure(rng, chances(rng, accuracy, c, _POPULATION // 20)).mean()
          for _ in range(20)
        ]
      )
    )
  piece = max(1, 60_000 // size)
  values_PM = np.concatenate(
    [
      measure(rng, chances(rng, accuracy, c, (min(piece, runs - at), size)))
      for at in range(0, runs, piece)
    ]
  ).T
  options = dict(resamples=_RESAMPLES, seed=seed)
  ours = intervals.column_intervals(values_PM, [kind] * runs, **options)
  bootstrap = intervals.bootstrap_intervals(values_PM, **options)
  return Coverage.of(ours, truth), Coverage.of(bootstrap, truth)


def auc_truth(accuracy: float, c: float, seed: int = 0) -> tuple[float, float]:
  """(within, across) of the population, from `samples_of`'s formulas."""
  rng = np.random.default_rng(seed)
  chance = chances(rng, accuracy, c, _POPULATION)
  gap = _GAP + _GAP_SPREAD * rng.standard_normal(_POPULATION)
  weight = chance * (1 - chance)
  within = (weight * special.ndtr(gap / np.sqrt(2))).sum() / weight.sum()
  # A right sample and a wrong one of two problems: their offsets differ too.
  right = chance / chance.sum()
  spread = np.sqrt(2 * (1 + _PROBLEM_SPREAD**2))
  return float(within), float((right * special.ndtr(gap / spread)).sum())


def auc_coverage(
  *, accuracy: float, c: float, size: int, runs: int, seed: int = 0
) -> tuple[tuple[Coverage, Coverage], tuple[Coverage, Coverage]]:
  """(within, across), each (the method of that size, BCa)."""
  rng = np.random.default_rng(seed)
  found = ([], []), ([], [])
  small = intervals.SMALL
  for run in range(runs):
    scores, correct, answers = samples_of(
      rng, chances(rng, accuracy, c, size), AUC_N
    )
    samples = EvaluationSamples(
      task='simulated',
      scores_PN=scores,
      correct_PN=correct,
      answers_PN=answers,
      finished_PN=np.ones_like(correct),
      tokens_PN=np.ones(correct.shape, int),
      problem_ids=[str(p) for p in range(size)],
    )
    for method, border in enumerate((small, 0)):
      intervals.SMALL = border
      try:
        if method and size >= small:  # the same
          pair = tuple(side[0][-1] for side in found)
        else:
          pair = auc.auc_intervals(samples, resamples=_RESAMPLES, seed=run)
      finally:
        intervals.SMALL = small
      for side, one in zip(found, pair, strict=True):
        side[method].append(one)
  return tuple(
    tuple(Coverage.of(some, truth) for some in side)
    for side, truth in zip(found, auc_truth(accuracy, c, seed), strict=True)
  )


def lines(sizes, runs: int, auc_runs: int) -> Iterator[tuple]:
  """(measure, problems, accuracy, c, ours, BCa) of the whole table."""
  share, difference = intervals.SHARE, intervals.DIFFERENCE
  plans = [
    ('pass@1, 4 samples', pass_at_1(4), share),
    ('pass@1, 16 samples', pass_at_1(16), share),
    ('best-of-8 of 16', best_of_k, share),
    ('best-of-8 minus majority@8', best_minus_majority, difference),
    ('two checkpoints, equal, 16', two_checkpoints(16, 0.0), difference),
    ('two checkpoints, better, 16', two_checkpoints(16, 0.7), difference),
  ]
  for size in sizes:
    for c in (1, 4):
      for name, measure, kind in plans:
        for accuracy in ACCURACIES:
          ours, bootstrap = coverage_of(
            measure,
            kind,
            accuracy=accuracy,
            c=c,
            size=size,
            runs=runs,
            truth=accuracy if name.startswith('pass@1') else None,
          )
          yield name, size, accuracy, c, ours, bootstrap
      for accuracy in ACCURACIES if c == 1 or size == 30 else ():
        pairs = auc_coverage(accuracy=accuracy, c=c, size=size, runs=auc_runs)
        for side, (ours, bootstrap) in zip(
          ('AUC within a problem, 8', 'AUC across problems, 8'),
          pairs,
          strict=True,
        ):
          yield side, size, accuracy, c, ours, bootstrap


def table(found: list[tuple]) -> str:
  """Markdown, accuracies side by side; in brackets that of BCa below SMALL."""
  header = ['measure', 'problems', 'c', 'method', *map(str, ACCURACIES)]
  rows: dict[tuple, dict] = {}
  for name, size, accuracy, c, ours, bootstrap in found:
    row = rows.setdefault((size, c, name), {'methods': set()})
    row['methods'] |= set(ours.methods) - {''}
    row[accuracy] = f'{100 * ours.held:.1f}'
    if size < intervals.SMALL:
      row[accuracy] += f' ({100 * bootstrap.held:.1f})'
  lines = [header, ['---'] + ['---:'] * 2 + ['---'] + ['---:'] * 4]
  for (size, c, name), row in rows.items():
    cells = [row.get(accuracy, '') for accuracy in ACCURACIES]
    methods = ', '.join(sorted(row['methods']))
    lines.append([name, str(size), str(c), methods, *cells])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main(_) -> None:
  """Prints a line as it is done, and the table at the end."""
  started, found = time.monotonic(), []
  sizes = [int(size) for size in _SIZES.value]
  for line in lines(sizes, _RUNS.value, _AUC_RUNS.value):
    found.append(line)
    name, size, accuracy, c, ours, bootstrap = line
    print(
      f'{name}, {size} problems, accuracy {accuracy}, c {c}: {ours.text()}, '
      f'BCa {bootstrap.text()}',
      file=sys.stderr,
      flush=True,
    )
  print(table(found))
  print(f'\n{time.monotonic() - started:.0f} s')


if __name__ == '__main__':
  app.run(main)
