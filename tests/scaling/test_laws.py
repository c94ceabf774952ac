"""The laws' linear forms against the table of their formulas."""

import math

import numpy as np
import pytest

from metastone_jax import scaling
from metastone_jax.scaling import laws
from metastone_jax.scaling.profile import Profile
from tests.evidence import law_coverage

C_N = np.array([3.0, 5, 11, 20, 64, 150, 400])


def exact(name, truth):
  """Accuracies that follow the law, and its fit."""
  centre = math.exp(np.log(C_N).mean())
  accuracy_n = law_coverage.accuracy(name, truth, C_N, centre)
  return centre, scaling.fit_law(name, C_N, accuracy_n)


@pytest.mark.parametrize(
  'name, truth',
  [
    ('linear', {'intercept': -2.0, 'slope': 7.5}),
    ('saturating', {'top': 81.0, 'span': 13.0, 'rate': 0.7}),
    ('saturating', {'top': 0.2, 'span': -0.5, 'rate': 1.4}),  # falls
    (
      'broken',
      {'intercept': 1.0, 'slope_before': 0.4, 'bend': 33.0, 'slope_after': 2.0},
    ),
    (
      'broken',
      {'intercept': 9.0, 'slope_before': -4, 'bend': 20.0, 'slope_after': 1.0},
    ),
  ],
)
def test_exact_points_give_their_parameters(name, truth):
  centre, fit = exact(name, truth)
  assert list(fit.params) == list(truth) == list(fit.intervals)
  for key, value in truth.items():
    assert fit.params[key] == pytest.approx(value, rel=1e-5), key
    low, high = fit.intervals[key]
    assert low <= fit.params[key] <= high
    assert high - low < 1e-3 * abs(value)
  at = np.array([0.5, 3.0, 30.0, 5e4])
  np.testing.assert_allclose(
    fit.predict(at), law_coverage.accuracy(name, truth, at, centre), rtol=1e-5
  )
  assert fit.note == ''


def test_straight_points_leave_the_shape_open():
  compute_n = law_coverage.computes(9)
  rng = np.random.default_rng(0)
  accuracy_n = 30 + 3 * np.log(compute_n) + 0.3 * rng.standard_normal(9)
  saturating = scaling.fit_law('saturating', compute_n, accuracy_n)
  assert saturating.intervals['rate'][0] == 0
  assert saturating.intervals['top'][1] == math.inf
  assert saturating.intervals['span'][1] == math.inf
  assert 'straight line' in saturating.note
  # A falling line has no bottom either.
  falling = scaling.fit_law('saturating', compute_n, -accuracy_n)
  assert falling.intervals['top'][0] == -math.inf
  broken = scaling.fit_law('broken', compute_n, accuracy_n)
  assert broken.intervals['bend'] == (0, math.inf)
  assert 'low and high side' in broken.note
  # The bands stay finite, and hold the line.
  for fit in (saturating, broken):
    low, high = fit.band(compute_n)
    assert np.isfinite([low, high]).all()
    assert (low < 30 + 3 * np.log(compute_n)).all()
    assert (high > 30 + 3 * np.log(compute_n)).all()


def test_a_step_leaves_the_rate_open_above():
  rng = np.random.default_rng(0)
  accuracy_n = 70 + 0.1 * rng.standard_normal(8)
  accuracy_n[0] = 40
  fit = scaling.fit_law('saturating', 4.0 ** np.arange(8), accuracy_n)
  assert fit.intervals['rate'][1] == math.inf
  assert fit.params['top'] == pytest.approx(70, abs=0.2)
  assert 'lowest compute' in fit.note


def test_convex_points_do_not_saturate():
  compute_n = law_coverage.computes(9)
  fit = scaling.fit_law('saturating', compute_n, np.log(compute_n) ** 2)
  line = scaling.fit_law('linear', compute_n, np.log(compute_n) ** 2)
  assert fit.sse == pytest.approx(line.sse, rel=0.01)
  assert fit.intervals['rate'][0] == 0


def test_formulas_are_what_they_say():
  _, fit = exact('linear', {'intercept': -2.0, 'slope': -7.5})
  assert fit.describe() == 'accuracy = -2 - 7.5 ln C'
  _, fit = exact('saturating', {'top': 81.0, 'span': 13.0, 'rate': 0.7})
  assert fit.describe() == 'accuracy = 81 - 13 (C / 27.75)^-0.7'
  _, fit = exact(
    'broken',
    {'intercept': 1.0, 'slope_before': 0.4, 'bend': 33.0, 'slope_after': -2.0},
  )
  assert fit.describe() == (
    'accuracy = 1 + 0.4 ln C up to C = 33, then -2 per unit of ln C'
  )


def test_many_fits_are_the_single_ones():
  compute_n, rng = law_coverage.computes(9), np.random.default_rng(0)
  y_Rn = 30 + 8 * np.log1p(np.log(compute_n)) + rng.standard_normal((40, 9))
  for law in laws.LAWS.values():
    profile = Profile(law, np.log(compute_n))
    t_R, beta_Rp = profile.best_many(y_Rn)
    curve_Rn = profile.curve(np.log(compute_n), t_R, beta_Rp)
    for y_n, curve_n in zip(y_Rn, curve_Rn, strict=True):
      _, _, sse = profile.best(y_n)
      # On the grid of shapes, so a little above the least.
      assert sse * (1 - 1e-9) <= ((y_n - curve_n) ** 2).sum() <= 1.02 * sse
