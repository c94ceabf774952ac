"""Compute for a target: inverses, Fieller's interval, ceilings."""

import math

import numpy as np
import pytest
from scipy import stats

from metastone_jax import scaling
from metastone_jax.errors import UserError
from tests.evidence import law_coverage

C_N = law_coverage.computes(9)


def points(name, noise=0.4, seed=0):
  curve_n = law_coverage.accuracy(name, law_coverage.TRUTHS[name], C_N, 64.0)
  rng = np.random.default_rng(seed)
  return curve_n + noise * rng.standard_normal(9)


@pytest.mark.parametrize('name', ['linear', 'saturating', 'broken'])
@pytest.mark.parametrize('target', [38.0, 45.0, 60.0, 68.0])
def test_the_law_is_at_the_target_there(name, target):
  fit = scaling.fit_law(name, C_N, points(name))
  found = scaling.compute_for(fit, target)
  assert fit.predict(found.compute) == pytest.approx(target)
  assert found.low < found.compute < found.high
  for end in (found.low, found.high):
    if 0 < end < math.inf:
      low, high = fit.band(end)
      assert min(abs(low - target), abs(high - target)) < 1e-6


def test_the_interval_of_a_line_is_fiellers():
  accuracy_n = points('linear', noise=2.0)
  line = scaling.fit_log_linear(C_N, accuracy_n, level=0.9)
  found = scaling.compute_for(line, 75.0)
  x_n = np.log(C_N)
  spread, t = ((x_n - x_n.mean()) ** 2).sum(), stats.t.ppf(0.95, 7)
  g = (t * line.sigma / line.slope) ** 2 / spread
  off = (75.0 - accuracy_n.mean()) / line.slope
  root = (t * line.sigma / line.slope) * math.sqrt(
    (1 - g) / 9 + off**2 / spread
  )
  ends = x_n.mean() + (off + np.array([-root, root])) / (1 - g)
  assert (found.low, found.high) == pytest.approx(tuple(np.exp(ends)))
  assert found.compute == pytest.approx(
    math.exp((75.0 - line.intercept) / line.slope)
  )
  same = scaling.compute_for(
    scaling.fit_law('linear', C_N, accuracy_n, level=0.9), 75.0
  )
  assert same.low == pytest.approx(found.low)


def test_extrapolation_says_how_far():
  fit = scaling.fit_law('linear', C_N, 40 + 3 * np.log(C_N))
  assert scaling.compute_for(fit, 50).note == ''
  above = scaling.compute_for(fit, 40 + 3 * math.log(4096 * 7.5))
  assert above.compute == pytest.approx(4096 * 7.5)
  assert above.note == 'extrapolated to 7.5 x the largest compute measured'
  below = scaling.compute_for(fit, 40 - 3 * math.log(5))
  assert below.note == 'extrapolated to 1/5 of the least compute measured'


def test_above_the_ceiling():
  fit = scaling.fit_law('saturating', C_N, points('saturating'))
  low, high = fit.intervals['top']
  far = scaling.compute_for(fit, high + 1)
  assert (far.compute, far.low, far.high) == (math.inf,) * 3
  assert 'ceiling' in far.note and f'{fit.params["top"]:.4g}' in far.note
  # Not above all the ceilings that the points allow: from somewhere on.
  near = scaling.compute_for(fit, (fit.params['top'] + high) / 2)
  assert near.compute == near.high == math.inf
  assert C_N[-1] < near.low < math.inf
  assert f'not excluded from {near.low:.4g}' in near.note
  # Within reach, but some ceilings that the points allow are below.
  reached = scaling.compute_for(fit, (fit.params['top'] + low) / 2)
  assert reached.compute < reached.high == math.inf


def test_laws_that_fall():
  falling = scaling.fit_law('linear', C_N, 60 - 3 * np.log(C_N))
  found = scaling.compute_for(falling, 70)
  assert found.compute == found.high == math.inf
  assert 'does not rise' in found.note
  peak = scaling.fit_law(
    'broken', C_N, 30 + 5 * np.log(C_N) - 8 * np.maximum(np.log(C_N) - 4, 0)
  )
  assert scaling.compute_for(peak, 45).compute == pytest.approx(math.exp(3))
  assert scaling.compute_for(peak, 51).compute == math.inf
  valley = scaling.fit_law(
    'broken', C_N, 50 - 2 * np.log(C_N) + 8 * np.maximum(np.log(C_N) - 4, 0)
  )
  rises = scaling.compute_for(valley, 54)
  assert rises.compute == pytest.approx(math.exp(4 + 12 / 6))
  always = scaling.compute_for(valley, 41)
  assert always.compute == 0 and 'every compute' in always.note


def test_flat_points_predict_nothing():
  rng = np.random.default_rng(0)
  fit = scaling.fit_law('linear', C_N, 50 + rng.standard_normal(9))
  found = scaling.compute_for(fit, 60)
  assert found.high == math.inf
  exact = scaling.fit_law('linear', C_N, np.full(9, 0.5))
  assert scaling.compute_for(exact, 0.6).compute == math.inf
  assert scaling.compute_for(exact, 0.4).compute == 0


def test_another_unit_is_noticed():
  fit = scaling.fit_law('linear', C_N, 0.3 + 0.03 * np.log(C_N))
  assert 'another unit' in scaling.compute_for(fit, 75).note
  fit = scaling.fit_law('linear', C_N, 30 + 3 * np.log(C_N))
  assert 'another unit' not in scaling.compute_for(fit, 75).note
  assert 'between 0 and 100' in scaling.compute_for(fit, 101).note


def test_interval_over_problems():
  rng = np.random.default_rng(0)
  accuracy_PM = 0.4 + 0.05 * np.log(C_N) + 0.2 * rng.standard_normal((80, 1))
  fit = scaling.fit_law('linear', C_N, accuracy_PM.mean(axis=0))
  found = scaling.compute_for(fit, 0.6, accuracy_PM=accuracy_PM)
  # All points move together by the mean of the offsets, the slope is exact.
  half = 1.96 * accuracy_PM[:, 0].std() / math.sqrt(80) / 0.05
  assert math.log(found.high / found.low) == pytest.approx(2 * half, rel=0.08)
  assert found.low < found.compute < found.high
  own = scaling.compute_for(fit, 0.6)
  assert math.log(own.high / own.low) < 1e-6
  curved = scaling.fit_law('saturating', C_N, points('saturating'))
  noisy_PM = points('saturating') + rng.standard_normal((30, 9))
  far = scaling.compute_for(curved, 95, accuracy_PM=noisy_PM, resamples=200)
  assert far.high == math.inf
  with pytest.raises(UserError, match='5 points, the fit has 9'):
    scaling.compute_for(fit, 0.6, accuracy_PM=accuracy_PM[:, :5])


@pytest.mark.parametrize('target', [math.nan, math.inf, 'x', [1, 2]])
def test_refuses_targets(target):
  fit = scaling.fit_log_linear(C_N, points('linear'))
  with pytest.raises(UserError, match='target must be'):
    scaling.compute_for(fit, target)


def test_interval_covers():
  truth, runs, held = law_coverage.TRUTHS['saturating'], 100, 0
  target = 66.0
  # top - span (C / 64)^-rate = target.
  compute = 64 * ((truth['top'] - target) / truth['span']) ** (
    -1 / truth['rate']
  )
  for seed in range(runs):
    fit = scaling.fit_law('saturating', C_N, points('saturating', 1.0, seed))
    found = scaling.compute_for(fit, target)
    held += found.low <= compute <= found.high
  assert abs(held / runs - 0.95) < 3.3 * math.sqrt(0.95 * 0.05 / runs)
