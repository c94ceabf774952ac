"""Curves of a sweep, and why their intervals are over problems."""

import numpy as np
import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import fit_log_linear
from metastone_jax.scaling.runs import law_curves
from tests.scaling.runs import made_law


def test_a_curve_is_the_mean_over_seeds(tmp_path):
  rows = made_law.write(tmp_path)
  points = [*made_law.points(), {'name': 'train', 'kind': 'train'}]
  drawn, missing = law_curves.load(points, epath.Path(tmp_path), rows)
  assert not missing and len(drawn) == 12
  assert law_curves.widths(drawn) == [48, 96, 144]
  assert law_curves.budgets(drawn) == [16, 0]  # none is the largest
  assert law_curves.firsts(drawn) == [10]
  curve = law_curves.curve(drawn, 96, 16, 'best_of_k')
  mine = [
    row
    for row in rows
    if (row['width'], row['budget'], row['strategy']) == (96, 16, 'best_of_k')
  ]
  for i, k in enumerate(made_law.KS):
    two = [row for row in mine if row['k'] == k]
    assert len(two) == 2
    for name in ('accuracy', 'compute', 'flops'):
      assert getattr(curve, f'{name}_n')[i] == pytest.approx(
        np.mean([row[name] for row in two])
      )
  low_n, high_n = curve.limits()
  assert (low_n < curve.accuracy_n).all() and (curve.accuracy_n < high_n).all()
  np.testing.assert_array_equal(curve.at(4), curve.accuracy_Pn[:, 2])
  pruned = law_curves.curve(drawn, 96, 16, 'pruned', 10)
  np.testing.assert_allclose(pruned.thinking_n[1:], 0.6 * curve.thinking_n[1:])
  assert law_curves.curve(drawn, 96, 16, 'pruned', 3) is None
  assert law_curves.curve(drawn, 97, 16, 'best_of_k') is None


def test_points_that_are_not_done_are_named(tmp_path):
  points = made_law.points()
  rows = made_law.write(tmp_path, points[:3])
  drawn, missing = law_curves.load(points, epath.Path(tmp_path), rows)
  assert len(drawn) == 3
  assert missing == [point['name'] for point in points[3:]]


def test_points_are_told_apart_by_their_names(tmp_path):
  """A twin that is not done has the same model, seed and budget."""
  points = made_law.points()[:1]
  rows = made_law.write(tmp_path, points)
  twin = {**points[0], 'name': 'twin'}
  drawn, missing = law_curves.load([*points, twin], epath.Path(tmp_path), rows)
  assert len(drawn) == 1 and missing == ['twin']


def test_seeds_on_other_problems_are_refused(tmp_path):
  rows = made_law.write(tmp_path)
  points = made_law.points()
  one = points[0]
  made_law.values(48, 0, 16, problems=50).save(
    tmp_path / 'points' / one['name'] / 'values.npz'
  )
  drawn, _ = law_curves.load(points, epath.Path(tmp_path), rows)
  with pytest.raises(UserError, match='width 48, budget 16'):
    law_curves.curve(drawn, 48, 16, 'best_of_k')


def test_slopes_are_those_of_the_line():
  rng = np.random.default_rng(0)
  compute_n = np.exp(rng.random(9) * 5)
  accuracy_Pn = rng.random((20, 9))
  found = law_curves.slope_over_problems(compute_n, accuracy_Pn)
  line = fit_log_linear(compute_n, accuracy_Pn.mean(axis=0))
  assert found.mean == pytest.approx(line.per_doubling)


def test_seeds_have_their_own_slopes(tmp_path):
  rows = made_law.write(tmp_path)
  drawn, _ = law_curves.load(made_law.points(), epath.Path(tmp_path), rows)
  curves = [
    law_curves.curve(drawn, width, 0, 'best_of_k') for width in (48, 144)
  ]
  found = law_curves.slopes_of_seeds(curves)
  assert len(found) == 2
  for seed, slope in enumerate(found):
    line = fit_log_linear(
      np.concatenate([c.compute_n for c in curves]),
      np.concatenate([c.accuracy_SPn[seed].mean(axis=0) for c in curves]),
    )
    assert slope == pytest.approx(line.per_doubling)


def test_points_of_one_sweep_are_not_independent():
  """Problems differ in slope; every point of a curve has the same problems."""
  rng = np.random.default_rng(1)
  compute_n = 2.0 ** np.arange(7)
  truth, inside_t, inside_problems = 0.03, 0, 0
  for _ in range(300):
    slope_P1 = truth + 0.04 * rng.standard_normal((80, 1))
    accuracy_Pn = 0.4 + slope_P1 * np.log2(compute_n)
    accuracy_Pn += 0.01 * rng.standard_normal((80, 7))
    line = fit_log_linear(compute_n, accuracy_Pn.mean(axis=0))
    low, high = line.per_doubling_interval
    inside_t += low < truth < high
    found = law_curves.slope_over_problems(compute_n, accuracy_Pn)
    inside_problems += found.low < truth < found.high
  assert inside_t < 0.5 * 300
  assert 0.92 * 300 < inside_problems < 0.98 * 300
