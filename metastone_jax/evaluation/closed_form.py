"""Confidence limits without resampling, for sets of few problems.

Contract: values of P problems (rows) in M columns give M pairs of limits, in
float64. The problem is the unit: its samples enter by their mean alone. Which
of these is used when says `intervals`; how well they cover, docs/evaluation.md
(a bootstrap over 30 problems misses up to one time in ten where they do not).

- A SHARE of 0/1 values: Jeffreys' beta limits (Brown, Cai, DasGupta 2001).
- A share of values in between: a t interval on the logit scale, which is
  lopsided where the share is near 0 or 1, as it must be.
- A DIFFERENCE of two shares on the same problems: most problems often show
  none and the rest mostly one sign, which no symmetric interval describes. So
  gains and losses are two shares (of the largest difference seen), each with
  its own limits, joined with their correlation (MOVER, Zou and Donner 2008).
- Anything else: Student's t.
"""

import numpy as np
from scipy import special, stats

# Rounding of an estimator is no information.
_DIGITS = 12


def share_limits(values_PM: np.ndarray, level: float):
  """Limits of the mean of values in [0, 1]: (low_M, high_M)."""
  values_PM = np.round(values_PM, _DIGITS)
  P = len(values_PM)
  mean_M = values_PM.mean(axis=0)
  binary_M = ((values_PM == 0) | (values_PM == 1)).all(axis=0)
  error_M = values_PM.std(axis=0, ddof=1) / np.sqrt(P)
  with np.errstate(divide='ignore', invalid='ignore'):
    low_M, high_M = logit_limits(mean_M, error_M, P - 1, level)
  constant_M = ~binary_M & (error_M == 0)
  low_M, high_M = (
    np.where(constant_M, mean_M, limit_M) for limit_M in (low_M, high_M)
  )
  right_M = P * mean_M
  tail = (1.0 - level) / 2.0
  first_M = stats.beta.ppf(tail, right_M + 0.5, P - right_M + 0.5)
  last_M = stats.beta.isf(tail, right_M + 0.5, P - right_M + 0.5)
  return (
    np.where(binary_M, np.where(right_M == 0, 0.0, first_M), low_M),
    np.where(binary_M, np.where(right_M == P, 1.0, last_M), high_M),
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

  At 0 or 1 the logit has no end: there the limits are Jeffreys', as if each
  problem had shown one pair.

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
  """As `share_limits` by t alone; Jeffreys where no problem shows any."""
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
