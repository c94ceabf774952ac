"""Several checkpoints on the same problems: paired differences and tests.

Contract: everything is paired by problem, so what makes problems hard cancels.
Each difference has an interval (see `intervals`) and a p-value of the SIGN-FLIP
PERMUTATION TEST: were there no difference, each problem's own difference could
as well have had the other sign; p is the share of sign patterns whose mean is
at least as far from 0, two-sided. All patterns are counted with up to 20
problems that differ, else a seeded sample of them, in which the observed
pattern counts once. p-values are not corrected for the number of rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals, summary
from metastone_jax.evaluation.samples import EvaluationSamples

# Problems that differ, up to which all sign patterns are counted.
EXACT = 20
DRAWS = 19_999
# Sums of the same numbers in another order must still tie.
_TIE = 1e-9
_CHUNK = 4_000_000


def compare(
  several: Mapping[str, EvaluationSamples],
  ks: Sequence[int] = summary.DEFAULT_KS,
  *,
  to_first: bool = False,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> list[dict]:
  """Paired differences between evaluations of one task.

  Args:
    several: name -> samples, all on the same problems, in order.
    ks: subset sizes of the rules; those above N are left out.
    to_first: compare each with the first, not with the one before it.
    level: coverage.
    resamples: of the bootstrap.
    seed: of the bootstrap, of sampled subsets and sign patterns.

  Returns:
    [{'before', 'after', 'measure', 'mean', 'low', 'high', 'method', 'p',
    'test'}, ...], empty for fewer than two.

  Raises:
    UserError: two hold different problems.
  """
  names, found = list(several), []
  for i, after in enumerate(names[1:]):
    before = names[0 if to_first else i]
    a, b = several[before], several[after]
    if a.problem_ids != b.problem_ids:
      raise UserError(
        f'{before!r} and {after!r} hold different problems; a paired '
        'difference needs the same held-out set'
      )
    values = [('pass@1', a.correct_PN.mean(axis=1), b.correct_PN.mean(axis=1))]
    for k in summary.usable_ks(ks, min(a.shape[1], b.shape[1])):
      if k == 1:
        continue
      rules_a, rules_b = (summary.rule_values(x, k, seed=seed) for x in (a, b))
      values += [
        (f'{title} (k = {k})', rules_a[rule], rules_b[rule])
        for rule, title in summary.RULES.items()
      ]
    for measure, before_P, after_P in values:
      interval = intervals.paired_interval(
        after_P, before_P, level=level, resamples=resamples, seed=seed
      )
      if interval.low == interval.high == 0:
        interval = _none_differs(len(after_P), level)
      p, test = sign_flip_test(after_P - before_P, seed=seed)
      found.append(
        {
          'before': before,
          'after': after,
          'measure': measure,
          **interval.as_dict(),
          'p': p,
          'test': test,
        }
      )
  return found


def _none_differs(P: int, level: float) -> intervals.Interval:
  """No problem differs: as many may as a share that none shows."""
  most = intervals.interval(np.zeros(P), level=level)
  return intervals.Interval(0.0, -most.high, most.high, most.method)


def sign_flip_test(
  difference_P, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, str]:
  """The two-sided p-value that the differences are symmetric around 0.

  Args:
    difference_P: one finite value a problem.
    draws: sign patterns where there are too many to count.
    seed: of them.

  Returns:
    (p, name of the test).
  """
  difference_P = np.asarray(difference_P, np.float64)
  size_P = np.abs(difference_P)
  size_P = size_P[size_P > _TIE]
  observed = abs(difference_P.sum()) - _TIE
  if len(size_P) <= EXACT:
    sums = np.zeros(1)
    for size in size_P:
      sums = np.concatenate([sums + size, sums - size])
    return float((np.abs(sums) >= observed).mean()), 'sign flips, exact'
  rng = np.random.default_rng(seed)
  hits, rows = 0, max(1, _CHUNK // len(size_P))
  for start in range(0, draws, rows):
    shape = (min(rows, draws - start), len(size_P))
    sign = 2.0 * rng.integers(2, size=shape) - 1.0
    hits += int((np.abs(sign @ size_P) >= observed).sum())
  return (hits + 1) / (draws + 1), f'sign flips, {draws:,} draws'
