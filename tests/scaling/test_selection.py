"""Laws by held-out error."""

import math

import numpy as np
import pytest

from metastone_jax import scaling
from metastone_jax.errors import UserError
from metastone_jax.scaling import selection
from tests.evidence import law_coverage


def points(name, n=11, noise=0.3, seed=0):
  compute_n = law_coverage.computes(n)
  centre = math.exp(np.log(compute_n).mean())
  curve_n = law_coverage.accuracy(
    name, law_coverage.TRUTHS[name], compute_n, centre
  )
  rng = np.random.default_rng(seed)
  return compute_n, curve_n + noise * rng.standard_normal(n)


@pytest.mark.parametrize('name', ['linear', 'saturating', 'broken'])
def test_the_law_behind_the_points_is_chosen(name):
  chosen = [
    scaling.select(*points(name, seed=seed)).chosen for seed in range(5)
  ]
  assert chosen.count(name) >= 4, chosen


def test_errors_of_the_line_are_those_of_the_hat_matrix():
  compute_n, accuracy_n = points('linear', n=7, noise=2.0)
  found = scaling.select(compute_n, accuracy_n, ['linear'])
  design = np.stack([np.ones(7), np.log(compute_n)], 1)
  hat = design @ np.linalg.inv(design.T @ design) @ design.T
  left_n = (accuracy_n - hat @ accuracy_n) / (1 - np.diag(hat))
  error = found.errors['linear']
  assert error.leave_one_out == pytest.approx(np.sqrt((left_n**2).mean()))
  # Forward: three computes make the first line.
  squares = []
  for m in range(3, 7):
    b, a = np.polyfit(np.log(compute_n[:m]), accuracy_n[:m], 1)
    squares.append((accuracy_n[m] - a - b * np.log(compute_n[m])) ** 2)
  assert error.forward == pytest.approx(np.sqrt(np.mean(squares)))
  assert error.forward_computes == 4
  assert 'only law' in found.why


def test_repeats_of_a_compute_are_held_out_together():
  compute_n, accuracy_n = points('linear', n=5)
  twice = scaling.select(
    np.tile(compute_n, 2), np.tile(accuracy_n, 2), ['linear']
  )
  once = scaling.select(compute_n, accuracy_n, ['linear'])
  assert twice.errors['linear'].leave_one_out == pytest.approx(
    once.errors['linear'].leave_one_out
  )


def test_laws_without_points_enough_are_left_out_by_name():
  five = scaling.select(*points('saturating', n=5))
  assert set(five.errors) == {'linear', 'saturating'}
  assert set(five.fits) == {'linear', 'saturating', 'broken'}
  assert 'left out: the broken law' in five.why
  six = scaling.select(*points('broken', n=6))
  assert set(six.errors) == {'linear', 'saturating', 'broken'}
  assert 'left out' not in six.why


def test_few_points_are_not_compared():
  three = scaling.select([2, 8, 32], [44.0, 53.1, 57.9])
  assert three.errors == {} and three.chosen == 'linear'
  assert '3 points are too few' in three.why and '5 are needed' in three.why
  assert 'saturating law needs' in three.why and 'broken law' in three.why
  assert set(three.fits) == {'linear'}


def test_exact_ties_go_to_the_simplest():
  compute_n = law_coverage.computes(8)
  straight = scaling.select(compute_n, 30 + 3 * np.log(compute_n))
  assert straight.chosen == 'linear'
  flat = scaling.select(compute_n, np.full(8, 0.25))
  assert flat.chosen == 'linear'


def test_one_wild_error_counts():
  square_Lm = np.array([[1.0, 1, 1, 1e300], [1, 1, 1, 1], [1, 1, 1, 1.1]])
  assert selection._worse(square_Lm, 0.0).tolist() == [True, False, True]
  # By hand: differences 0.5 and 0.1, mean 0.3, standard error 0.2 or 0.4.
  assert selection._worse(np.array([[0, 0], [0.5, 0.1]]), 0.0)[1]
  assert not selection._worse(np.array([[0, 0], [0.7, -0.1]]), 0.0)[1]


def test_refuses():
  with pytest.raises(UserError, match="unknown law 'cubic'"):
    scaling.select(*points('linear'), ['linear', 'cubic'])
  with pytest.raises(UserError, match='no law is named'):
    scaling.select(*points('linear'), [])
  with pytest.raises(UserError, match='broken law needs at least 5'):
    scaling.select([1, 2, 3], [1, 2, 4], ['broken'])
