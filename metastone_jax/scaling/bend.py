"""Does a curve of accuracy against ln compute bend down, or up?

Contract: two lines that meet at a FIXED place, the median of the different
computes, against one straight line. The place is chosen before the accuracies
are seen, so that the change of slope has an exact Student's t (n - 3 degrees
of freedom); a bend fitted to the data (`fit_law('broken', ...)`) is where the
curve bends, but its gain over a line has no simple distribution. With 3
computes (k = 2, 8, 32 of the published table) the middle one is the place and
the slopes are those from point to point: the direction is known, a p-value is
not, unless standard errors or the accuracies of single problems are given, or
many curves (`bend_signs`).
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from scipy import stats

from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals
from metastone_jax.evaluation.comparison import sign_flip_test
from metastone_jax.scaling import points

DOWN, UP, STRAIGHT = 'down', 'up', 'straight'


@dataclasses.dataclass(frozen=True)
class Bend:
  """One curve's change of slope.

  Attributes:
    direction: 'down' (concave: more compute gains less), 'up' (convex) or
      'straight' (no change but rounding), of the estimate; see `interval`.
    at: the compute where the two lines meet.
    slope_before: accuracy per unit of ln C below it.
    slope_after: above it.
    change: after minus before.
    interval: (low, high) of the change; NaN where nothing tells the noise.
    p: two-sided, of no change; NaN likewise.
    method: how interval and p were made; empty if they were not.
  """

  direction: str
  at: float
  slope_before: float
  slope_after: float
  change: float
  interval: tuple[float, float]
  p: float
  method: str

  @property
  def clear(self) -> bool:
    """Whether the interval excludes a straight line."""
    low, high = self.interval
    return low > 0 or high < 0


def bend_test(
  compute_n, accuracy, *, sigma_n=None, level: float = 0.95
) -> Bend:
  """Tests a curve against a straight line.

  Args:
    compute_n: compute of each point, above 0; at least 3 different ones.
    accuracy: accuracy of each point (n); or of each of P problems at each
      point (P, n), for an interval and a sign-flip test over problems.
    sigma_n: known standard errors of the n accuracies, independent of one
      another; weigh the points.
    level: coverage of the interval.

  Returns:
    Bend.

  Raises:
    UserError: fewer than 3 different computes, sigma_n with problems, or
      points as `fit_log_linear` refuses them.
  """
  points.check_level(level)
  accuracy_Pn = None
  if np.ndim(accuracy) == 2:
    accuracy_Pn = points.numbers('accuracy', accuracy, 2)
    if sigma_n is not None or not len(accuracy_Pn):
      raise UserError(
        'bend_test: give the accuracies of at least one problem without '
        'sigma_n (problems tell the noise), or one accuracy a point'
      )
    accuracy = accuracy_Pn.mean(axis=0)
  x_n, y_n = points.checked(compute_n, accuracy, what='a bend')
  x_m = points.levels(x_n)
  if len(x_m) < 3:
    raise UserError(
      f'a bend needs at least 3 different computes, there are {len(x_m)}; add '
      'points'
    )
  weight_n = np.ones_like(x_n)
  if sigma_n is not None:
    weight_n = 1 / points.standard_errors(sigma_n, len(x_n))
  place = float(np.median(x_m))
  u_n = x_n - place
  basis_n3 = np.stack([np.ones_like(u_n), u_n, np.maximum(u_n, 0.0)], axis=1)
  # Rows: each coefficient as a linear form of the accuracies.
  form_3n = np.linalg.pinv(basis_n3 * weight_n[:, None]) * weight_n
  _, before, change = (form_3n @ y_n).tolist()
  slack = 1e-9 * np.abs(form_3n[2]) @ np.abs(y_n)
  direction = STRAIGHT
  if abs(change) > slack:
    direction = DOWN if change < 0 else UP
  low, high, p, method = math.nan, math.nan, math.nan, ''
  df = len(x_n) - 3
  tail = (1 - level) / 2
  if accuracy_Pn is not None:
    change_P = accuracy_Pn @ form_3n[2]
    found = intervals.interval(change_P, intervals.VALUE, level=level)
    low, high = found.low, found.high
    if len(change_P) > 1:
      p, test = sign_flip_test(change_P)
      method = f'{found.method} over problems, {test}'
  elif sigma_n is not None:
    error = float(np.linalg.norm(form_3n[2] / weight_n))
    half = float(stats.norm.isf(tail)) * error
    low, high = change - half, change + half
    p = float(2 * stats.norm.sf(abs(change) / error))
    method = 'normal, known standard errors'
  elif df > 0:
    residual_n = y_n - basis_n3 @ (form_3n @ y_n)
    sse = float(residual_n @ residual_n)
    if sse <= points.rounding(y_n):
      sse = 0.0
    error = math.sqrt(sse / df) * float(np.linalg.norm(form_3n[2]))
    half = float(stats.t.isf(tail, df)) * error
    low, high = change - half, change + half
    if direction == STRAIGHT:
      p = 1.0
    else:
      p = float(2 * stats.t.sf(abs(change) / error, df)) if error else 0.0
    method = f't, {df} degrees of freedom'
  return Bend(
    direction=direction,
    at=math.exp(place),
    slope_before=before,
    slope_after=before + change,
    change=change,
    interval=(low, high),
    p=p,
    method=method,
  )


@dataclasses.dataclass(frozen=True)
class BendSigns:
  """Directions of many curves.

  Attributes:
    down: curves that bend down.
    up: curves that bend up.
    straight: curves that do not bend; they tell nothing.
    p: two-sided sign test (exact binomial) of as many down as up; NaN if no
      curve bends.
    bends: of each curve, in order.
  """

  down: int
  up: int
  straight: int
  p: float
  bends: tuple[Bend, ...]


def bend_signs(curves: Iterable[tuple]) -> BendSigns:
  """Whether curves bend down more often than up.

  Args:
    curves: (compute_n, accuracy_n) each. The test takes them as independent:
      curves of several models on the same problems are less than that.

  Returns:
    BendSigns.

  Raises:
    UserError: as `bend_test`.
  """
  bends = tuple(bend_test(compute_n, y_n) for compute_n, y_n in curves)
  down = sum(bend.direction == DOWN for bend in bends)
  up = sum(bend.direction == UP for bend in bends)
  p = math.nan
  if down + up:
    p = float(stats.binomtest(down, down + up).pvalue)
  return BendSigns(down, up, len(bends) - down - up, p, bends)
