"""Bends against least squares by hand and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from metastone_jax import scaling
from metastone_jax.errors import UserError

C_N = 2.0 ** np.arange(8)
K = [2, 8, 32]
# AIME24 of three sizes (low, medium, high).
AIME24 = ([44.0, 53.1, 57.9], [60.7, 66.3, 70.2], [82.0, 84.2, 85.2])


def test_three_points_have_the_slopes_between_them():
  doubling = [(2.3, 1.2), (1.4, 0.975), (0.55, 0.25)]  # per doubling of C
  for accuracy_n, (before, after) in zip(AIME24, doubling, strict=True):
    k4 = [k * 2.0 for k in K]  # any unit of compute
    bend = scaling.bend_test([x**2 for x in k4], accuracy_n)
    assert bend.slope_before * math.log(2) == pytest.approx(before, abs=0.03)
    assert bend.slope_after * math.log(2) == pytest.approx(after, abs=0.03)
    assert bend.direction == 'down' and bend.at == pytest.approx(256)
    assert math.isnan(bend.p) and all(map(math.isnan, bend.interval))
    assert bend.method == '' and not bend.clear


def test_many_curves_have_a_sign_test():
  signs = scaling.bend_signs((K, accuracy_n) for accuracy_n in AIME24)
  assert (signs.down, signs.up, signs.straight) == (3, 0, 0)
  assert signs.p == pytest.approx(2 / 8)
  mixed = scaling.bend_signs(
    [(K, [1, 2, 2.5])] * 6 + [(K, [1, 2, 4])] + [(K, [1, 2, 3])]
  )
  assert (mixed.down, mixed.up, mixed.straight) == (6, 1, 1)
  assert mixed.p == pytest.approx(2 * 8 / 128)  # 0 or 1 of 7, both sides
  assert [bend.direction for bend in mixed.bends[-2:]] == ['up', 'straight']
  assert math.isnan(scaling.bend_signs([]).p)


@pytest.mark.parametrize('n', [4, 8])
def test_change_has_the_t_of_least_squares(n):
  rng = np.random.default_rng(0)
  x_n = np.log(C_N[:n])
  accuracy_n = 30 + 5 * x_n - x_n**2 / 2 + rng.standard_normal(n)
  bend = scaling.bend_test(C_N[:n], accuracy_n, level=0.9)
  place = np.median(x_n)
  design = np.stack([np.ones(n), x_n, np.maximum(x_n - place, 0)], 1)
  beta, (sse,), *_ = np.linalg.lstsq(design, accuracy_n, rcond=None)
  error = math.sqrt(sse / (n - 3) * np.linalg.inv(design.T @ design)[2, 2])
  half = stats.t.ppf(0.95, n - 3) * error
  assert bend.change == pytest.approx(beta[2])
  assert bend.slope_before == pytest.approx(beta[1])
  assert bend.slope_after == pytest.approx(beta[1] + beta[2])
  assert bend.interval == pytest.approx((beta[2] - half, beta[2] + half))
  assert bend.p == pytest.approx(2 * stats.t.sf(abs(beta[2] / error), n - 3))
  assert bend.at == pytest.approx(math.exp(place))


def test_straight_lines_are_called_bent_at_the_level():
  rng, runs = np.random.default_rng(0), 800
  found = [
    scaling.bend_test(C_N, 2 * np.log(C_N) + noise_n)
    for noise_n in rng.standard_normal((runs, 8))
  ]
  clear = np.mean([bend.clear for bend in found])
  assert abs(clear - 0.05) < 3.3 * math.sqrt(0.05 * 0.95 / runs)
  assert clear == np.mean([bend.p < 0.05 for bend in found])
  assert abs(np.mean([b.direction == 'up' for b in found]) - 0.5) < 0.06


def test_exact_curves():
  straight = scaling.bend_test(C_N, 30 + 3 * np.log(C_N))
  assert (straight.direction, straight.p) == ('straight', 1)
  flat = scaling.bend_test(C_N, np.full(8, 0.5))
  assert flat.direction == 'straight'
  assert flat.change == pytest.approx(0, abs=1e-12)
  up = scaling.bend_test(C_N, np.maximum(np.log(C_N) - 3.5 * math.log(2), 0))
  assert up.direction == 'up' and up.clear and up.p < 1e-9
  assert up.change == pytest.approx(1)


def test_known_standard_errors_tell_the_noise_of_three_points():
  bend = scaling.bend_test(K, AIME24[0], sigma_n=[1, 2, 2])
  # change = (y3 - y2 - y2 + y1) / ln 4.
  error = math.sqrt(1 + 4 * 4 + 4) / math.log(4)
  change = (57.9 - 2 * 53.1 + 44.0) / math.log(4)
  assert bend.change == pytest.approx(change)
  assert bend.interval == pytest.approx(
    (change - 1.959964 * error, change + 1.959964 * error), rel=1e-6
  )
  assert bend.p == pytest.approx(2 * stats.norm.sf(-change / error))


def test_problems_tell_the_noise_of_three_points():
  rng = np.random.default_rng(0)
  offset_P1 = rng.normal(0, 30, (60, 1))  # shared by the points
  accuracy_Pn = AIME24[0] + offset_P1 + rng.normal(0, 1, (60, 3))
  bend = scaling.bend_test(K, accuracy_Pn)
  change_P = accuracy_Pn @ np.array([1, -2, 1]) / math.log(4)
  known = stats.ttest_1samp(change_P, 0).confidence_interval(0.95)
  assert bend.interval == pytest.approx((known.low, known.high))
  assert bend.clear and bend.direction == 'down' and bend.p < 1e-3
  assert 'over problems' in bend.method


def test_refuses():
  with pytest.raises(UserError, match='3 different computes'):
    scaling.bend_test([1, 2, 2], [1, 2, 3])
  with pytest.raises(UserError, match='without sigma_n'):
    scaling.bend_test(K, [[1, 2, 3], [1, 2, 4]], sigma_n=[1, 1, 1])
  with pytest.raises(UserError, match='a bend needs at least 3 points'):
    scaling.bend_test([1, 2], [1, 2])
