"""Curves: their order, what they refuse, and the envelope over several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastone_jax.errors import UserError
from metastone_jax.scaling.curve import Curve, envelope


def test_all_arrays_follow_the_computes():
  curve = Curve(
    'a',
    [4, 1, 2],
    [0.6, 0.2, 0.4],
    [0.5, 0.1, 0.3],
    [0.7, 0.3, 0.5],
    [32, 2, 8],
    [[1, 0, 0.5], [0.2, 0.4, 0.3]],
  )
  assert curve.compute_n.tolist() == [1, 2, 4]
  assert curve.k_n.tolist() == [2, 8, 32]
  np.testing.assert_array_equal(curve.accuracy_n, [0.2, 0.4, 0.6])
  np.testing.assert_array_equal(curve.low_n, [0.1, 0.3, 0.5])
  np.testing.assert_array_equal(curve.high_n, [0.3, 0.5, 0.7])
  np.testing.assert_array_equal(
    curve.accuracy_PM, [[0, 0.5, 1], [0.4, 0.3, 0.2]]
  )
  assert curve.problems_or_means is curve.accuracy_PM
  assert curve.can_be_fitted


@pytest.mark.parametrize(
  ('computes', 'can'),
  [([1, 2], False), ([1, 2, 4], True), ([3, 3, 3], False), ([3, 3, 4], True)],
)
def test_what_can_be_fitted(computes, can):
  curve = Curve('a', computes, np.arange(len(computes)))
  assert curve.can_be_fitted is can
  assert curve.problems_or_means is curve.accuracy_n


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(compute_n=[]), 'compute|no point'),
    (dict(compute_n=[1, 2, 0]), 'above 0'),
    (dict(accuracy_n=[1, 2]), r"'a'.*accuracy_n has shape \(2,\), for 3"),
    (dict(accuracy_n=[1, 2, np.nan]), "'a'.*finite"),
    (dict(low_n=[1, 2, 3]), 'or neither'),
    (dict(k_n=[1, 2]), 'k_n has shape'),
    (dict(accuracy_PM=[[1, 2, 3]]), '1 problems; give 2'),
    (dict(accuracy_PM=np.ones((4, 2))), 'accuracy_PM has shape'),
    (dict(accuracy_PM=np.ones((4, 3))), 'not the mean .* one unit'),
  ],
)
def test_bad_curves_are_refused(options, message):
  given_ = dict(compute_n=[1, 2, 4], accuracy_n=[1, 2, 3]) | options
  if not len(given_['compute_n']):
    given_['accuracy_n'] = []
  with pytest.raises(UserError, match=message):
    Curve('a', **given_)


def test_the_staircase_of_two_sizes():
  small = Curve('small', [1, 2, 4], [10, 20, 21])
  large = Curve('large', [2, 4, 8], [15, 30, 30])
  found = envelope([small, large])
  assert found.compute_m.tolist() == [1, 2, 4]
  assert found.accuracy_m.tolist() == [10, 20, 30]
  assert found.labels == ('small', 'small', 'large')


@given(
  st.lists(
    st.lists(
      st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=5
    ),
    min_size=1,
    max_size=3,
  )
)
def test_the_envelope_is_the_best_within_each_budget(groups):
  curves = [
    Curve(str(i), *np.array(group).T.tolist()) for i, group in enumerate(groups)
  ]
  found = envelope(curves)
  points = [point for group in groups for point in group]
  for budget in {compute for compute, _ in points}:
    best = max(accuracy for compute, accuracy in points if compute <= budget)
    last = int(np.flatnonzero(found.compute_m <= budget)[-1])
    assert found.accuracy_m[last] == best
  for compute, accuracy, label in zip(
    found.compute_m, found.accuracy_m, found.labels, strict=True
  ):
    assert (compute, accuracy) in groups[int(label)]
  assert (np.diff(found.compute_m) > 0).all()
