"""How much compute an accuracy takes, by a fitted law.

Contract: the least compute at which the law rises to the target. Its interval
holds every compute whose band of the curve holds the target (inversion of the
test, Fieller's interval for the straight line): `low` may be all that is known,
with `high` infinite. With accuracies of P problems at each point the interval
is the percentile one of the bootstrap over problems instead. A target the law
never reaches is at infinite compute, and the note says why; a prediction
outside the data says how far.
"""

import dataclasses
import math

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.scaling import bootstrap, fits, points

# How far beyond the data compute is searched, as ln: a factor of 1e30.
_REACH = 30 * math.log(10)
_INSIDE, _OUTSIDE = 200, 300  # places searched within the data, on each side


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Compute for a target accuracy.

  Attributes:
    compute: in the unit of the fitted computes; inf: never reached; 0: the law
      lies above the target at every compute.
    low: lower bound; 0 where nothing is excluded on that side.
    high: upper bound; inf likewise.
    note: extrapolation, ceiling; empty if there is nothing to say.
  """

  compute: float
  low: float
  high: float
  note: str


def compute_for(
  fit: fits.LawFit | fits.LogLinearFit,
  target: float,
  *,
  accuracy_PM=None,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> Prediction:
  """Predicts the compute that reaches an accuracy.

  Args:
    fit: of `fit_law` or `fit_log_linear`.
    target: accuracy, in the unit of the fitted ones.
    accuracy_PM: accuracy of each of P problems at the fit's points, for an
      interval over problems; None: from the fit's own band.
    resamples: of the bootstrap over problems.
    seed: likewise.

  Returns:
    Prediction, with the fit's level.

  Raises:
    UserError: a target that is no finite number, or accuracy_PM with another
      number of points.
  """
  target = float(points.numbers('target', target, 0))
  if isinstance(fit, fits.LogLinearFit):
    fit = fits.fit_law('linear', fit.compute_n, fit.accuracy_n, level=fit.level)
  compute = _crossing(fit, fit.shape, fit.beta_p, target)
  if accuracy_PM is None:
    low, high = _band_limits(fit, target, compute)
  else:
    low, high = _problem_limits(fit, target, accuracy_PM, resamples, seed)
  # Infinite or 0, where a law that falls may meet the target on its way down.
  low, high = min(low, compute), max(high, compute)
  return Prediction(compute, low, high, _note(fit, target, compute, low))


def _crossing(fit, shape: float, beta_p, target: float) -> float:
  """The least compute at which the law rises to the target."""
  x = _rise(fit.profile, shape, beta_p, target)
  if math.isinf(x):
    return math.inf if x > 0 else 0.0
  return math.exp(x) if x < 700 else math.inf


def _rise(profile, shape, beta_p, target) -> float:
  """ln of that compute: inf: never; -inf: the law lies above everywhere."""
  lowest, name = profile.frame.lowest, profile.law.name
  start, slope = float(beta_p[0]), float(beta_p[1])
  missing = target - start
  if np.abs(beta_p[1:]).max() * _REACH <= 1e-12 * abs(start):  # flat
    return math.inf if missing > 0 else -math.inf
  if name == 'saturating':
    # start + slope (1 - exp(-rate u)) / rate.
    rate = math.exp(shape)
    if slope <= 0 or missing * rate >= slope:
      return math.inf
    return lowest - math.log1p(-missing * rate / slope) / rate
  if name == 'linear':
    return lowest + missing / slope if slope > 0 else math.inf
  bend = float(shape)
  at_bend = start + slope * bend
  if slope > 0 and target <= at_bend:
    return lowest + missing / slope
  after = slope + float(beta_p[2])
  if after > 0 and target >= at_bend:
    return lowest + bend + (target - at_bend) / after
  # Falls to the bend, and rises from there or not.
  return -math.inf if slope <= 0 < after else math.inf


def _band_limits(fit, target: float, compute: float) -> tuple[float, float]:
  """The computes whose band holds the target: the least and the most."""
  x_n = np.log(fit.compute_n)
  inside = np.linspace(x_n.min(), x_n.max(), _INSIDE)
  # Beyond the data in steps that grow: accuracy is a function of ln C.
  far = np.geomspace(1e-4, 1.0, _OUTSIDE) * _REACH
  x = np.concatenate([x_n.min() - far[::-1], inside, x_n.max() + far])
  # The law's own answer is in the interval, however narrow that is.
  answer = np.log([compute] if 0 < compute < math.inf else [])
  x = np.union1d(x, answer)

  def holds(at):
    low, high = fit.band(np.exp(at))
    return (low <= target) & (target <= high)

  held = np.flatnonzero(holds(x) | np.isin(x, answer))
  if not len(held):
    # The band misses the target at every compute searched.
    low, _ = fit.band(np.exp(x))
    return (0.0, 0.0) if low.min() > target else (math.inf, math.inf)
  first, last = int(held[0]), int(held[-1])

  def edge(inner, outer):
    """Bisects between a compute in the interval and one outside."""
    for _ in range(45):
      middle = (inner + outer) / 2
      if bool(holds(np.array([middle]))[0]):
        inner = middle
      else:
        outer = middle
    return math.exp(inner)

  low = 0.0 if first == 0 else edge(x[first], x[first - 1])
  high = math.inf if last == len(x) - 1 else edge(x[last], x[last + 1])
  return low, high


def _problem_limits(fit, target, accuracy_PM, resamples, seed):
  """Percentiles over resamples of problems; never reached counts as inf."""
  accuracy_PM = points.numbers('accuracy_PM', accuracy_PM, 2)
  if accuracy_PM.shape[1] != fit.n:
    raise UserError(
      f'accuracy_PM has {accuracy_PM.shape[1]} points, the fit has {fit.n}; '
      'give a column for each point'
    )
  profile, t_R, beta_Rp = bootstrap.resampled_fits(
    fit.compute_n, accuracy_PM, fit.name, resamples=resamples, seed=seed
  )
  found_R = np.sort(
    [
      _rise(profile, t, beta_p, target)
      for t, beta_p in zip(t_R, beta_Rp, strict=True)
    ]
  )
  # Order statistics: no interpolation between a number and infinity.
  tail = int((1 - fit.level) / 2 * len(found_R))
  low, high = found_R[tail], found_R[len(found_R) - 1 - tail]
  with np.errstate(over='ignore'):
    return float(np.exp(low)), float(np.exp(high))


def _note(fit, target, compute, low) -> str:
  """What to know before believing the number."""
  said = []
  most = fit.accuracy_n.max()
  unit = 1.0 if most <= 1.0 else 100.0
  if target > unit >= most and fit.accuracy_n.min() >= 0:
    said.append(
      f'accuracies lie between 0 and {unit:g}: a target of {target:g} cannot '
      'be reached, or is in another unit'
    )
  least, largest = fit.compute_n.min(), fit.compute_n.max()
  if compute == 0.0:
    said.append('the law lies above the target at every compute')
  elif math.isinf(compute):
    top = fit.params.get('top', -math.inf)
    if fit.name == 'saturating' and fit.params['span'] > 0 and target >= top:
      bounds = '{:.4g} to {:.4g}'.format(*fit.intervals['top'])
      said.append(
        f'above the ceiling of the saturating law, {top:.4g} ({bounds}): not '
        'reached at any compute'
      )
    else:
      said.append('the law does not rise to the target at any compute')
    if 0 < low < math.inf:
      said.append(f'not excluded from {low:.4g} on')
  elif compute > largest * (1 + 1e-9):
    said.append(
      f'extrapolated to {compute / largest:.3g} x the largest compute measured'
    )
  elif compute < least * (1 - 1e-9):
    said.append(
      f'extrapolated to 1/{least / compute:.3g} of the least compute measured'
    )
  return '; '.join(said)
