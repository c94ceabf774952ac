"""Bootstrap bands against closed forms and brute force."""

import numpy as np
import pytest
from scipy import stats

from metastone_jax import scaling
from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals
from tests.evidence import law_coverage

C_N = 2.0 ** np.arange(7)


def problems(P=200, seed=0):
  """Right or wrong of P problems at each compute; hard ones stay hard."""
  rng = np.random.default_rng(seed)
  chance_P1 = rng.beta(0.5, 0.5, (P, 1))
  chance_PM = np.clip(chance_P1 + 0.04 * np.log(C_N), 0, 1)
  return rng.binomial(8, chance_PM) / 8


def test_over_problems_is_resampling_by_hand():
  accuracy_PM, grid = problems(20), np.array([1.0, 9.0, 500.0])
  low, high = scaling.bootstrap_band(
    C_N, accuracy_PM, 'linear', grid, resamples=300, seed=5
  )
  curves = []
  for weight_RP in intervals.problem_weights(20, 300, 5):
    for weight_P in weight_RP:
      drawn_PM = np.repeat(accuracy_PM, weight_P.astype(int), axis=0)
      b, a = np.polyfit(np.log(C_N), drawn_PM.mean(axis=0), 1)
      curves.append(a + b * np.log(grid))
  np.testing.assert_allclose(low, np.quantile(curves, 0.025, axis=0))
  np.testing.assert_allclose(high, np.quantile(curves, 0.975, axis=0))


def test_over_problems_has_the_width_of_the_normal_band():
  """The line at a compute is one number a problem: its mean is normal."""
  accuracy_PM = problems()
  low, high = scaling.bootstrap_band(
    C_N, accuracy_PM, 'linear', [C_N[0], 1e3], resamples=4000
  )
  design = np.stack([np.ones(7), np.log(C_N)], 1)
  at = np.array([[1, np.log(C_N[0])], [1, np.log(1e3)]])
  value_P2 = accuracy_PM @ (at @ np.linalg.pinv(design)).T
  error = value_P2.std(axis=0) / np.sqrt(len(value_P2))
  np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=0.06)
  # What the points share is no residual: the fit's own band misses it.
  fit = scaling.fit_law('linear', C_N, accuracy_PM.mean(axis=0))
  fit_low, fit_high = fit.band(C_N[0])
  assert high[0] - low[0] > 1.8 * (fit_high - fit_low)


def test_over_residuals_has_the_width_of_z():
  compute_n = law_coverage.computes(40)
  rng = np.random.default_rng(2)
  accuracy_n = 40 + 3 * np.log(compute_n) + rng.standard_normal(40)
  grid = [1.0, 100.0, 1e5]
  low, high = scaling.bootstrap_band(
    compute_n, accuracy_n, 'linear', grid, resamples=4000
  )
  fit = scaling.fit_law('linear', compute_n, accuracy_n)
  fit_low, fit_high = fit.band(grid)
  # z for t, 38 degrees of freedom.
  narrower = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 38)
  np.testing.assert_allclose(
    high - low, narrower * (fit_high - fit_low), rtol=0.07
  )
  np.testing.assert_allclose((low + high) / 2, fit.predict(grid), atol=0.1)


@pytest.mark.parametrize('law', ['saturating', 'broken'])
def test_curved_laws_are_refitted(law):
  compute_n = law_coverage.computes(13)
  truth = law_coverage.TRUTHS[law]
  curve_n = law_coverage.accuracy(law, truth, compute_n, 64.0)
  rng = np.random.default_rng(0)
  low, high = scaling.bootstrap_band(
    compute_n,
    curve_n + 0.3 * rng.standard_normal((50, 13)),
    law,
    compute_n,
    resamples=500,
  )
  assert (low < curve_n + 0.05).all() and (curve_n - 0.05 < high).all()
  assert 0.02 < np.mean(high - low) < 0.3


def test_seeds_and_levels():
  accuracy_PM = problems(40)

  def band(**options):
    return scaling.bootstrap_band(
      C_N, accuracy_PM, 'linear', [3.0], resamples=200, **options
    )

  assert band(seed=1) == band(seed=1) != band(seed=2)
  assert band(level=0.5)[1] < band(level=0.99)[1]


def test_three_points_are_enough_where_problems_tell_the_noise():
  accuracy_PM = np.clip(problems()[:, :3] + [[0, 0.1, 0.13]], 0, 2)
  low, high = scaling.bootstrap_band(
    C_N[:3], accuracy_PM, 'saturating', C_N[:3], resamples=200
  )
  assert (low <= accuracy_PM.mean(axis=0)).all() and (low < high).all()


def test_refuses():
  with pytest.raises(UserError, match='2 problems'):
    scaling.bootstrap_band(C_N, np.ones((1, 7)), 'linear', [1])
  with pytest.raises(UserError, match='resamples=0'):
    scaling.bootstrap_band(C_N, np.ones(7), 'linear', [1], resamples=0)
  with pytest.raises(UserError, match='7 computes but 6'):
    scaling.bootstrap_band(C_N, np.ones((9, 6)), 'linear', [1])
  with pytest.raises(UserError, match='above 0'):
    scaling.bootstrap_band(C_N, np.ones(7), 'linear', [0])
