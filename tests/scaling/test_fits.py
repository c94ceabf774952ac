"""Fits against scipy, brute force and hand-written formulas."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from metastone_jax import scaling
from metastone_jax.errors import UserError
from metastone_jax.scaling import fits
from tests.evidence import law_coverage

C_N = 4.0 ** np.arange(8)


def noisy(name, n=9, noise=0.8, seed=0):
  """(compute, accuracy) of a law of the coverage study."""
  compute_n = law_coverage.computes(n)
  centre = math.exp(np.log(compute_n).mean())
  truth = law_coverage.TRUTHS[name]
  rng = np.random.default_rng(seed)
  curve_n = law_coverage.accuracy(name, truth, compute_n, centre)
  return compute_n, curve_n + noise * rng.standard_normal(n)


@pytest.mark.parametrize('n, scale', [(3, 1.0), (8, 1e21), (40, 1e-3)])
def test_log_linear_is_linregress(n, scale):
  rng = np.random.default_rng(n)
  compute_n = scale * np.exp(rng.uniform(0, 9, n))
  accuracy_n = 20 + 3 * np.log(compute_n) + rng.normal(0, 2, n)
  fit = scaling.fit_log_linear(compute_n, accuracy_n, level=0.9)
  known = stats.linregress(np.log(compute_n), accuracy_n)
  t = stats.t.ppf(0.95, n - 2)
  np.testing.assert_allclose(
    [fit.slope, fit.intercept, fit.r2],
    [known.slope, known.intercept, known.rvalue**2],
    rtol=1e-9,
  )
  for got, middle, error in (
    (fit.slope_interval, known.slope, known.stderr),
    (fit.intercept_interval, known.intercept, known.intercept_stderr),
  ):
    np.testing.assert_allclose(
      got, [middle - t * error, middle + t * error], rtol=1e-8
    )
  assert fit.n == n
  np.testing.assert_allclose(
    fit.residual_n, accuracy_n - fit.predict(compute_n), atol=1e-9
  )


def test_log_linear_by_hand():
  # ln C = 0, 1, 2, 3 and accuracies whose line is 1.1 + 1.8 x.
  compute_n, accuracy_n = np.exp([0, 1, 2, 3]), [1.0, 3.0, 5.0, 6.2]
  fit = scaling.fit_log_linear(compute_n, accuracy_n)
  # S_xx = 5, S_xy = 8.8, means 1.5 and 3.8.
  assert fit.slope == pytest.approx(8.8 / 5)
  assert fit.intercept == pytest.approx(3.8 - 1.5 * 8.8 / 5)
  sse = (2.8**2 + 0.8**2 + 1.2**2 + 2.4**2) - 8.8**2 / 5
  assert fit.sigma == pytest.approx(math.sqrt(sse / 2))
  assert fit.per_doubling == pytest.approx(1.76 * math.log(2))
  half = 4.302652729911275 * math.sqrt(sse / 2 / 5)  # t of 2, 97.5 %
  assert fit.slope_interval == pytest.approx((1.76 - half, 1.76 + half))
  assert fit.per_doubling_interval[1] == pytest.approx(
    (1.76 + half) * math.log(2)
  )
  low, high = fit.band(math.exp(4))
  half = 4.302652729911275 * math.sqrt(sse / 2 * (1 / 4 + 2.5**2 / 5))
  assert (low, high) == pytest.approx((8.2 - half, 8.2 + half))


def test_exact_and_constant_points():
  fit = scaling.fit_log_linear(C_N, 30 + 3 * np.log(C_N))
  assert fit.r2 == pytest.approx(1) and fit.r2_interval[0] > 1 - 1e-9
  assert fit.slope_interval == pytest.approx((3, 3))
  flat = scaling.fit_log_linear(C_N, np.full(8, 0.3))
  assert flat.slope == 0 and flat.sigma == 0
  # Nothing varies, so nothing is explained or not.
  assert math.isnan(flat.r2) and all(map(math.isnan, flat.r2_interval))


def test_units_change_nothing_else():
  compute_n, accuracy_n = noisy('linear')
  fit = scaling.fit_log_linear(compute_n, accuracy_n)
  other = scaling.fit_log_linear(1e24 * compute_n, accuracy_n / 100)
  assert other.slope == pytest.approx(fit.slope / 100)
  assert other.r2 == pytest.approx(fit.r2)
  assert other.r2_interval == pytest.approx(fit.r2_interval)
  whole = scaling.fit_log_linear([10**24, 10**25, 10**26], [1, 2, 3.5])
  assert whole.slope == pytest.approx(1.25 / math.log(10))


@pytest.mark.parametrize('fit', [fits.fit_log_linear, scaling.select])
@pytest.mark.parametrize(
  'compute_n, accuracy_n, words',
  [
    ([1, 2], [1, 2], '3 points'),
    ([], [], '3 points'),
    ([1, 2, 3], [1, 2], '3 computes but 2'),
    ([5, 5, 5], [1, 2, 3], 'same compute 5'),
    ([0, 1, 2], [1, 2, 3], 'above 0'),
    ([-1, 1, 2], [1, 2, 3], 'got -1'),
    ([1, np.inf, 2], [1, 2, 3], 'finite'),
    ([1, 4, 2], [1, np.nan, 3], 'accuracy must be finite'),
    ([1, None, 2], [1, 2, 3], 'compute must be'),
    ([1, 'x', 2], [1, 2, 3], 'compute must be numbers'),
    ([[1, 2, 3]], [1, 2, 3], 'one value a point'),
  ],
)
def test_refuses_what_is_no_curve(fit, compute_n, accuracy_n, words):
  with pytest.raises(UserError, match=words) as error:
    fit(compute_n, accuracy_n)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('level', [0, 1, 95, -0.1, math.nan])
def test_refuses_levels(level):
  with pytest.raises(UserError, match='level'):
    scaling.fit_log_linear(C_N, C_N, level=level)
  with pytest.raises(UserError, match='level'):
    scaling.fit_law('linear', C_N, C_N, level=level)


@pytest.mark.parametrize('r2, n', [(0.3, 5), (0.9, 3), (0.97, 8), (0.6, 60)])
def test_r2_limits_invert_noncentral_t(r2, n):
  low, high = fits.r2_limits(r2, n, level=0.9)
  t = math.sqrt(r2 / (1 - r2) * (n - 2))
  rng = np.random.default_rng(0)
  z_R = rng.standard_normal(400_000)
  s_R = np.sqrt(rng.chisquare(n - 2, z_R.shape) / (n - 2))
  for rho2, below in ((low, 0.95), (high, 0.05)):
    if rho2 == 0:  # even no slope at all makes so large an F often enough
      assert (np.abs(z_R) <= t * s_R).mean() < below
      continue
    d = math.sqrt(n * rho2 / (1 - rho2))
    assert (np.abs(z_R + d) <= t * s_R).mean() == pytest.approx(below, abs=2e-3)


def test_r2_limits_at_any_size():
  for n in (3, 4, 13, 200):
    for r2 in (0.0, 1e-9, 0.02, 0.5, 0.999, 1 - 1e-8, 1 - 1e-12, 1.0):
      low, high = fits.r2_limits(r2, n)
      assert 0 <= low <= r2 <= high <= 1


def held_share(share, runs):
  """Whether a share of `runs` agrees with 95 %, at 3.3 standard errors."""
  return abs(share - 0.95) < 3.3 * math.sqrt(0.95 * 0.05 / runs)


def test_r2_interval_covers():
  rng, runs, n = np.random.default_rng(1), 600, 6
  x_n = np.linspace(0, 1, n)
  slope = 2.0 / x_n.std()
  rho2 = 4 / (4 + 1)  # noise 1
  held = 0
  for noise_n in rng.standard_normal((runs, n)):
    fit = scaling.fit_log_linear(np.exp(x_n), slope * x_n + noise_n)
    held += fit.r2_interval[0] <= rho2 <= fit.r2_interval[1]
  assert held_share(held / runs, runs)


@pytest.mark.parametrize(
  'name, n, noise, runs',
  [
    ('linear', 7, 3.0, 800),
    ('saturating', 7, 1.0, 500),
    ('broken', 9, 0.4, 300),
  ],
)
def test_intervals_cover(name, n, noise, runs):
  """With z instead of t, say, each of these fails."""
  shares = law_coverage.held(name, n, noise, runs, seed=3)
  assert all(held_share(share, runs) for share in shares.values()), shares


def test_linear_law_has_the_t_intervals():
  compute_n, accuracy_n = noisy('linear')
  line = scaling.fit_log_linear(compute_n, accuracy_n, level=0.8)
  fit = scaling.fit_law('linear', compute_n, accuracy_n, level=0.8)
  assert fit.params['slope'] == pytest.approx(line.slope)
  assert fit.intervals['slope'] == pytest.approx(line.slope_interval)
  assert fit.intervals['intercept'] == pytest.approx(line.intercept_interval)
  at = np.array([[0.5, 30], [4e3, 1e6]])
  for got, known in zip(fit.band(at), line.band(at), strict=True):
    assert got.shape == (2, 2)
    np.testing.assert_allclose(got, known)
  np.testing.assert_allclose(fit.predict(at), line.predict(at))


def law_sse(name, params, compute_n, accuracy_n, weight_n=1.0):
  centre = math.exp(np.log(compute_n).mean())
  curve_n = law_coverage.accuracy(name, params, compute_n, centre)
  return float((((accuracy_n - curve_n) * weight_n) ** 2).sum())


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', ['saturating', 'broken'])
def test_fit_is_the_least_of_a_brute_force_search(name, seed):
  compute_n, accuracy_n = noisy(name, noise=1.5, seed=seed)
  fit = scaling.fit_law(name, compute_n, accuracy_n)
  x_n = np.log(compute_n)
  if name == 'saturating':
    shapes = np.geomspace(1e-3, 5, 3000)
    design = [
      np.stack([np.ones(9), -np.exp(-s * (x_n - x_n.mean()))], 1)
      for s in shapes
    ]
  else:
    shapes = np.linspace(x_n[1], x_n[-2], 3000)
    design = [
      np.stack([np.ones(9), x_n, np.maximum(x_n - s, 0)], 1) for s in shapes
    ]
  found = [np.linalg.lstsq(d, accuracy_n, rcond=None) for d in design]
  sse = [
    ((accuracy_n - d @ f[0]) ** 2).sum()
    for d, f in zip(design, found, strict=True)
  ]
  best = int(np.argmin(sse))
  assert fit.sse <= sse[best] * (1 + 1e-9)
  assert fit.sse == pytest.approx(sse[best], rel=2e-3)
  assert fit.sse == pytest.approx(
    law_sse(name, fit.params, compute_n, accuracy_n), rel=1e-6
  )
  if name == 'saturating':
    assert fit.params['rate'] == pytest.approx(shapes[best], rel=0.01)
    assert fit.params['top'] == pytest.approx(found[best][0][0], rel=0.01)
  else:
    assert np.log(fit.params['bend']) == pytest.approx(shapes[best], abs=0.01)
    after = found[best][0][1] + found[best][0][2]
    assert fit.params['slope_after'] == pytest.approx(after, abs=0.02)


@pytest.mark.parametrize('name', ['saturating', 'broken'])
@pytest.mark.parametrize('weighted', [False, True])
def test_interval_ends_are_where_the_profile_meets_the_limit(name, weighted):
  compute_n, accuracy_n = noisy(name, n=11, noise=0.5, seed=1)
  sigma_n = np.linspace(0.3, 0.9, 11) if weighted else None
  fit = scaling.fit_law(name, compute_n, accuracy_n, sigma_n=sigma_n)
  df = 11 - len(fit.params)
  limit = fit.sse + (
    stats.norm.ppf(0.975) ** 2
    if weighted
    else fit.sse / df * stats.t.ppf(0.975, df) ** 2
  )
  weight_n = 1 / sigma_n if weighted else np.ones(11)
  names = list(fit.params)
  logs = {'rate', 'bend'}  # searched as logarithms

  def profile(fixed, value):
    """Least sum of squares with one parameter fixed, by Nelder and Mead."""
    free = [name_ for name_ in names if name_ != fixed]

    def sse(vector):
      params = {fixed: value} | {
        key: np.exp(v) if key in logs else v
        for key, v in zip(free, vector, strict=True)
      }
      return law_sse(name, params, compute_n, accuracy_n, weight_n)

    start = [
      math.log(fit.params[key]) if key in logs else fit.params[key]
      for key in free
    ]
    best = None
    for _ in range(3):
      best = optimize.minimize(
        sse,
        start if best is None else best.x,
        method='Nelder-Mead',
        options={'xatol': 1e-9, 'fatol': 1e-9, 'maxiter': 4000},
      )
    return best.fun

  for key, ends in fit.intervals.items():
    for end in ends:
      assert math.isfinite(end)
      assert profile(key, end) == pytest.approx(limit, rel=5e-3), (key, end)


def test_known_errors_weigh_the_points():
  compute_n, accuracy_n = noisy('linear', n=5)
  sigma_n = np.array([1, 2, 1, 0.5, 3.0])
  fit = scaling.fit_law('linear', compute_n, accuracy_n, sigma_n=sigma_n)
  design = np.stack([np.ones(5), np.log(compute_n)], 1)
  covariance = np.linalg.inv(design.T @ np.diag(sigma_n**-2) @ design)
  known = covariance @ design.T @ (accuracy_n / sigma_n**2)
  assert list(fit.params.values()) == pytest.approx(list(known))
  half = 1.959963984540054 * np.sqrt(np.diag(covariance))
  np.testing.assert_allclose(
    list(fit.intervals.values()), np.stack([known - half, known + half], 1)
  )
  # As many points as parameters: the noise is known, so there are intervals.
  exact = scaling.fit_law(
    'saturating', [2, 8, 32], [44, 53, 58], sigma_n=[0.1] * 3
  )
  assert exact.sse < 1e-9
  np.testing.assert_allclose(exact.residual_n, 0, atol=1e-6)
  assert 0 < exact.intervals['rate'][0] < exact.params['rate']
  # By hand: exp(-rate ln 4) = (58 - 53) / (53 - 44).
  assert exact.params['rate'] == pytest.approx(math.log(9 / 5) / math.log(4))
  for bad in ([1, 1], [1, 0, 1], [1, -1, 1]):
    with pytest.raises(UserError, match='sigma_n'):
      scaling.fit_law('linear', [1, 2, 3], [1, 2, 4], sigma_n=bad)


@pytest.mark.parametrize(
  'name, n, words',
  [
    ('saturating', 3, '4 points'),
    ('broken', 4, '5 points'),
    ('cubic', 9, 'linear, saturating'),
  ],
)
def test_refuses_laws_that_do_not_fit(name, n, words):
  with pytest.raises(UserError, match=words):
    scaling.fit_law(name, C_N[:n], np.arange(n))
  if name != 'cubic':
    with pytest.raises(UserError, match='different computes'):
      scaling.fit_law(name, [1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 5, 6])
