"""Fits of accuracy against compute, with intervals that hold what they say.

Contract: points (compute, accuracy) in; a fit out that predicts, has the band
of its curve, its residuals, and an interval for every parameter. `ln` is the
natural logarithm; accuracy keeps the caller's unit. Noise is taken as equal
and independent at all points and is estimated from the residuals (Student's t,
F), unless standard errors are given (`sigma_n`), which are then believed.
Points of one sweep share their problems, so their errors go up and down
together: residuals do not show that part, `bootstrap_band` over problems does.

docs/scaling_coverage.md has the measured coverage, by tests/evidence/
law_coverage.py.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize, stats

from metastone_jax.errors import UserError
from metastone_jax.scaling import points
from metastone_jax.scaling.laws import LAWS, Law
from metastone_jax.scaling.profile import Profile, Region

Bounds = tuple[float, float]
_NO_BOUNDS = (math.nan, math.nan)
# Of an F statistic; r2 is then within 1e-5 of 1 for up to 1,000 points.
_LARGE_F = 1e8


@dataclasses.dataclass(frozen=True)
class LogLinearFit:
  """accuracy = intercept + slope ln C, by least squares.

  Attributes:
    intercept: accuracy at C = 1, in the accuracy's unit.
    slope: accuracy gained per unit of ln C.
    r2: share of the accuracies' variance that the line explains; NaN where
      they do not vary.
    intercept_interval: Student's t, n - 2 degrees of freedom.
    slope_interval: likewise.
    r2_interval: see `r2_limits`.
    n: points.
    level: coverage of all intervals.
    sigma: standard deviation of a point about the line (n - 2).
    residual_n: accuracy minus the line.
    compute_n: of the points.
    accuracy_n: of the points.
  """

  intercept: float
  slope: float
  r2: float
  intercept_interval: Bounds
  slope_interval: Bounds
  r2_interval: Bounds
  n: int
  level: float
  sigma: float
  residual_n: np.ndarray
  compute_n: np.ndarray
  accuracy_n: np.ndarray

  @property
  def per_doubling(self) -> float:
    """Accuracy gained by doubling the compute."""
    return self.slope * math.log(2)

  @property
  def per_doubling_interval(self) -> Bounds:
    """Of `per_doubling`."""
    low, high = self.slope_interval
    return low * math.log(2), high * math.log(2)

  def predict(self, compute) -> np.ndarray:
    """The line at these computes, of any shape."""
    x = points.log_compute(compute, None)
    return self.intercept + self.slope * x

  def band(self, compute) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the mean accuracy at these computes, each by itself."""
    x_n = np.log(self.compute_n)
    off = points.log_compute(compute, None) - x_n.mean()
    spread = ((x_n - x_n.mean()) ** 2).sum()
    half = (
      stats.t.isf((1 - self.level) / 2, self.n - 2)
      * self.sigma
      * np.sqrt(1 / self.n + off**2 / spread)
    )
    middle = self.predict(compute)
    return middle - half, middle + half


def fit_log_linear(
  compute_n, accuracy_n, *, level: float = 0.95
) -> LogLinearFit:
  """The paper's law: accuracy = a + b ln C.

  Args:
    compute_n: compute of each point, above 0, any unit.
    accuracy_n: accuracy of each point, any unit.
    level: coverage of the intervals, in (0, 1).

  Returns:
    LogLinearFit; its intervals are exact for independent normal errors.

  Raises:
    UserError: fewer than 3 points, different lengths, equal computes, or a
      value that is no finite number (compute: no positive one).
  """
  points.check_level(level)
  x_n, y_n = points.checked(compute_n, accuracy_n)
  n, centre = len(x_n), float(x_n.mean())
  off_n = x_n - centre
  spread = float(off_n @ off_n)
  mean = float(y_n.mean())
  slope = float(off_n @ (y_n - mean)) / spread
  residual_n = (y_n - mean) - slope * off_n
  sse, total = float(residual_n @ residual_n), float(((y_n - mean) ** 2).sum())
  if sse <= points.rounding(y_n):
    sse = 0.0
  varies = total > points.rounding(y_n)
  r2 = 1 - sse / total if varies else math.nan
  sigma = math.sqrt(sse / (n - 2))
  t = float(stats.t.isf((1 - level) / 2, n - 2))
  intercept = mean - slope * centre
  half_slope = t * sigma / math.sqrt(spread)
  half_intercept = t * sigma * math.sqrt(1 / n + centre**2 / spread)
  return LogLinearFit(
    intercept=intercept,
    slope=slope,
    r2=r2,
    intercept_interval=(intercept - half_intercept, intercept + half_intercept),
    slope_interval=(slope - half_slope, slope + half_slope),
    r2_interval=r2_limits(r2, n, level=level) if varies else _NO_BOUNDS,
    n=n,
    level=level,
    sigma=sigma,
    residual_n=residual_n,
    compute_n=np.asarray(compute_n, np.float64),
    accuracy_n=y_n,
  )


def r2_limits(r2: float, n: int, *, level: float = 0.95) -> Bounds:
  """Interval of the share of variance a line explains, at fixed computes.

  The share is rho2 = b^2 v / (b^2 v + sigma^2), v the (1/n) variance of ln C.
  The F statistic of the line is noncentral F (1, n - 2) with noncentrality
  n rho2 / (1 - rho2); both ends invert it (Steiger 2004, Psychological Methods
  9), which is exact for normal errors.

  Args:
    r2: of the fit, in [0, 1].
    n: points, at least 3.
    level: coverage.

  Returns:
    (low, high) in [0, 1].
  """
  if r2 >= 1.0:
    return 1.0, 1.0
  f = r2 / (1 - r2) * (n - 2)

  def of_root(root: float) -> float:
    return root**2 / (n + root**2)

  def share(tail: float) -> float:
    if f > _LARGE_F:
      # F / noncentrality is n - 2 over a chi-squared there, the normal part
      # is the noncentrality's root to 1 in 100 or better; ncf would fail.
      return of_root(math.sqrt(f * stats.chi2.isf(tail, n - 2) / (n - 2)))

    # A smaller F gets less probable as the noncentrality grows; its root is
    # searched, which is of the size of the slope's t.
    def excess(root):
      return stats.ncf.cdf(f, 1, n - 2, root**2) - tail

    if excess(0.0) <= 0:
      return 0.0
    top = 1.0 + math.sqrt(f)
    while excess(top) > 0:
      top *= 2
    return of_root(optimize.brentq(excess, 0.0, top))

  low, high = share((1 + level) / 2), share((1 - level) / 2)
  return low, max(high, r2)


@dataclasses.dataclass(frozen=True)
class LawFit:
  """A law fitted to points.

  Attributes:
    name: of the law, see `laws.LAWS`.
    params: parameter -> value.
    intervals: parameter -> (low, high); infinite (a bend: 0) where the points
      do not exclude any value on that side.
    n: points.
    level: coverage of intervals and band.
    sse: sum of squares that is left; in units of `sigma_n` if that was given.
    sigma: standard deviation of a point about the law; 1 with `sigma_n`.
    residual_n: accuracy minus the law.
    compute_n: of the points.
    accuracy_n: of the points.
    note: what to know about this fit; empty if nothing.
    profile: the law at these computes.
    region: the fits that the points do not reject.
    shape: the best value of the law's shape, as `profile` has it.
    beta_p: the coefficients that go with it.
  """

  name: str
  params: dict[str, float]
  intervals: dict[str, Bounds]
  n: int
  level: float
  sse: float
  sigma: float
  residual_n: np.ndarray
  compute_n: np.ndarray
  accuracy_n: np.ndarray
  note: str
  profile: Profile = dataclasses.field(repr=False)
  region: Region = dataclasses.field(repr=False)
  shape: float = dataclasses.field(repr=False)
  beta_p: np.ndarray = dataclasses.field(repr=False)

  def predict(self, compute) -> np.ndarray:
    """The law at these computes, of any shape."""
    x = points.log_compute(compute, None)
    found = self.profile.curve(x.ravel(), [self.shape], self.beta_p[None])
    return found[0].reshape(x.shape)

  def band(self, compute) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the law at these computes, each by itself."""
    x = points.log_compute(compute, None)
    u = x.ravel() - self.profile.frame.lowest
    form_Gmp = self.profile.law.basis(u, self.region.t_G)
    low, high = self.region.interval(form_Gmp)
    return low.reshape(x.shape), high.reshape(x.shape)

  def describe(self) -> str:
    """The formula with its numbers."""
    law = self.profile.law
    return f'accuracy = {law.formula(self.params, self.profile.frame)}'


def fit_law(
  name: str, compute_n, accuracy_n, *, sigma_n=None, level: float = 0.95
) -> LawFit:
  """Fits one of the laws by least squares, over all values of its shape.

  Args:
    name: 'linear', 'saturating' or 'broken', see `laws`.
    compute_n: compute of each point, above 0, any unit.
    accuracy_n: accuracy of each point, any unit.
    sigma_n: known standard error of each accuracy, above 0; None estimates one
      for all from the residuals.
    level: coverage of the intervals, in (0, 1).

  Returns:
    LawFit.

  Raises:
    UserError: unknown law, too few points or different computes for it, or
      points as `fit_log_linear` refuses them.
  """
  points.check_level(level)
  law, x_n, y_n = prepared(
    name, compute_n, accuracy_n, noise_known=sigma_n is not None
  )
  if sigma_n is not None:
    sigma_n = points.standard_errors(sigma_n, len(x_n))
  profile = Profile(law, x_n, sigma_n)
  shape, beta_p, sse = profile.best(y_n)
  df = len(x_n) - len(law.names)
  if sigma_n is None:
    sigma = math.sqrt(sse / df)
    more = sigma**2 * float(stats.f.isf(1 - level, 1, df))
  else:
    sigma, more = 1.0, float(stats.chi2.isf(1 - level, 1))
  region = profile.region(y_n, shape, sse, more)
  params, intervals = _parameters(profile, region, shape, beta_p)
  return LawFit(
    name=name,
    params=params,
    intervals=intervals,
    n=len(x_n),
    level=level,
    sse=sse,
    sigma=sigma,
    residual_n=y_n - profile.curve(x_n, [shape], beta_p[None])[0],
    compute_n=np.asarray(compute_n, np.float64),
    accuracy_n=y_n,
    note=_note(law, region, params),
    profile=profile,
    region=region,
    shape=shape,
    beta_p=beta_p,
  )


def prepared(
  name: str, compute_n, accuracy_n, *, noise_known: bool
) -> tuple[Law, np.ndarray, np.ndarray]:
  """(law, ln compute, accuracy) that the law can be fitted to.

  One point more than the law has parameters tells the noise, where nothing
  else does.
  """
  law, what = law_named(name), f'the {name} law'
  fewest = len(law.names) + (not noise_known)
  x_n, y_n = points.checked(compute_n, accuracy_n, fewest=fewest, what=what)
  different = points.distinct(x_n)
  if different < law.computes:
    raise UserError(
      f'{what} needs at least {law.computes} different computes, there are '
      f'{different}; add points or fit a simpler law'
    )
  return law, x_n, y_n


def law_named(name: str) -> Law:
  """One of `LAWS`; another name is a UserError."""
  if name not in LAWS:
    raise UserError(f'unknown law {name!r}; the laws are {", ".join(LAWS)}')
  return LAWS[name]


def _parameters(profile: Profile, region: Region, shape: float, beta_p):
  """(values, intervals) of the law's parameters, in its own order."""
  law, frame = profile.law, profile.frame
  best = {
    name: float(form_Gp[0] @ beta_p)
    for name, form_Gp in law.forms(frame, np.array([shape])).items()
  }
  intervals = {
    name: tuple(float(x) for x in region.interval(form_Gp))
    for name, form_Gp in law.forms(frame, region.t_G).items()
  }
  if law.shape:
    best[law.shape] = float(law.shape_value(frame, shape))
    ends = law.shape_value(frame, region.t_G[[0, -1]])
    intervals[law.shape] = (
      0.0 if region.open_low else float(ends[0]),
      math.inf if region.open_high else float(ends[1]),
    )
  if law.unbounded and region.open_low:
    # Towards rate 0 the top runs away in the direction of the slope.
    low_G, high_G = region.ranges(np.array([0.0, 1.0])[None])
    for name in law.unbounded:
      low, high = intervals[name]
      intervals[name] = (
        -math.inf if low_G[0] < 0 else low,
        math.inf if high_G[0] > 0 else high,
      )
  return (
    {name: best[name] for name in law.names},
    {name: intervals[name] for name in law.names},
  )


def _note(law: Law, region: Region, params) -> str:
  """What the points cannot tell about the law's shape."""
  if not law.shape or not (region.open_low or region.open_high):
    return ''
  if law.shape == 'rate':
    if region.open_low:
      return (
        'the points do not exclude a straight line: the top is not determined'
      )
    return 'all but the lowest compute may be at the top already'
  sides = [
    side
    for side, is_open in (
      ('low', region.open_low),
      ('high', region.open_high),
    )
    if is_open
  ]
  return f'the points do not bound the bend on its {" and ".join(sides)} side'
