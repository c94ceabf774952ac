"""Bootstrap intervals: coverage, direction, degenerate cases, errors."""

import math

import numpy as np
import pytest
from scipy import stats

from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals


def test_coverage_is_near_the_level():
  rng = np.random.default_rng(0)
  truth, hits, runs = 0.85, 0, 300
  for seed in range(runs):
    values = rng.binomial(8, truth, size=60) / 8
    interval = intervals.bootstrap_interval(values, resamples=600, seed=seed)
    hits += interval.low <= truth <= interval.high
  # Four standard errors of a binomial at 0.95 and 300 runs: 0.05.
  np.testing.assert_allclose(hits / runs, 0.95, atol=0.05)


def test_matches_scipy_bca_and_normal_theory():
  values = np.random.default_rng(1).beta(2, 1, size=200)
  ours = intervals.bootstrap_interval(values, resamples=20000)
  theirs = stats.bootstrap(
    (values,), np.mean, n_resamples=20000, method='BCa', rng=0
  ).confidence_interval
  np.testing.assert_allclose(ours.mean, values.mean(), rtol=1e-14)
  np.testing.assert_allclose(
    [ours.low, ours.high], [theirs.low, theirs.high], atol=0.002
  )
  half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
  np.testing.assert_allclose((ours.high - ours.low) / 2, half, rtol=0.05)


def test_pairing_removes_the_common_part():
  rng = np.random.default_rng(2)
  hardness = rng.random(100)
  a, b = hardness + 0.1 + 0.01 * rng.random(100), hardness
  paired = intervals.paired_interval(a, b)
  alone = intervals.bootstrap_interval(a)
  assert paired.low > 0.09
  assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_batched_equals_single_and_chunked(monkeypatch):
  values = np.random.default_rng(3).random((50, 3))
  batch = intervals.bootstrap_intervals(values, resamples=700)
  monkeypatch.setattr(intervals, '_CHUNK_DRAWS', 999)
  for m in range(3):
    one = intervals.bootstrap_interval(values[:, m], resamples=700)
    np.testing.assert_allclose(
      [one.mean, one.low, one.high],
      [batch[m].mean, batch[m].low, batch[m].high],
      rtol=1e-12,
    )


def test_degenerate_cases_are_defined():
  constant = intervals.bootstrap_interval(np.full(30, 0.7))
  np.testing.assert_allclose(
    [constant.mean, constant.low, constant.high], 0.7, rtol=1e-12
  )
  single = intervals.bootstrap_interval([0.5])
  assert single.as_dict() == {'mean': 0.5, 'low': None, 'high': None}


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: intervals.bootstrap_interval([]), 'no problems'),
    (lambda: intervals.bootstrap_interval([1.0, np.nan]), 'finite'),
    (lambda: intervals.bootstrap_interval([[1.0]]), 'one value a problem'),
    (lambda: intervals.bootstrap_interval([1, 2], level=1.0), 'level=1.0'),
    (lambda: intervals.bootstrap_interval([1, 2], resamples=0), 'resamples=0'),
    (lambda: intervals.paired_interval([1, 2], [1]), 'same problems'),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(UserError, match=message):
    call()
