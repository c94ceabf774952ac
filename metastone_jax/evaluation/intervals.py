"""Bootstrap confidence intervals over problems.

Contract: the PROBLEM is the unit that is resampled; the samples of one problem
stay together, since they are no independent evidence about new problems. All
intervals are BCa (bias-corrected and accelerated, Efron 1987), which keeps its
coverage for accuracies near 0 or 1; where BCa is undefined (every resample
lies on one side of the estimate) the plain percentile interval is returned.
Constant values give an interval of width 0; a single problem supports no
interval, so low and high are NaN there. Everything is seeded and float64.
"""

import dataclasses
import math
import statistics

import numpy as np

from metastone_jax.errors import UserError

_NORMAL = statistics.NormalDist()
# Resampled indices drawn at once (8 bytes each).
_CHUNK_DRAWS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its confidence bounds; NaN bounds mean "undefined"."""

  mean: float
  low: float
  high: float

  def as_dict(self) -> dict[str, float | None]:
    """Plain JSON values; NaN, which JSON has not, becomes None."""
    fields = dataclasses.asdict(self)
    return {k: None if math.isnan(v) else v for k, v in fields.items()}


def bootstrap_interval(
  values_P, *, level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Interval:
  """Mean over problems with its BCa bootstrap interval.

  Args:
    values_P: one finite value a problem (accuracy, difference, tokens).
    level: coverage, in (0, 1).
    resamples: bootstrap resamples, >= 1.
    seed: of the resampling; equal seeds and P resample the same problems.

  Returns:
    Interval in the unit of the values.
  """
  values_P = np.asarray(values_P, np.float64)
  if values_P.ndim != 1:
    raise UserError(f'bootstrap: needs one value a problem, {values_P.shape}')
  return bootstrap_intervals(
    values_P[:, None], level=level, resamples=resamples, seed=seed
  )[0]


def bootstrap_intervals(
  values_PM, *, level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> list[Interval]:
  """`bootstrap_interval` of M columns that share one set of resamples."""
  values_PM = np.asarray(values_PM, np.float64)
  if values_PM.ndim != 2 or not len(values_PM):
    raise UserError(f'bootstrap: no problems to resample, {values_PM.shape}')
  if not np.isfinite(values_PM).all():
    raise UserError('bootstrap: values must be finite')
  P, M = values_PM.shape
  mean_M = values_PM.mean(axis=0)
  boot_RM = np.concatenate(
    [
      weight_RP @ values_PM / P
      for weight_RP in problem_weights(P, resamples, seed)
    ]
  )
  # Mean without problem p, in closed form.
  jack_PM = (mean_M * P - values_PM) / max(P - 1, 1)
  return [
    bca_interval(mean_M[m], boot_RM[:, m], jack_PM[:, m], level=level)
    for m in range(M)
  ]


def paired_interval(
  a_P, b_P, *, level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Interval:
  """Mean of a - b over the SAME problems with its BCa bootstrap interval."""
  a_P, b_P = np.asarray(a_P, np.float64), np.asarray(b_P, np.float64)
  if a_P.shape != b_P.shape:
    raise UserError(
      f'paired interval: {a_P.shape} against {b_P.shape} values; both sides '
      'need the same problems in the same order'
    )
  return bootstrap_interval(
    a_P - b_P, level=level, resamples=resamples, seed=seed
  )


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
  if not 0.0 < level < 1.0:
    raise UserError(f'bootstrap: level={level}, needs 0 < level < 1')
  estimate = float(estimate)
  boot_R = np.asarray(boot_R)[np.isfinite(boot_R)]
  jack_P = np.asarray(jack_P)[np.isfinite(jack_P)]
  if math.isnan(estimate) or len(jack_P) < 2 or not len(boot_R):
    return Interval(estimate, math.nan, math.nan)
  # Differences of rounding size are ties, else a constant looks biased.
  tolerance = 1e-12 * max(1.0, abs(estimate))
  if np.ptp(boot_R) <= tolerance:
    return Interval(estimate, estimate, estimate)
  tails = ((1.0 - level) / 2.0, (1.0 + level) / 2.0)
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
      tails = tuple(adjusted)
  low, high = np.quantile(boot_R, tails)
  return Interval(estimate, float(low), float(high))
