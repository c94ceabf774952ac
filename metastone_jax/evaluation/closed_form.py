"""Confidence limits without resampling, for sets of few problems.

Contract: values of P problems (rows) in M columns give M pairs of limits, in
float64. The problem is the unit: its samples enter by their mean alone. Which
of these is used when says `intervals`; how well they cover, docs/evaluation.md
(a bootstrap over 30 problems misses up to one time in ten where they do not).

- A SHARE: Wilson's limits (1927) with an effective number of problems, that
  which would give 0/1 values the observed standard error, and t for normal
  quantiles. A fifth of a problem that is always right and of one that never is
  are added, so that a set which happens to hold none of the rare kind does not
  look certain.
- A DIFFERENCE of two shares on the same problems: most problems often show
  none and the rest mostly one sign, which no symmetric interval describes. So
  gains and losses are two shares (of the largest difference seen), each with
  its own limits, t on the logit scale, joined with their correlation (MOVER,
  Zou and Donner 2008).
- Anything else: Student's t.
"""

import numpy as np
from scipy import special, stats

# Problems added to a share, of either kind; 0.1 to 0.25 cover alike.
_ADDED = 0.2
# Rounding of an estimator is no information.
_DIGITS = 12


def share_limits(values_PM: np.ndarray, level: float):
  """Limits of the mean of values in [0, 1]: (low_M, high_M)."""
  P = len(values_PM)
  size = P + 2.0 * _ADDED
  mean_M = (values_PM.sum(axis=0) + _ADDED) / size
  square_M = ((values_PM**2).sum(axis=0) + _ADDED) / size
  error2_M = (square_M - mean_M**2) / (size - 1.0)
  # Of 0/1 values so many would have this standard error.
  number_M = mean_M * (1.0 - mean_M) / error2_M
  t = stats.t.isf((1.0 - level) / 2.0, P - 1)
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
  mean_M = values_PM.mean(axis=0)
  constant_M = (values_PM == values_PM[:1]).all(axis=0)
  largest_M = np.abs(values_PM).max(axis=0)
  scale_M = np.where(largest_M > 0, largest_M, 1.0)
  gain_PM = np.maximum(values_PM, 0.0) / scale_M
  loss_PM = np.maximum(-values_PM, 0.0) / scale_M
  a_M, b_M = gain_PM.mean(axis=0), loss_PM.mean(axis=0)
  (a_low, a_high), (b_low, b_high) = (
    _seen_share_limits(x_PM, level) for x_PM in (gain_PM, loss_PM)
  )
  # A problem that gains does not lose: what both are is negative.
  spread_M = gain_PM.std(axis=0) * loss_PM.std(axis=0)
  with np.errstate(divide='ignore', invalid='ignore'):
    r_M = np.where(spread_M > 0, -a_M * b_M / spread_M, 0.0)

  def joined(p_M, q_M):
    square_M = p_M**2 - 2.0 * r_M * p_M * q_M + q_M**2
    return np.sqrt(np.maximum(square_M, 0.0))

  low_M = a_M - b_M - joined(a_M - a_low, b_high - b_M)
  high_M = a_M - b_M + joined(a_high - a_M, b_M - b_low)
  return (
    np.where(constant_M, mean_M, low_M * scale_M),
    np.where(constant_M, mean_M, high_M * scale_M),
  )


def mean_limits(values_PM: np.ndarray, level: float):
  """Student's t limits of a mean: (low_M, high_M)."""
  P, mean_M = len(values_PM), values_PM.mean(axis=0)
  half_M = (
    stats.t.isf((1.0 - level) / 2.0, P - 1)
    * values_PM.std(axis=0, ddof=1)
    / np.sqrt(P)
  )
  return mean_M - half_M, mean_M + half_M


def logit_limits(mean_M, error_M, freedom, level: float):
  """Limits of a number in (0, 1) with this standard error, on the logit scale.

  Args:
    mean_M: the number.
    error_M: its standard error.
    freedom: degrees of freedom of that.
    level: coverage.
  """
  half_M = (
    stats.t.isf((1.0 - level) / 2.0, freedom)
    * error_M
    / (mean_M * (1.0 - mean_M))
  )
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
  error = np.sqrt((P - 1) / P * ((jack_P - jack_P.mean()) ** 2).sum())
  low, high = logit_limits(estimate, error, P - 1, level)
  return float(low), float(high)


def _seen_share_limits(values_PM: np.ndarray, level: float):
  """A t interval on the logit scale; Jeffreys' limit where none shows any.

  Lopsided where the share is near 0, as it must be; and where `share_limits`
  would make of two uncertain shares too wide a difference.
  """
  P, mean_M = len(values_PM), values_PM.mean(axis=0)
  error_M = values_PM.std(axis=0, ddof=1) / np.sqrt(P)
  with np.errstate(divide='ignore', invalid='ignore'):
    low_M, high_M = logit_limits(mean_M, error_M, P - 1, level)
  tail = (1.0 - level) / 2.0
  none = float(stats.beta.isf(tail, 0.5, P + 0.5))
  inside_M = (mean_M > 0) & (mean_M < 1)
  return (
    np.where(inside_M, low_M, np.where(mean_M > 0, 1.0 - none, 0.0)),
    np.where(inside_M, high_M, np.where(mean_M > 0, 1.0, none)),
  )
