"""Confidence limits without resampling, for sets of few problems.

Contract: values of P problems (rows) in M columns give M pairs of limits, in
float64. The problem is the unit: its samples enter by their mean alone. Which
of these is used when says `intervals`; how well they cover, docs/evaluation.md
(where a bootstrap over 30 problems holds the truth in 80 to 93 % of the cases).

- A SHARE: Wilson's limits (1927) with an effective number of problems, that
  which would give 0/1 values the observed standard error, and t for normal
  quantiles. A seventh of a problem that is always right and of one that never
  is are added, so that a set which happens to hold none of the rare kind does
  not look certain.
- A DIFFERENCE of two shares on the same problems: Student's t with a
  twenty-fifth of a problem added that one side alone gets right, and of one
  that the other side does. Most problems often show no difference at all; a
  rare large one may just be missing.
- A RATIO such as an AUC: a t interval on the logit scale around the jackknife's
  standard error, with fewer degrees of freedom where few problems make most of
  that error (by the kurtosis of their influence).
- Anything else: Student's t.
"""

import numpy as np
from scipy import special

# Problems added to a share, of either kind; 0.1 to 0.25 cover alike.
_ADDED = 0.15
# And to a difference, of either sign.
_ADDED_DIFFERENCE = 0.04
# Rounding of an estimator is no information.
_DIGITS = 12


def _quantile(level: float, freedom):
  """Of Student's t: so many standard errors hold `level` around a mean.

  Not of `scipy.stats`, whose import takes a second of every start.
  """
  return special.stdtrit(freedom, (1.0 + level) / 2.0)


def share_limits(values_PM: np.ndarray, level: float):
  """Limits of the mean of values in [0, 1]: (low_M, high_M)."""
  P = len(values_PM)
  size = P + 2.0 * _ADDED
  mean_M = (values_PM.sum(axis=0) + _ADDED) / size
  square_M = ((values_PM**2).sum(axis=0) + _ADDED) / size
  error2_M = (square_M - mean_M**2) / (size - 1.0)
  # Of 0/1 values so many would have this standard error.
  number_M = mean_M * (1.0 - mean_M) / error2_M
  t = _quantile(level, P - 1)
  scale_M = 1.0 + t**2 / number_M
  centre_M = (mean_M + t**2 / (2.0 * number_M)) / scale_M
  half_M = t / scale_M * np.sqrt(error2_M + (t / (2.0 * number_M)) ** 2)
  estimate_M = np.round(values_PM.mean(axis=0), _DIGITS)
  low_M = np.maximum(np.minimum(centre_M - half_M, estimate_M), 0.0)
  high_M = np.minimum(np.maximum(centre_M + half_M, estimate_M), 1.0)
  return (
    np.where(estimate_M == 0, 0.0, low_M),
    np.where(estimate_M == 1, 1.0, high_M),
  )


def difference_limits(values_PM: np.ndarray, level: float):
  """Limits of the mean of differences in [-1, 1]: (low_M, high_M).

  Columns of equal values have no width: such rules are equal by construction.
  """
  values_PM = np.round(values_PM, _DIGITS)
  P = len(values_PM)
  size = P + 2.0 * _ADDED_DIFFERENCE
  mean_M = values_PM.sum(axis=0) / size
  square_M = ((values_PM**2).sum(axis=0) + 2.0 * _ADDED_DIFFERENCE) / size
  error_M = np.sqrt((square_M - mean_M**2) / (size - 1.0))
  half_M = _quantile(level, P - 1) * error_M
  constant_M = (values_PM == values_PM[:1]).all(axis=0)
  return (
    np.where(constant_M, values_PM[0], mean_M - half_M),
    np.where(constant_M, values_PM[0], mean_M + half_M),
  )


def mean_limits(values_PM: np.ndarray, level: float):
  """Student's t limits of a mean: (low_M, high_M)."""
  P, mean_M = len(values_PM), values_PM.mean(axis=0)
  error_M = values_PM.std(axis=0, ddof=1) / np.sqrt(P)
  half_M = _quantile(level, P - 1) * error_M
  return mean_M - half_M, mean_M + half_M


def logit_limits(mean_M, error_M, freedom, level: float):
  """Limits of a number in (0, 1) with this standard error, on the logit scale.

  Args:
    mean_M: the number.
    error_M: its standard error.
    freedom: degrees of freedom of that.
    level: coverage.
  """
  half_M = _quantile(level, freedom) * error_M / (mean_M * (1.0 - mean_M))
  logit_M = special.logit(mean_M)
  return special.expit(logit_M - half_M), special.expit(logit_M + half_M)


def jackknife_limits(estimate: float, jack_P: np.ndarray, level: float):
  """Limits of a ratio in [0, 1], such as an AUC, from leave-one-out values.

  At 0 or 1 the logit has no end: there the limits are those of a share, as if
  each problem had shown one pair.

  Args:
    estimate: on all problems.
    jack_P: without problem p.
    level: coverage.

  Returns:
    (low, high).
  """
  P = len(jack_P)
  if round(estimate, _DIGITS) in (0.0, 1.0):
    low, high = share_limits(np.full((P, 1), round(estimate)), level)
    return float(low[0]), float(high[0])
  spread_P = jack_P - jack_P.mean()
  square = (spread_P**2).sum()
  if square == 0.0:
    return estimate, estimate
  error = np.sqrt((P - 1) / P * square)
  # What a variance of so many such values is worth (Satterthwaite).
  kurtosis = P * (spread_P**4).sum() / square**2
  freedom = np.clip(2.0 * P / max(kurtosis - 1.0, 1e-9), 2.0, max(P - 1, 2))
  low, high = logit_limits(estimate, error, freedom, level)
  return float(low), float(high)
