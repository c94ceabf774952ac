"""The update on draws of the real sampler."""

import jax
import numpy as np

from metastone_jax import policy
from metastone_jax.training import step
from tests.model import naive
from tests.sampling import tiny
from tests.training.batches import assert_trees_close, gradient


def _rollout_batch(params):
  """Draws of the real sampler as a training batch, in float64."""
  P, N = 4, 8
  prompt, length = tiny.prompts(P)
  # The same draws as in tests/sampling share their compiled program.
  cfg = tiny.sampling_config(temperature=0.8)
  _, drawn = tiny.loop(cfg, N, params, prompt, length)
  rows = tiny.join(prompt, length, drawn.token_PNR).reshape(P * N, -1)
  B, T = rows.shape
  first_B = np.repeat(length, N)
  length_B = drawn.length_PN.reshape(B)
  place = np.arange(T)[None]
  inside = (place >= first_B[:, None] - 1) & (
    place < (first_B + length_B)[:, None] - 1
  )

  def on_rows(value_PNR):
    out = np.zeros((B, T), value_PNR.dtype)
    written = np.arange(tiny.R) < length_B[:, None]
    out[inside] = value_PNR.reshape(B, -1)[written]
    return out

  rng = np.random.default_rng(0)
  batch = {
    'tokens_BT': rows,
    'target_BT': np.roll(rows, -1, axis=1),
    'position_BT': np.broadcast_to(place, (B, T)).astype(np.int32),
    'segment_BT': (place < (first_B + length_B)[:, None]).astype(np.int32),
    'row_B': np.arange(B, dtype=np.uint32),
    'temperature_B': np.full(B, 0.8),
    'policy_mask_BT': inside,
    'advantage_B': rng.normal(size=B),
    'sampler_log_prob_BT': on_rows(drawn.log_prob_PNR),
    'step_mask_BT': on_rows(drawn.step_mask_PNR),
    'correct_B': rng.random(B) < 0.5,
    'score_weight_B': drawn.finished_PN.reshape(B).astype(np.float64),
  }
  return batch, on_rows(drawn.step_logit_PNR)


def test_the_samplers_step_logits_weigh_as_fresh_ones_do():
  """On-policy: what the decode loop recorded replaces a forward pass."""
  with jax.enable_x64(True):
    mconfig = tiny.model_config()
    params = naive.random_params(mconfig, seed=1)
    batch, step_logit_BT = _rollout_batch(params)
    cfg = step.UpdateConfig(policy_coefficient=0.0)
    fresh, metrics = gradient(params, batch, cfg, mconfig)
    batch['step_logit_BT'] = step_logit_BT
    recorded, recorded_metrics = gradient(params, batch, cfg, mconfig)
    assert_trees_close(recorded, fresh, rtol=1e-9, atol=1e-13)
    assert_trees_close(recorded_metrics, metrics, rtol=1e-9, atol=1e-12)
    assert metrics['loss/score'] > 0
    assert 0 < metrics['score/kept_positive'] < 1


def test_the_only_update_of_a_rollout_is_on_policy():
  """Ratio 1, nothing clipped, and the sampler's log-probs are the trainer's."""
  with jax.enable_x64(True):
    mconfig = tiny.model_config()
    params = naive.random_params(mconfig, seed=1)
    batch, _ = _rollout_batch(params)
    cfg = step.UpdateConfig(
      objective=policy.grpo(kl_coefficient=0.0), score_coefficient=0.0
    )
    _, metrics = gradient(params, batch, cfg, mconfig)
    np.testing.assert_allclose(metrics['policy/ratio_mean'], 1, rtol=1e-12)
    np.testing.assert_allclose(
      metrics['policy/sampler_mismatch'], 0, atol=1e-10
    )
    assert metrics['policy/clip_fraction'] == 0
    # Ratio 1: the loss is minus the token mean of the advantage.
    mask = batch['policy_mask_BT']
    advantage = np.broadcast_to(batch['advantage_B'][:, None], mask.shape)
    np.testing.assert_allclose(
      metrics['loss/policy'], -advantage[mask].mean(), rtol=1e-12
    )
