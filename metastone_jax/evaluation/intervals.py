"""Confidence intervals over problems, by the method that covers at that size.

Contract: the PROBLEM is the unit; the samples of one problem stay together,
since they are no independent evidence about new problems. What is averaged
decides the method, and so does the number of problems:

| what                        | below 300 problems             | from 300 on |
| --------------------------- | ------------------------------ | ----------- |
| a share of 0/1 values       | Wilson                         | Wilson      |
| a share, values in [0, 1]   | Wilson, effective size         | BCa         |
| a difference of two shares  | t, a rare one added            | BCa         |
| an AUC                      | jackknife, t on the logit      | BCa         |
| anything else (tokens, ...) | Student's t                    | BCa         |

BCa is the bias-corrected and accelerated bootstrap over problems (Efron 1987);
where it is undefined (every resample on one side of the estimate) the plain
percentile interval is returned. The methods for few problems are in
`closed_form`. docs/evaluation.md has the measured coverage of both at both
sizes, from tests/evidence/coverage.py; the border lies where they agree.

Differences that are all equal give an interval of width 0; a single problem
supports no interval, so low and high are NaN there. Everything is seeded and
float64.
"""

import dataclasses
import math
import statistics

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import closed_form

# Below this many problems no bootstrap: it covers too little there.
SMALL = 300

SHARE, DIFFERENCE, VALUE = 'share', 'difference', 'value'
_LIMITS = {
  SHARE: ('Wilson', closed_form.share_limits),
  DIFFERENCE: ('t', closed_form.difference_limits),
  VALUE: ('t', closed_form.mean_limits),
}

_NORMAL = statistics.NormalDist()
# Resampled indices drawn at once (8 bytes each).
_CHUNK_DRAWS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its confidence bounds; NaN bounds mean "undefined".

  Attributes:
    mean: the estimate.
    low: its lower bound.
    high: its upper bound.
    method: how the bounds were made; empty where there are none.
  """

  mean: float
  low: float
  high: float
  method: str = ''

  def as_dict(self) -> dict[str, float | str | None]:
    """Plain JSON values; NaN, which JSON has not, becomes None."""
    return {
      name: None if isinstance(x, float) and math.isnan(x) else x
      for name, x in dataclasses.asdict(self).items()
    }


def interval(
  values_P,
  kind: str = SHARE,
  *,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> Interval:
  """Mean over problems with its interval.

  Args:
    values_P: one finite value a problem.
    kind: SHARE (values in [0, 1]), DIFFERENCE of two of them, or VALUE.
    level: coverage, in (0, 1).
    resamples: of the bootstrap, >= 1.
    seed: of the resampling; equal seeds and P resample the same problems.

  Returns:
    Interval in the unit of the values.

  Raises:
    UserError: no value, one that is not finite or outside its kind's range.
  """
  values_P = np.asarray(values_P, np.float64)
  if values_P.ndim != 1:
    raise UserError(f'interval: needs one value a problem, {values_P.shape}')
  return column_intervals(
    values_P[:, None], [kind], level=level, resamples=resamples, seed=seed
  )[0]


def column_intervals(
  values_PM,
  kinds,
  *,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> list[Interval]:
  """`interval` of M columns, of a kind each, on one set of resamples."""
  values_PM = np.asarray(values_PM, np.float64)
  if values_PM.ndim != 2 or not len(values_PM):
    raise UserError(f'interval: there are no problems, {values_PM.shape}')
  if not np.isfinite(values_PM).all():
    raise UserError('interval: values must be finite')
  if not 0.0 < level < 1.0:
    raise UserError(f'interval: level={level}, needs 0 < level < 1')
  for m, kind in enumerate(kinds):
    least = {SHARE: 0.0, DIFFERENCE: -1.0, VALUE: -math.inf}[kind]
    column_P = values_PM[:, m]
    wrong_P = (column_P < least - 1e-9) | (column_P > 1 + 1e-9)
    if kind != VALUE and wrong_P.any():
      raise UserError(
        f'interval: {column_P[wrong_P][0]} is no {kind}; it must lie between '
        f'{least:g} and 1'
      )
  if len(values_PM) == 1:
    return [Interval(float(x), math.nan, math.nan) for x in values_PM[0]]
  large = len(values_PM) >= SMALL
  names = []
  for m, kind in enumerate(kinds):
    if kind == SHARE and np.isin(values_PM[:, m], (0, 1)).all():
      names.append('Wilson')
    else:
      names.append('BCa' if large else _LIMITS[kind][0])
  found: list[Interval | None] = [None] * len(names)
  for kind, (_, limits) in _LIMITS.items():
    columns = [
      m for m, k in enumerate(kinds) if k == kind and names[m] != 'BCa'
    ]
    if columns:
      pairs = np.stack(limits(values_PM[:, columns], level), axis=1)
      for m, (low, high) in zip(columns, pairs.tolist(), strict=True):
        mean = float(values_PM[:, m].mean())
        found[m] = Interval(mean, low, high, names[m])
  columns = [m for m, name in enumerate(names) if name == 'BCa']
  if columns:
    several = bootstrap_intervals(
      values_PM[:, columns], level=level, resamples=resamples, seed=seed
    )
    for m, one in zip(columns, several, strict=True):
      found[m] = one
  return found


def paired_interval(
  a_P, b_P, *, level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Interval:
  """Mean of a - b, shares on the SAME problems, with its interval."""
  a_P, b_P = np.asarray(a_P, np.float64), np.asarray(b_P, np.float64)
  if a_P.shape != b_P.shape:
    raise UserError(
      f'paired interval: {a_P.shape} against {b_P.shape} values; both sides '
      'need the same problems in the same order'
    )
  return interval(
    a_P - b_P, DIFFERENCE, level=level, resamples=resamples, seed=seed
  )


def ratio_interval(
  estimate: float, boot_R, jack_P, *, level: float = 0.95
) -> Interval:
  """An AUC or another ratio in [0, 1] with its interval.

  Args:
    estimate: on all problems.
    boot_R: called for its value on each resample, from SMALL problems on.
    jack_P: its value without problem p; where some are undefined, so is what
      rests on these problems alone.
    level: coverage, in (0, 1).
  """
  jack_P = np.asarray(jack_P, np.float64)
  if len(jack_P) >= SMALL:
    return bca_interval(estimate, boot_R(), jack_P, level=level)
  jack_P = jack_P[np.isfinite(jack_P)]
  if math.isnan(estimate) or len(jack_P) < 2:
    return Interval(float(estimate), math.nan, math.nan)
  low, high = closed_form.jackknife_limits(float(estimate), jack_P, level)
  return Interval(float(estimate), low, high, 'jackknife t')


def bootstrap_intervals(
  values_PM: np.ndarray, *, level: float = 0.95, resamples: int, seed: int
) -> list[Interval]:
  """BCa intervals of the means of M columns, whatever their size."""
  P, M = values_PM.shape
  mean_M = values_PM.mean(axis=0)
  boot_RM = np.concatenate(
    [
      weight_RP @ values_PM / P
      for weight_RP in problem_weights(P, resamples, seed)
    ]
  )
  # Mean without problem p, in closed form.
  jack_PM = (mean_M * P - values_PM) / (P - 1)
  return [
    bca_interval(mean_M[m], boot_RM[:, m], jack_PM[:, m], level=level)
    for m in range(M)
  ]


def problem_weights(P: int, resamples: int, seed: int):
  """Yields float64 (chunk, P): how often each resample holds each problem."""
  if resamples < 1:
    raise UserError(f'bootstrap: resamples={resamples}, needs >= 1')
  rng = np.random.default_rng(seed)
  rows = max(1, _CHUNK_DRAWS // P)
  for start in range(0, resamples, rows):
    n = min(rows, resamples - start)
    index = rng.integers(P, size=(n, P)) + np.arange(n)[:, None] * P
    weight = np.bincount(index.ravel(), minlength=n * P)
    yield weight.reshape(n, P).astype(np.float64)


def bca_interval(
  estimate: float, boot_R, jack_P, *, level: float = 0.95
) -> Interval:
  """BCa interval from bootstrap replicates and leave-one-out values.

  Args:
    estimate: the statistic on all problems.
    boot_R: its value on each resample; non-finite ones (the statistic is
      undefined there) are left out.
    jack_P: its value without problem p; non-finite ones are left out.
    level: coverage, in (0, 1).

  Returns:
    Interval; percentile where BCa is undefined, NaN bounds for one problem.
  """
  estimate = float(estimate)
  boot_R = np.asarray(boot_R)[np.isfinite(boot_R)]
  jack_P = np.asarray(jack_P)[np.isfinite(jack_P)]
  if math.isnan(estimate) or len(jack_P) < 2 or not len(boot_R):
    return Interval(estimate, math.nan, math.nan)
  # Differences of rounding size are ties, else a constant looks biased.
  tolerance = 1e-12 * max(1.0, abs(estimate))
  if np.ptp(boot_R) <= tolerance:
    return Interval(estimate, estimate, estimate, 'BCa')
  tails, method = ((1.0 - level) / 2.0, (1.0 + level) / 2.0), 'percentile'
  below = (boot_R < estimate - tolerance).mean()
  above = (boot_R > estimate + tolerance).mean()
  share = 0.5 * (below + 1.0 - above)
  spread_P = jack_P.mean() - jack_P
  square = (spread_P**2).sum()
  if 0.0 < share < 1.0 and square > 0.0:
    bias = _NORMAL.inv_cdf(share)
    acceleration = (spread_P**3).sum() / (6.0 * square**1.5)
    adjusted = []
    for tail in tails:
      z = bias + _NORMAL.inv_cdf(tail)
      scale = 1.0 - acceleration * z
      if scale <= 0.0:
        break
      adjusted.append(_NORMAL.cdf(bias + z / scale))
    else:
      tails, method = tuple(adjusted), 'BCa'
  low, high = np.quantile(boot_R, tails)
  return Interval(estimate, float(low), float(high), method)
