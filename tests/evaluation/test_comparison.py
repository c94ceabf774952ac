"""Paired differences and the sign-flip test, against their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from metastone_jax.errors import UserError
from metastone_jax.evaluation import comparison, estimators, intervals
from tests.evaluation import synthetic


def _by_definition(difference):
  signs = itertools.product((-1, 1), repeat=len(difference))
  means = [np.mean(np.array(s) * difference) for s in signs]
  return np.mean(np.abs(means) >= abs(np.mean(difference)) - 1e-12)


@pytest.mark.parametrize('seed', range(6))
def test_exact_p_counts_all_patterns(seed):
  rng = np.random.default_rng(seed)
  difference = rng.integers(-2, 5, 9) / 8  # ties, zeros, both signs
  p, name = comparison.sign_flip_test(difference)
  np.testing.assert_allclose(p, _by_definition(difference), rtol=1e-12)
  assert name == 'sign flips, exact'


def test_sampled_p_is_scipys():
  difference = np.random.default_rng(1).normal(0.25, 1, 60)
  p, name = comparison.sign_flip_test(difference)
  want = stats.permutation_test(
    (difference, np.zeros(60)),
    lambda x, y: np.mean(x - y),
    permutation_type='samples',
    n_resamples=20000,
    rng=0,
  ).pvalue
  np.testing.assert_allclose(p, want, atol=4 * np.sqrt(want / 20000))
  assert name == 'sign flips, 19,999 draws'
  assert comparison.sign_flip_test(difference) == (p, name)
  assert comparison.sign_flip_test(np.full(60, 0.1))[0] == 1 / 20000


def test_no_difference_is_no_evidence():
  assert comparison.sign_flip_test(np.zeros(30))[0] == 1.0
  # Under no difference p is below 0.05 at most one time in twenty.
  rng = np.random.default_rng(0)
  small = [
    comparison.sign_flip_test(rng.integers(-4, 5, 12) / 4)[0] <= 0.05
    for _ in range(1500)
  ]
  assert 0.02 < np.mean(small) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


def _three():
  return {
    name: synthetic.make_samples(seed=seed, P=40, N=10, gap=gap, skill=skill)
    for name, seed, gap, skill in (
      ('base', 0, 0.5, 0.4),
      ('head', 1, 1.5, 0.4),
      ('joint', 2, 2.0, 0.7),
    )
  }


@pytest.mark.parametrize('to_first', [False, True])
def test_differences_are_those_of_the_estimators(to_first):
  several = _three()
  found = comparison.compare(several, (1, 8, 32), to_first=to_first)
  pairs = [('base', 'head'), ('base' if to_first else 'head', 'joint')]
  assert [(d['before'], d['after']) for d in found[::5]] == pairs
  measures = ['pass@1', 'SPRM best-of-k', 'weighted vote', 'majority']
  measures = [m + ' (k = 8)' * (m != 'pass@1') for m in measures]
  assert [d['measure'] for d in found[:5]] == [
    *measures,
    'oracle pass@k (k = 8)',
  ]
  for d in found:
    a, b = several[d['before']], several[d['after']]
    value = {
      'pass@1': lambda s: s.correct_PN.mean(axis=1),
      'majority (k = 8)': lambda s: estimators.majority_at_k(
        s.answers_PN, s.correct_PN, 8, per_problem=True
      ),
      'SPRM best-of-k (k = 8)': lambda s: estimators.best_of_k(
        s.scores_PN,
        s.correct_PN,
        8,
        finished_PN=s.eligible_PN,
        per_problem=True,
      ),
    }.get(d['measure'])
    if value is None:
      continue
    want = intervals.paired_interval(value(b), value(a))
    np.testing.assert_allclose(
      [d['mean'], d['low'], d['high']],
      [want.mean, want.low, want.high],
      rtol=1e-9,
    )
    assert d['p'] == comparison.sign_flip_test(value(b) - value(a))[0]


def test_equal_checkpoints_are_not_proved_equal():
  samples = synthetic.make_samples(P=30)
  found = comparison.compare({'a': samples, 'b': samples}, (1,))
  (d,) = found
  assert d['mean'] == 0 and d['p'] == 1
  assert d['low'] < -0.05 and d['high'] > 0.05


def test_other_problems_are_refused():
  a = synthetic.make_samples(P=6, N=3)
  with pytest.raises(UserError, match="'x' and 'y' hold different problems"):
    comparison.compare({'x': a, 'y': synthetic.make_samples(P=6, task='o')})
  assert comparison.compare({'x': a}) == []
