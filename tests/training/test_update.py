"""The update against an independent loss, micro-batches, meshes, switches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metastone_jax import policy, sprm
from metastone_jax.model import ModelConfig
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.training import optimiser, step
from metastone_jax.training import state as state_lib
from tests.model import naive

B, T, V = 8, 9, 16
SEED, STEP = np.uint32(3), np.int32(2)


def model_config(dtype='float64', dropout=0.0) -> ModelConfig:
  return ModelConfig(
    vocab_size=V,
    width=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    feed_forward=24,
    qk_norm=True,
    score_dropout=dropout,
    dtype=dtype,
    param_dtype=dtype,
  )


def make_batch(dtype=np.float64):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  length = rng.integers(5, T + 1, B)
  real = np.arange(T) < length[:, None]
  inside = np.arange(T) < length[:, None] - 1
  logits = rng.normal(size=(3, B, T)) * 0.3 - 2.5
  return {
    'tokens_BT': tokens,
    'target_BT': np.roll(tokens, -1, axis=1),
    'position_BT': np.tile(np.arange(T, dtype=np.int32), (B, 1)),
    'segment_BT': real.astype(np.int32),
    'row_B': np.arange(B, dtype=np.uint32),
    'temperature_B': np.array([0.7] * 5 + [1.0] * 3, dtype),
    'policy_mask_BT': inside & (np.arange(T) > 1) & (np.arange(B) < 5)[:, None],
    'advantage_B': rng.normal(size=B).astype(dtype),
    'old_log_prob_BT': logits[0].astype(dtype),
    'ref_log_prob_BT': logits[1].astype(dtype),
    'sampler_log_prob_BT': logits[2].astype(dtype),
    'step_mask_BT': inside & (rng.random((B, T)) < 0.4),
    'correct_B': np.arange(B) % 2 == 0,
    'score_weight_B': np.array([1, 1, 0, 1, 1, 1, 0.5, 1], dtype),
    'lm_mask_BT': inside & (np.arange(B) >= 5)[:, None],
  }


def config(**options) -> step.UpdateConfig:
  defaults = dict(
    objective=policy.grpo(kl_coefficient=0.1, entropy_coefficient=0.05),
    score_gradient_scale=0.3,
    lm_coefficient=0.4,
  )
  return step.UpdateConfig(**{**defaults, **options})


@functools.cache
def _program(cfg, mconfig, sharder):
  return jax.jit(
    functools.partial(
      step.gradient, model_config=mconfig, config=cfg, sharder=sharder
    )
  )


def gradient(params, batch, cfg, mconfig, sharder=None):
  program = _program(cfg, mconfig, sharder or Sharder())
  return jax.device_get(program(params, batch, SEED, STEP))


def assert_trees_close(a, b, **tolerance):
  jax.tree_util.tree_map_with_path(
    lambda path, x, y: np.testing.assert_allclose(
      x, y, err_msg=jax.tree_util.keystr(path), **tolerance
    ),
    a,
    b,
  )


def naive_loss(params, batch, cfg, mconfig, weight_BT):
  """Logits of everything, loops over rows; GRPO with a token mean."""
  logits, residuals = naive.forward(
    params,
    mconfig,
    batch['tokens_BT'],
    batch['position_BT'],
    batch['segment_BT'],
  )
  log_p = jax.nn.log_softmax(
    logits / batch['temperature_B'][:, None, None], axis=-1
  )
  taken = jnp.take_along_axis(log_p, batch['target_BT'][..., None], -1)[..., 0]
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  feature = residuals[mconfig.num_layers - 1]
  scale = cfg.score_gradient_scale
  feature = scale * feature + (1 - scale) * jax.lax.stop_gradient(feature)
  z = naive.score_head(params, feature)
  objective = cfg.objective
  mask = batch['policy_mask_BT']
  ratio = jnp.exp(taken - batch['old_log_prob_BT'])
  advantage = batch['advantage_B'][:, None]
  surrogate = jnp.minimum(
    advantage * ratio, advantage * jnp.clip(ratio, 0.8, 1.2)
  )
  x = batch['ref_log_prob_BT'] - taken
  kl = jnp.clip(jnp.exp(x) - x - 1, -10, 10)
  per_token = (
    -surrogate
    + objective.kl_coefficient * kl
    - objective.entropy_coefficient * entropy
  )
  loss = jnp.sum(per_token * mask) / mask.sum()
  lm = batch['lm_mask_BT']
  loss -= cfg.lm_coefficient * jnp.sum(taken * lm) / lm.sum()
  p = jax.nn.sigmoid(z)
  bce = -jnp.log(jnp.where(batch['correct_B'][:, None], p, 1 - p))
  return loss + jnp.sum(weight_BT * bce) / (weight_BT.sum() + 1e-5), z


@pytest.mark.parametrize('kind', ['spr', 'bce', 'soft'])
def test_gradient_equals_an_independent_loss(kind):
  with jax.enable_x64(True):
    mconfig = model_config()
    params = naive.random_params(mconfig)
    batch = make_batch()
    cfg = config(score_loss=kind)
    loss_and_grad = jax.jit(
      jax.value_and_grad(
        lambda params, weight: naive_loss(params, batch, cfg, mconfig, weight),
        has_aux=True,
      )
    )
    z = loss_and_grad(params, np.zeros((B, T)))[0][1]
    weight_BT, _ = sprm.step_weights(
      np.asarray(z),
      batch['step_mask_BT'],
      batch['correct_B'],
      kind=kind,
      score_weight_B=batch['score_weight_B'],
    )
    assert weight_BT.any()
    (loss, _), grads = loss_and_grad(params, np.asarray(weight_BT))
    found, metrics = gradient(params, batch, cfg, mconfig)
    np.testing.assert_allclose(metrics['loss/total'], loss, rtol=1e-9)
    assert_trees_close(found, jax.device_get(grads), rtol=1e-7, atol=1e-10)


OBJECTIVES = {
  'grpo': policy.grpo(),
  'dr_grpo': policy.dr_grpo(fixed_length=T, kl_coefficient=1e-2),
  'dapo': policy.dapo(importance_truncation=1.5),
  'gspo': policy.gspo(kl_coefficient=1e-2),
}


@pytest.mark.parametrize(
  ('objective', 'kind'),
  [('dr_grpo', 'spr'), ('gspo', 'soft')],
)
def test_micro_batches_equal_one_batch(objective, kind):
  with jax.enable_x64(True):
    mconfig = model_config(dropout=0.5)  # dropout depends on the row alone
    params = naive.random_params(mconfig)
    batch = make_batch()
    cfg = config(objective=OBJECTIVES[objective], score_loss=kind)
    whole = gradient(params, batch, cfg, mconfig)
    pieces = gradient(
      params, batch, dataclasses.replace(cfg, num_micro_batches=4), mconfig
    )
    assert_trees_close(pieces, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
  ('mesh', 'dtype', 'tolerance'),
  [
    ({'fsdp': 4, 'tensor': 2}, 'float64', 1e-9),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, 'float32', 1e-5),
  ],
)
def test_eight_devices_equal_one(mesh, dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    mconfig = model_config(dtype, dropout=0.5)
    sharder = Sharder(make_mesh(mesh))
    state = state_lib.abstract_state(
      mconfig, optimiser.OptimiserConfig(), sharder
    )
    params = naive.random_params(mconfig)
    sharded = jax.device_put(
      params, jax.tree.map(lambda x: x.sharding, state['params'])
    )
    # Really split: (layers, D = 16, F = 24) over fsdp and tensor.
    kernel = sharded['low']['gate_kernel']
    assert kernel.addressable_shards[0].data.shape == (
      2,
      16 // mesh['fsdp'],
      24 // mesh['tensor'],
    )
    moment = state['opt']['backbone'][1].mu['low']['gate_kernel']
    assert moment.sharding == kernel.sharding
    head = state['opt']['head'][1].nu['hidden_kernel'].sharding
    assert head == sharded['score_head']['hidden_kernel'].sharding
    assert not head.is_fully_replicated
    batch = make_batch(np.dtype(dtype))
    cfg = config(num_micro_batches=2)
    alone = gradient(params, batch, cfg, mconfig)
    spread = gradient(sharded, sharder.put_batch(batch), cfg, mconfig, sharder)
    assert_trees_close(spread, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('term', ['policy', 'score', 'lm'])
def test_each_term_stands_alone(term):
  mconfig = model_config('float32')
  params = naive.random_params(mconfig)
  batch = make_batch(np.float32)
  options = dict(policy_coefficient=0.0, score_coefficient=0.0)
  options['lm_coefficient'] = 0.0
  options[f'{term}_coefficient'] = 1.0
  needed = {
    'policy': {
      'policy_mask_BT',
      'advantage_B',
      'ref_log_prob_BT',
    },
    'score': {'step_mask_BT', 'correct_B', 'score_weight_B'},
    'lm': {'lm_mask_BT'},
  }[term] | {
    'tokens_BT',
    'target_BT',
    'position_BT',
    'segment_BT',
    'row_B',
    'temperature_B',
  }
  batch = {name: value for name, value in batch.items() if name in needed}
  grads, metrics = gradient(
    params, batch, config(score_loss='bce', **options), mconfig
  )
  assert np.isfinite(metrics['loss/total'])
  norms = {
    name: optax.tree.norm(group)
    for name, group in optimiser.split_groups(grads).items()
  }
  assert norms['backbone'] > 0
  assert (norms['head'] > 0) == (term == 'score')


def test_score_gradient_scale_touches_the_backbone_only():
  with jax.enable_x64(True):
    mconfig = model_config()
    params = naive.random_params(mconfig)
    batch = make_batch()
    found = {}
    for scale in (0.0, 1e-4, 1.0):
      cfg = config(
        policy_coefficient=0.0,
        lm_coefficient=0.0,
        score_loss='bce',
        score_gradient_scale=scale,
      )
      found[scale] = optimiser.split_groups(
        gradient(params, batch, cfg, mconfig)[0]
      )
    assert_trees_close(found[0.0]['head'], found[1.0]['head'], rtol=1e-12)
    assert optax.tree.norm(found[0.0]['backbone']) == 0
    assert_trees_close(
      found[1e-4]['backbone'],
      jax.tree.map(lambda x: 1e-4 * x, found[1.0]['backbone']),
      rtol=1e-9,
      atol=1e-18,
    )
