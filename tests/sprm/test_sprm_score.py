"""Trace scores and diagnostics against golden numbers and brute force."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError


def test_golden_serve_geometric_mean(repo_root):
  path = repo_root / 'tests' / 'golden' / 'reference.json'
  cases = json.loads(path.read_text())['serve_geometric_mean']
  for case in cases:
    p_T = np.asarray(case['p'], np.float64)
    z_BT = np.zeros((1, 8))
    mask_BT = np.zeros((1, 8), bool)
    z_BT[0, : len(p_T)] = np.log(p_T / (1 - p_T))
    mask_BT[0, : len(p_T)] = True
    np.testing.assert_allclose(
      sprm.trace_score(z_BT, mask_BT), [case['value']], atol=1e-6
    )


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize('fallback', [False, True])
@pytest.mark.parametrize('aggregator', sprm.AGGREGATORS)
def test_aggregators(aggregator, fallback, library):
  rng = np.random.default_rng(0)
  z_BT = rng.normal(size=(20, 9)) * 3
  mask_BT = rng.random((20, 9)) < 0.3
  mask_BT[:3] = False
  fallback_B = rng.normal(size=20)
  expected_B = []
  for z_T, mask_T, fallback_logit in zip(
    z_BT, mask_BT, fallback_B, strict=True
  ):
    p = [1 / (1 + np.exp(-z)) for z, m in zip(z_T, mask_T, strict=True) if m]
    if not p:
      score = 1 / (1 + np.exp(-fallback_logit)) if fallback else 0.0
    else:
      score = {
        'geometric': np.prod(p) ** (1 / len(p)),
        'arithmetic': np.mean(p),
        'product': np.prod(p),
        'min': min(p),
        'last': p[-1],
      }[aggregator]
    expected_B.append(score)
  with jax.enable_x64(True):
    score_B = sprm.trace_score(
      library.asarray(z_BT),
      library.asarray(mask_BT),
      aggregator=aggregator,
      fallback_logit_B=library.asarray(fallback_B) if fallback else None,
    )
  np.testing.assert_allclose(score_B, expected_B, rtol=1e-12)


@pytest.mark.parametrize('aggregator', sprm.AGGREGATORS)
def test_jit_float32_and_gradient(aggregator):
  z_BT = jnp.array([[0.3, -2.0, 90.0], [-90.0, 1.0, 2.0]], jnp.float32)
  mask_BT = jnp.array([[1, 1, 0], [0, 0, 0]], bool)

  def total(z_BT):
    return sprm.trace_score(z_BT, mask_BT, aggregator=aggregator).sum()

  value, grad_BT = jax.jit(jax.value_and_grad(total))(z_BT)
  assert value.dtype == jnp.float32
  assert np.isfinite(grad_BT).all()
  np.testing.assert_array_equal(grad_BT[1], np.zeros(3))  # no mark: constant
  assert grad_BT[0, 1] != 0


def test_a_thousand_steps_do_not_underflow():
  z_BT = np.full((1, 5000), -3.0, np.float32)
  score_B = sprm.trace_score(z_BT, np.ones_like(z_BT, bool))
  assert score_B.dtype == np.float32
  np.testing.assert_allclose(score_B, 1 / (1 + np.exp(3)), rtol=1e-5)


def test_leading_axes_and_unknown_aggregator():
  z_PNT = np.random.default_rng(1).normal(size=(2, 3, 4))
  mask_PNT = z_PNT > -0.5
  score_PN = sprm.trace_score(z_PNT, mask_PNT)
  flat_B = sprm.trace_score(z_PNT.reshape(6, 4), mask_PNT.reshape(6, 4))
  np.testing.assert_array_equal(score_PN.ravel(), flat_B)
  with pytest.raises(UserError, match='aggregator'):
    sprm.trace_score(z_PNT, mask_PNT, aggregator='median')


def pair_counts(score_n, correct_n):
  won = pairs = 0.0
  for i, j in itertools.product(range(len(score_n)), repeat=2):
    if correct_n[i] and not correct_n[j]:
      pairs += 1
      won += float(score_n[i] > score_n[j]) + 0.5 * (score_n[i] == score_n[j])
  return won, pairs


def test_auc_is_the_share_of_pairs():
  rng = np.random.default_rng(0)
  for _ in range(20):
    score_PN = rng.integers(0, 5, (6, 7)) / 4  # many ties
    correct_PN = rng.random((6, 7)) < 0.4
    correct_PN[0] = True  # a problem of one class
    won, pairs = pair_counts(score_PN.ravel(), correct_PN.ravel())
    np.testing.assert_allclose(sprm.auc(score_PN, correct_PN), won / pairs)
    counts = [
      pair_counts(s, c) for s, c in zip(score_PN, correct_PN, strict=True)
    ]
    won, pairs = np.sum(counts, axis=0)
    np.testing.assert_allclose(
      sprm.auc_within(score_PN, correct_PN), won / pairs
    )


def test_auc_within_is_blind_to_problem_difficulty():
  # The score knows the problem only: perfect across, chance within.
  correct_PN = np.array([[1, 1, 1, 0], [0, 0, 0, 1]])
  score_PN = np.array([[0.9] * 4, [0.1] * 4])
  assert sprm.auc(score_PN, correct_PN) > 0.7
  np.testing.assert_allclose(sprm.auc_within(score_PN, correct_PN), 0.5)


def test_undefined_is_nan():
  for correct in ([1, 1], [0, 0]):
    assert np.isnan(sprm.auc([0.1, 0.2], correct))
    assert np.isnan(sprm.auc_within([[0.1, 0.2]], [correct]))
    assert np.isnan(sprm.score_gap([0.1, 0.2], correct))
  assert np.isnan(sprm.auc([np.nan, 0.2], [1, 0]))
  assert np.isnan(sprm.auc_within([[np.nan, 0.2]], [[1, 0]]))


def test_score_gap():
  np.testing.assert_allclose(
    sprm.score_gap([[0.9, 0.5], [0.1, 0.3]], [[1, 1], [0, 0]]), 0.5
  )


def test_kept_fractions():
  z_BT = jnp.array([[1.0, -1.0, 2.0, 0.0], [1.0, -1.0, 3.0, 9.0]])
  mask_BT = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])
  _, counts = sprm.step_weights(
    z_BT, mask_BT, jnp.array([True, False]), kind='spr'
  )
  kept = sprm.kept_fractions(counts)
  np.testing.assert_allclose(kept['positive'], 2 / 4)
  np.testing.assert_allclose(kept['negative'], 1 / 3)
  empty = sprm.kept_fractions(sprm.StepCounts(3, 0, 3, 0))
  np.testing.assert_allclose(empty['positive'], 1)
  assert np.isnan(empty['negative'])
