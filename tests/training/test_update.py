"""The loss and its gradient: an independent form, its parts, its pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernels.scoring_head import dropout
from metastone_jax import policy, sprm
from metastone_jax.parallel import Sharder
from metastone_jax.training import optimiser
from tests import quick
from tests.model import naive
from tests.training.batches import (
  EVERYTHING,
  SEED,
  STEP,
  T,
  assert_trees_close,
  gradient,
  make_batch,
  model_config,
  program,
)

MODEL = model_config()
OFF = dict(policy_coefficient=0.0, score_coefficient=0.0, lm_coefficient=0.0)
SCORE_ALONE = dataclasses.replace(EVERYTHING, **OFF | {'score_coefficient': 1})


@pytest.fixture
def params():
  """Float64 parameters, while float64 is on."""
  with jax.enable_x64(True):
    yield naive.random_params(MODEL)


def naive_loss(params, batch, keep_BTE, weight_BT):
  """SPEC sections 3 and 4 with the logits of everything in memory."""
  logits, residuals = naive.forward(
    params,
    MODEL,
    batch['tokens_BT'],
    batch['position_BT'],
    batch['segment_BT'],
  )
  log_p = jax.nn.log_softmax(
    logits / batch['temperature_B'][:, None, None], axis=-1
  )
  taken = jnp.take_along_axis(log_p, batch['target_BT'][..., None], -1)[..., 0]
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  old, advantage = batch['old_log_prob_BT'], batch['advantage_B'][:, None]
  ratio = jnp.exp(taken - old)
  surrogate = jnp.minimum(
    advantage * ratio, advantage * jnp.clip(ratio, 0.8, 1.2)
  )
  importance = jnp.minimum(jnp.exp(old - batch['sampler_log_prob_BT']), 1.4)
  x = batch['ref_log_prob_BT'] - taken
  kl = jnp.clip(jnp.exp(x) - x - 1, -10, 10)
  mask = batch['policy_mask_BT']
  per_token = -surrogate * importance + 0.1 * kl - 0.05 * entropy
  loss = jnp.sum(per_token * mask) / mask.sum()
  lm = batch['lm_mask_BT']
  loss -= 0.4 * jnp.sum(taken * lm) / lm.sum()
  z = naive.score_head(params, residuals[-2], keep_BTE, 0.5)
  p = jax.nn.sigmoid(z)
  bce = -jnp.log(jnp.where(batch['correct_B'][:, None], p, 1 - p))
  return loss + jnp.sum(weight_BT * bce) / (weight_BT.sum() + 1e-5)


def test_the_gradient_is_that_of_an_independent_loss(params):
  batch = make_batch()
  weight_BT, _ = sprm.step_weights(
    batch['step_logit_BT'],
    batch['step_mask_BT'],
    batch['correct_B'],
    kind='spr',
    score_weight_B=batch['score_weight_B'],
  )
  assert (weight_BT > 0).sum() >= 5
  keep_BTE = dropout.keep_mask(
    (int(SEED) + int(STEP) * 0x9E3779B9) % 2**32,
    batch['row_B'],
    jnp.arange(T, dtype=jnp.uint32),
    2 * MODEL.width,
    0.5,
  )
  loss, grads = quick.jit(jax.value_and_grad(naive_loss))(
    jax.tree.map(jnp.asarray, params), batch, keep_BTE, weight_BT
  )
  found, metrics = gradient(params, batch, EVERYTHING, MODEL)
  np.testing.assert_allclose(metrics['loss/total'], loss, rtol=1e-10)
  assert_trees_close(found, jax.device_get(grads), rtol=1e-8, atol=1e-11)


def test_the_gradient_is_the_finite_difference_of_the_loss(params):
  """Dropout on, random directions through every leaf."""
  batch = make_batch()
  grads, _ = gradient(params, batch, EVERYTHING, MODEL)

  def loss(moved):
    return gradient(moved, batch, EVERYTHING, MODEL)[1]['loss/total']

  rng = np.random.default_rng(0)
  for _ in range(3):
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    up, down = (
      loss(jax.tree.map(lambda p, d, s=s: p + s * 1e-6 * d, params, direction))
      for s in (1, -1)
    )
    slope = sum(
      np.sum(g * d)
      for g, d in zip(
        jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
      )
    )
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-6)


def test_the_whole_is_the_sum_of_its_terms(params):
  """Each term alone, with its inputs only; together they are the whole."""
  common = {'tokens_BT', 'position_BT', 'segment_BT'}
  log_prob = {'target_BT', 'temperature_B'}
  needed = {
    'policy': log_prob
    | {
      'policy_mask_BT',
      'advantage_B',
      'old_log_prob_BT',
      'ref_log_prob_BT',
      'sampler_log_prob_BT',
    },
    'score': {
      'row_B',
      'step_mask_BT',
      'step_logit_BT',
      'correct_B',
      'score_weight_B',
    },
    'lm': log_prob | {'lm_mask_BT'},
  }
  batch = make_batch()
  total, metrics = gradient(params, batch, EVERYTHING, MODEL)
  parts, losses = [], []
  for term, names in needed.items():
    name = f'{term}_coefficient'
    alone = dataclasses.replace(
      EVERYTHING, **OFF | {name: getattr(EVERYTHING, name)}
    )
    rows = {name: batch[name] for name in common | names}
    grads, found = gradient(params, rows, alone, MODEL)
    norms = {
      group: float(optax.tree.norm(tree))
      for group, tree in optimiser.split_groups(grads).items()
    }
    assert norms['backbone'] > 0
    assert (norms['head'] > 0) == (term == 'score')
    parts.append(grads)
    losses.append(found.pop('loss/total'))
    for name, value in found.items():  # metrics do not depend on other terms
      np.testing.assert_allclose(value, metrics[name], rtol=1e-9, err_msg=name)
  assert_trees_close(
    jax.tree.map(lambda *x: sum(x), *parts), total, rtol=1e-9, atol=1e-12
  )
  np.testing.assert_allclose(sum(losses), metrics['loss/total'], rtol=1e-9)


@pytest.mark.parametrize(
  ('options', 'absent'),
  [
    (dict(), ()),
    (
      dict(objective=policy.dr_grpo(fixed_length=T), score_loss='bce'),
      ('ref_log_prob_BT', 'step_logit_BT', 'old_log_prob_BT'),
    ),
    (
      # A wide clip, or almost every ratio of these rows is outside it.
      dict(
        objective=policy.gspo(kl_coefficient=1e-2, clip_low=0.3, clip_high=1),
        score_loss='soft',
      ),
      ('step_logit_BT',),
    ),
  ],
  ids=['grpo-spr', 'dr_grpo-bce', 'gspo-soft'],
)
def test_micro_batches_equal_one_batch(params, options, absent):
  """Loss, every gradient leaf, every metric; dropout depends on the row."""
  batch = {k: v for k, v in make_batch().items() if k not in absent}
  whole = dataclasses.replace(EVERYTHING, **options)
  pieces = dataclasses.replace(whole, num_micro_batches=4)
  want = gradient(params, batch, whole, MODEL)
  got = gradient(params, batch, pieces, MODEL)
  assert_trees_close(got, want, rtol=1e-9, atol=1e-12)
  for leaf in jax.tree.leaves(want[0]):
    assert np.any(leaf)


def test_the_score_gradient_scale_touches_the_backbone_only(params):
  batch = make_batch()
  found = {
    scale: optimiser.split_groups(
      gradient(
        params,
        batch,
        dataclasses.replace(SCORE_ALONE, score_gradient_scale=scale),
        MODEL,
      )[0]
    )
    for scale in (0.0, 1e-4, 1.0)
  }
  for scale in (0.0, 1e-4):
    assert_trees_close(found[scale]['head'], found[1.0]['head'], rtol=1e-12)
  for leaf in jax.tree.leaves(found[0.0]['backbone']):
    np.testing.assert_array_equal(leaf, 0)
  assert_trees_close(
    found[1e-4]['backbone'],
    jax.tree.map(lambda x: 1e-4 * x, found[1.0]['backbone']),
    rtol=1e-9,
    atol=1e-18,
  )


def test_a_new_step_or_seed_is_a_new_dropout_mask(params):
  batch = make_batch()
  run = program(SCORE_ALONE, MODEL, Sharder())
  losses = [
    float(run(params, batch, np.uint32(s), np.int32(t))[1]['loss/score'])
    for s, t in ((0, 0), (0, 0), (0, 1), (1, 0))
  ]
  assert losses[0] == losses[1]
  assert len(set(losses)) == 3
