"""A small model and a batch with every field, for the tests of the update."""

import functools

import jax
import numpy as np

from metastone_jax import policy
from metastone_jax.model import ModelConfig
from metastone_jax.parallel import Sharder
from metastone_jax.training import step
from tests import quick

B, T, V = 8, 9, 16
SEED, STEP = np.uint32(3), np.int32(2)


def model_config(dtype='float64') -> ModelConfig:
  return ModelConfig(
    vocab_size=V,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    feed_forward=24,
    qk_norm=True,
    score_dropout=0.5,
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
    'step_logit_BT': rng.normal(size=(B, T)).astype(dtype),
    'correct_B': np.arange(B) % 2 == 0,
    'score_weight_B': np.array([1, 1, 0, 1, 1, 1, 0.5, 1], dtype),
    'lm_mask_BT': inside & (np.arange(B) >= 5)[:, None],
  }


# Every term, and every factor that a gradient passes through.
EVERYTHING = step.UpdateConfig(
  objective=policy.grpo(
    kl_coefficient=0.1, entropy_coefficient=0.05, importance_truncation=1.4
  ),
  score_gradient_scale=1.0,
  lm_coefficient=0.4,
)


@functools.cache
def program(cfg, mconfig, sharder):
  return quick.jit(
    functools.partial(
      step.gradient, model_config=mconfig, config=cfg, sharder=sharder
    )
  )


def gradient(params, batch, cfg, mconfig, sharder=None):
  run = program(cfg, mconfig, sharder or Sharder())
  return jax.device_get(run(params, batch, SEED, STEP))


def assert_trees_close(a, b, **tolerance):
  jax.tree_util.tree_map_with_path(
    lambda path, x, y: np.testing.assert_allclose(
      x, y, err_msg=jax.tree_util.keystr(path), **tolerance
    ),
    a,
    b,
  )
