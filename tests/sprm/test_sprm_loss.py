"""SPR loss: golden numbers, a loop oracle, micro-batches, gradients."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError

TOLERANCE = {'float64': 1e-6, 'float32': 1e-5}


@pytest.fixture(scope='module')
def cases(repo_root):
  path = repo_root / 'tests' / 'golden' / 'reference.json'
  cases = json.loads(path.read_text())['spr']
  assert len(cases) == 5
  return cases


def loop_oracle(z_BT, mask_BT, reward_B, kind, row_weight_B):
  """SPEC section 3 a step at a time; returns loss, weights and counts."""
  steps = []
  for b in range(z_BT.shape[0]):
    for t in range(z_BT.shape[1]):
      if mask_BT[b, t] and row_weight_B[b] > 0:
        y = reward_B[b] > 0.5
        z = float(z_BT[b, t])
        p = 1 / (1 + math.exp(-z))
        keep = {
          'spr': float(z > 0 if y else z < 0),
          'bce': 1.0,
          'soft': p if y else 1 - p,
        }[kind]
        bce = -math.log(p) if y else -math.log(1 - p)
        steps.append((b, t, y, keep, bce))
  kept_pos = sum(s[3] for s in steps if s[2])
  kept_neg = sum(s[3] for s in steps if not s[2])
  pos, neg = sum(s[2] for s in steps), sum(not s[2] for s in steps)
  n_pos, n_neg = kept_pos + 1, kept_neg + 1
  weight_BT = np.zeros(z_BT.shape)
  loss_sum = 0.0
  for b, t, y, keep, bce in steps:
    balance = 1.5 * n_neg if y else n_pos
    weight_BT[b, t] = keep * row_weight_B[b] * balance / (n_pos + n_neg)
    loss_sum += weight_BT[b, t] * bce
  loss = loss_sum / (weight_BT.sum() + 1e-5)
  return loss, weight_BT, (kept_pos, kept_neg, pos, neg)


def random_batch(seed=0, B=8, T=12):
  rng = np.random.default_rng(seed)
  z_BT = rng.normal(size=(B, T)) * 2
  z_BT[rng.random((B, T)) < 0.1] = 0.0  # never kept by spr
  return (
    z_BT,
    rng.random((B, T)) < 0.4,
    rng.choice([0.0, 0.1, 1.0], B),
    rng.choice([0.0, 0.5, 1.0], B),
  )


@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_golden_loss_and_gradient(cases, dtype):
  tolerance = TOLERANCE[dtype]
  with jax.enable_x64(dtype == 'float64'):
    for case in cases:
      z_BT = jnp.asarray(case['step_logits'], dtype)
      mask_BT = jnp.asarray(case['is_step'], bool)
      reward_B = jnp.asarray(case['reward'], dtype)
      loss, grad_BT = jax.jit(jax.value_and_grad(sprm.spr_loss))(
        z_BT, mask_BT, reward_B
      )
      assert loss.dtype == dtype
      np.testing.assert_allclose(loss, case['loss'], rtol=0, atol=tolerance)
      np.testing.assert_allclose(grad_BT, case['grad'], rtol=0, atol=tolerance)
      score_B = jax.jit(sprm.trace_score)(z_BT, mask_BT)
      np.testing.assert_allclose(
        score_B, case['geometric_mean'], rtol=0, atol=tolerance
      )


def test_golden_counts_and_numpy(cases):
  for case in cases:
    z_BT = np.asarray(case['step_logits'])
    mask_BT = np.asarray(case['is_step'])
    reward_B = np.asarray(case['reward'])
    loss = sprm.spr_loss(z_BT, mask_BT, reward_B)
    assert isinstance(loss, np.float64)
    np.testing.assert_allclose(loss, case['loss'], rtol=1e-9)
    _, counts = sprm.step_weights(z_BT, mask_BT, reward_B > 0.5, kind='spr')
    assert counts.kept_positive == case['positive']
    assert counts.kept_negative == case['negative']


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize('kind', sprm.KINDS)
def test_equals_the_loop(kind, library):
  with jax.enable_x64(True):
    for seed in range(3):
      z_BT, mask_BT, reward_B, row_weight_B = random_batch(seed)
      loss, weight_BT, counts = loop_oracle(
        z_BT, mask_BT, reward_B, kind, row_weight_B
      )
      args = [library.asarray(a) for a in (z_BT, mask_BT, reward_B > 0.5)]
      got_BT, got_counts = sprm.step_weights(
        *args, kind=kind, score_weight_B=library.asarray(row_weight_B)
      )
      np.testing.assert_allclose(got_BT, weight_BT, rtol=1e-12)
      np.testing.assert_allclose(got_counts, counts, rtol=1e-12)
      got = sprm.spr_loss(
        args[0],
        args[1],
        library.asarray(reward_B),
        kind=kind,
        score_weight_B=library.asarray(row_weight_B),
      )
      np.testing.assert_allclose(got, loss, rtol=1e-12)


@pytest.mark.parametrize('kind', sprm.KINDS)
def test_micro_batches_are_one_batch(kind):
  weights = jax.jit(functools.partial(sprm.step_weights, kind=kind))
  sum_and_gradient = jax.jit(jax.value_and_grad(sprm.step_loss_sum))
  whole_loss = jax.jit(
    jax.value_and_grad(functools.partial(sprm.spr_loss, kind=kind))
  )
  with jax.enable_x64(True):
    z_BT, mask_BT, reward_B, row_weight_B = random_batch(3)
    target_B = reward_B > 0.5
    whole, whole_grad_BT = whole_loss(
      z_BT, mask_BT, reward_B, score_weight_B=row_weight_B
    )
    weight_BT, counts = weights(
      z_BT, mask_BT, target_B, score_weight_B=row_weight_B
    )
    denominator = sprm.step_loss_denominator(weight_BT)
    for rows in (1, 4):
      total, grads, parts = 0.0, [], []
      for i in range(0, len(z_BT), rows):
        cut = slice(i, i + rows)
        value, grad = sum_and_gradient(
          z_BT[cut], target_B[cut], np.asarray(weight_BT)[cut]
        )
        total += value
        grads.append(grad)
        # A host that sees only its rows gets the same weights from the counts.
        part_BT, part_counts = weights(
          z_BT[cut],
          mask_BT[cut],
          target_B[cut],
          score_weight_B=row_weight_B[cut],
          class_counts=counts,
        )
        np.testing.assert_allclose(
          part_BT, np.asarray(weight_BT)[cut], rtol=1e-12
        )
        parts.append(part_counts)
      np.testing.assert_allclose(total / denominator, whole, rtol=1e-12)
      np.testing.assert_allclose(
        np.concatenate(grads) / denominator, whole_grad_BT, atol=1e-12
      )
      np.testing.assert_allclose(np.sum(parts, axis=0), counts, rtol=1e-12)


@pytest.mark.parametrize('kind', sprm.KINDS)
def test_gradient_is_weighted_residual_only(kind):
  # Nothing flows through the weights: d loss / dz = w * (p - y) / denominator.
  with jax.enable_x64(True):
    z_BT, mask_BT, reward_B, _ = map(jnp.asarray, random_batch(4))
    target_B = reward_B > 0.5
    weight_BT, _ = sprm.step_weights(z_BT, mask_BT, target_B, kind=kind)
    grad_BT = jax.grad(sprm.spr_loss)(z_BT, mask_BT, reward_B, kind=kind)
    residual_BT = 1 / (1 + np.exp(-z_BT)) - np.asarray(target_B)[:, None]
    expected_BT = weight_BT * residual_BT / (weight_BT.sum() + 1e-5)
    np.testing.assert_allclose(grad_BT, expected_BT, atol=1e-13)


def test_garbage_outside_the_mask_is_harmless():
  z_BT, mask_BT, reward_B, _ = random_batch(5)
  loss_and_gradient = jax.jit(jax.value_and_grad(sprm.spr_loss))
  clean = loss_and_gradient(np.where(mask_BT, z_BT, 0), mask_BT, reward_B)
  for garbage in (np.nan, np.inf, -np.inf):
    dirty = loss_and_gradient(
      np.where(mask_BT, z_BT, garbage), mask_BT, reward_B
    )
    np.testing.assert_array_equal(dirty[0], clean[0])
    np.testing.assert_array_equal(dirty[1], clean[1])
    score_B = sprm.trace_score(np.where(mask_BT, z_BT, garbage), mask_BT)
    assert np.isfinite(score_B).all()


def test_extreme_logits_stay_finite():
  z_BT = jnp.array([[1e4, -1e4, 200.0], [1e4, -1e4, -200.0]], jnp.float32)
  mask_BT = jnp.ones((2, 3), bool)
  loss, grad_BT = jax.value_and_grad(sprm.spr_loss)(
    z_BT, mask_BT, jnp.array([1.0, 0.0]), kind='bce'
  )
  assert np.isfinite(loss)
  assert np.isfinite(grad_BT).all()
  # BCE of a wrong logit z is |z|.
  weight_BT = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
  np.testing.assert_allclose(
    sprm.step_loss_sum(z_BT, jnp.array([True, False]), weight_BT), 2e4
  )


def test_zero_logits_are_dead_under_spr():
  mask_BT = jnp.ones((2, 3), bool)
  loss, grad_BT = jax.value_and_grad(sprm.spr_loss)(
    jnp.zeros((2, 3)), mask_BT, jnp.array([1.0, 0.0])
  )
  np.testing.assert_array_equal(loss, 0)
  np.testing.assert_array_equal(grad_BT, np.zeros((2, 3)))


def test_bfloat16_logits_are_summed_in_float32():
  z_BT, mask_BT, reward_B, _ = random_batch(6)
  z_BT = jnp.asarray(z_BT, jnp.bfloat16)
  loss = sprm.spr_loss(z_BT, mask_BT, reward_B)
  assert loss.dtype == jnp.float32
  exact = sprm.spr_loss(np.asarray(z_BT, np.float64), mask_BT, reward_B)
  np.testing.assert_allclose(loss, exact, rtol=1e-5)


def test_unknown_kind():
  with pytest.raises(UserError, match='spr, bce, soft'):
    sprm.spr_loss(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), kind='mse')
