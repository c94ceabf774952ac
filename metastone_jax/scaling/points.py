"""What every fit asks of its points: (compute, accuracy), one clear refusal.

Contract: compute is positive and finite (any unit; laws see its natural
logarithm), accuracy is finite in the caller's unit (a share or per cent), both
have one value a point. A point may repeat the compute of another (seeds).
"""

import numpy as np

from metastone_jax.errors import UserError


def numbers(name: str, values, ndim: int | None = 1) -> np.ndarray:
  """Float64 of 0, 1, 2 or (None) any axes; anything else is a UserError."""
  try:
    values = np.asarray(values, np.float64)
  except (TypeError, ValueError) as error:
    raise UserError(f'{name} must be numbers: {error}') from error
  if ndim is not None and values.ndim != ndim:
    wanted = ('one number', 'one value a point', 'problems x points')
    raise UserError(f'{name} must be {wanted[ndim]}: got shape {values.shape}')
  if not np.isfinite(values).all():
    raise UserError(f'{name} must be finite: got {_first(values, np.isfinite)}')
  return values


def log_compute(compute, ndim: int | None = 1) -> np.ndarray:
  """Natural logarithm of positive, finite computes."""
  compute = numbers('compute', compute, ndim)
  if (compute <= 0).any():
    raise UserError(
      'compute must be above 0, its logarithm is fitted: got '
      f'{_first(compute, lambda x: x > 0)}'
    )
  return np.log(compute)


def checked(
  compute_n, accuracy_n, *, fewest: int = 3, what: str = 'a straight line'
) -> tuple[np.ndarray, np.ndarray]:
  """(ln compute, accuracy) of points that a fit can use.

  Args:
    compute_n: of each point, above 0.
    accuracy_n: of each point.
    fewest: points that `what` needs.
    what: is to be fitted, for the message.

  Returns:
    Two float64 arrays of n values.

  Raises:
    UserError: too few points, different lengths, no number, or all points at
      one compute.
  """
  x_n = log_compute(compute_n)
  y_n = numbers('accuracy', accuracy_n)
  if len(x_n) != len(y_n):
    raise UserError(
      f'{len(x_n)} computes but {len(y_n)} accuracies; give one of each a point'
    )
  if len(x_n) < fewest:
    raise UserError(
      f'{what} needs at least {fewest} points, there are {len(x_n)}; add points'
    )
  if distinct(x_n) < 2:
    raise UserError(
      f'all {len(x_n)} points have the same compute '
      f'{float(np.exp(x_n[0])):.6g}; a fit needs points at different computes'
    )
  return x_n, y_n


def standard_errors(sigma_n, n: int) -> np.ndarray:
  """Float64 (n,) of standard errors above 0."""
  sigma_n = numbers('sigma_n', sigma_n)
  if len(sigma_n) != n or (sigma_n <= 0).any():
    raise UserError(
      f'sigma_n must be {n} standard errors above 0, one a point: got '
      f'{len(sigma_n)}, the least is {sigma_n.min(initial=np.inf):g}'
    )
  return sigma_n


def check_level(level: float) -> None:
  """Raises UserError unless 0 < level < 1."""
  if not 0.0 < level < 1.0:
    raise UserError(f'level must lie between 0 and 1: got {level}')


def levels(x_n: np.ndarray) -> np.ndarray:
  """Ascending distinct values; those that differ by rounding are one."""
  x_m = np.unique(x_n)
  return x_m[np.diff(x_m, prepend=-np.inf) > 1e-9]


def distinct(x_n: np.ndarray) -> int:
  """How many computes there are."""
  return len(levels(x_n))


def rounding(y_n: np.ndarray) -> float:
  """Sum of squares below which residuals of these values are rounding."""
  return len(y_n) * (1e-12 * float(np.abs(y_n).max(initial=0.0))) ** 2


def _first(values, good) -> float:
  return float(values[~good(values)].flat[0])
