"""The update as a function: finite differences, its parts, its rollouts."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import policy
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.training import optimiser, step
from metastone_jax.training import state as state_lib
from tests.model import naive
from tests.sampling import tiny
from tests.training.test_update import (
  SEED,
  STEP,
  assert_trees_close,
  config,
  gradient,
  make_batch,
  model_config,
)

# All four presets' terms that a gradient passes through, and dropout.
EVERYTHING = config(
  objective=policy.grpo(
    kl_coefficient=0.1, entropy_coefficient=0.05, importance_truncation=1.4
  ),
  score_gradient_scale=1.0,
)


def _step_logits(params, batch, mconfig):
  """Dropout-off step logits, as the sampler records them."""
  return jax.device_get(
    jax.jit(
      functools.partial(
        step.log_prob_pass,
        model_config=mconfig,
        num_micro_batches=1,
        sharder=Sharder(),
        with_log_prob=False,
      )
    )(params, batch)
  )['step_logit_BT']


def test_the_gradient_is_the_finite_difference_of_the_loss():
  """Whole loss, dropout on, random directions through every leaf."""
  with jax.enable_x64(True):
    mconfig = model_config(dropout=0.5)
    params = naive.random_params(mconfig)
    batch = make_batch()
    # Fixed filter weights: they are constants of an update.
    batch['step_logit_BT'] = _step_logits(params, batch, mconfig)
    grads, _ = gradient(params, batch, EVERYTHING, mconfig)

    def loss(moved):
      return gradient(moved, batch, EVERYTHING, mconfig)[1]['loss/total']

    rng = np.random.default_rng(0)
    for _ in range(3):
      direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
      up, down = (
        loss(
          jax.tree.map(lambda p, d, s=s: p + s * 1e-6 * d, params, direction)
        )
        for s in (1, -1)
      )
      slope = sum(
        np.sum(g * d)
        for g, d in zip(
          jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
        )
      )
      np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-6)


def test_the_whole_is_the_sum_of_its_terms():
  """Each term alone, its inputs only; together they are the whole loss."""
  common = ['tokens_BT', 'position_BT', 'segment_BT', 'temperature_B']
  common += ['target_BT']
  needed = {
    'policy': [
      'policy_mask_BT',
      'advantage_B',
      'old_log_prob_BT',
      'ref_log_prob_BT',
      'sampler_log_prob_BT',
    ],
    'score': ['row_B', 'step_mask_BT', 'correct_B', 'score_weight_B'],
    'lm': ['lm_mask_BT'],
  }
  with jax.enable_x64(True):
    mconfig = model_config(dropout=0.5)
    params = naive.random_params(mconfig)
    batch = make_batch()
    total, metrics = gradient(params, batch, EVERYTHING, mconfig)
    parts, losses = [], []
    for term, names in needed.items():
      off = {f'{other}_coefficient': 0.0 for other in needed if other != term}
      alone = dataclasses.replace(EVERYTHING, **off)
      rows = {name: batch[name] for name in common + names}
      grads, found = gradient(params, rows, alone, mconfig)
      parts.append(grads)
      losses.append(found['loss/total'])
      for name in found:  # metrics of a term do not depend on the others
        if name != 'loss/total':
          np.testing.assert_allclose(found[name], metrics[name], rtol=1e-9)
    assert_trees_close(
      jax.tree.map(lambda *x: sum(x), *parts), total, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(sum(losses), metrics['loss/total'], rtol=1e-9)


def _trace(rows, cfg):
  """Traces the update without compiling it: is every input there?"""
  mconfig = model_config('float32')
  return jax.eval_shape(
    functools.partial(
      step.gradient, model_config=mconfig, config=cfg, sharder=Sharder()
    ),
    naive.random_params(mconfig),
    rows,
    SEED,
    STEP,
  )


@pytest.mark.parametrize(
  ('missing', 'options'),
  [
    ('ref_log_prob_BT', dict(objective=policy.dapo())),
    ('old_log_prob_BT', dict()),
    ('sampler_log_prob_BT', dict()),
    ('step_logit_BT', dict(score_loss='spr')),
    ('step_logit_BT', dict(score_loss='bce')),
  ],
)
def test_an_input_of_no_term_may_be_absent(missing, options):
  rows = make_batch(np.float32)
  rows.pop(missing, None)
  _trace(rows, config(**options))


def test_a_needed_input_may_not_be_absent():
  for name, error in (
    ('ref_log_prob_BT', KeyError),
    ('lm_mask_BT', KeyError),
    ('score_weight_B', KeyError),
    ('sampler_log_prob_BT', UserError),  # truncated importance sampling
  ):
    rows = make_batch(np.float32)
    del rows[name]
    with pytest.raises(error):
      _trace(rows, EVERYTHING)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(score_loss='mse'), "loss='mse' is unknown; use one of spr, bce"),
    (
      dict(policy_coefficient=0, score_coefficient=0, lm_coefficient=0),
      'every loss term is switched off',
    ),
    (dict(num_micro_batches=0), 'num_micro_batches=0 must be at least 1'),
  ],
)
def test_bad_update_configs_are_named(options, message):
  with pytest.raises(UserError, match=message):
    step.UpdateConfig(**options)


def test_rows_that_do_not_divide_are_named():
  with pytest.raises(UserError, match='8 sequences do not divide into 3'):
    _trace(make_batch(np.float32), config(num_micro_batches=3))


def _rollout_batch(params):
  """Draws of the real sampler as a training batch, in float64."""
  P, N = 4, 4
  prompt, length = tiny.prompts(P)
  cfg = tiny.sampling_config()
  state = tiny.loop(cfg, tiny.EOS, N, params, prompt, length)
  drawn = tiny.finish(state, prompt, length, cfg)
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
    'temperature_B': np.ones(B),
    'policy_mask_BT': inside,
    'advantage_B': rng.normal(size=B),
    'sampler_log_prob_BT': on_rows(drawn.log_prob_PNR),
    'step_mask_BT': on_rows(drawn.step_mask_PNR),
    'correct_B': rng.random(B) < 0.5,
    'score_weight_B': drawn.finished_PN.reshape(B).astype(np.float64),
  }
  return batch, on_rows(drawn.step_logit_PNR)


@pytest.mark.parametrize('kind', ['spr', 'soft'])
def test_the_samplers_step_logits_weigh_as_fresh_ones_do(kind):
  """On-policy: what the decode loop recorded replaces a forward pass."""
  with jax.enable_x64(True):
    mconfig = tiny.model_config()
    params = naive.random_params(mconfig, seed=1)
    batch, step_logit_BT = _rollout_batch(params)
    assert batch['step_mask_BT'].sum() > 5
    cfg = step.UpdateConfig(
      objective=policy.grpo(kl_coefficient=0.0),
      score_loss=kind,
      num_micro_batches=2,
    )
    fresh, metrics = gradient(params, batch, cfg, mconfig)
    batch['step_logit_BT'] = step_logit_BT
    recorded, recorded_metrics = gradient(params, batch, cfg, mconfig)
    assert_trees_close(recorded, fresh, rtol=1e-9, atol=1e-13)
    assert_trees_close(recorded_metrics, metrics, rtol=1e-9, atol=1e-12)
    assert metrics['loss/score'] > 0
    # The only update of its rollout: ratio 1, nothing clipped, no mismatch.
    np.testing.assert_allclose(metrics['policy/ratio_mean'], 1, rtol=1e-12)
    assert metrics['policy/clip_fraction'] == 0
    np.testing.assert_allclose(
      metrics['policy/sampler_mismatch'], 0, atol=1e-10
    )


def _update(mconfig, sharder, shardings=None):
  return jax.jit(
    functools.partial(
      step.update,
      model_config=mconfig,
      opt_config=optimiser.OptimiserConfig(),
      config=config(score_loss='bce', num_micro_batches=2),
      sharder=sharder,
    ),
    donate_argnums=0,
    out_shardings=shardings and (shardings, None),
  )


def _fresh_state(mconfig):
  params = jax.tree.map(jnp.asarray, naive.random_params(mconfig))
  opt = jax.jit(functools.partial(optimiser.init, optimiser.OptimiserConfig()))(
    params
  )
  return {'params': params, 'opt': opt, 'step': jnp.zeros((), jnp.int32)}


def test_updates_donate_count_and_run_unchanged_on_a_mesh():
  """Two updates in float64: one device and fsdp 4 x tensor 2, donated."""
  rates = {'backbone': np.float64(1e-3), 'head': np.float64(1e-2)}
  with jax.enable_x64(True):
    mconfig = model_config(dropout=0.5)
    sharder = Sharder(make_mesh({'fsdp': 4, 'tensor': 2}))
    shardings = jax.tree.map(
      lambda x: x.sharding,
      state_lib.abstract_state(mconfig, optimiser.OptimiserConfig(), sharder),
    )
    batch = make_batch()
    alone = _fresh_state(mconfig)
    spread = jax.device_put(_fresh_state(mconfig), shardings)
    with warnings.catch_warnings():
      warnings.simplefilter('error')  # "donated buffers were not usable"
      one, many = (
        _update(mconfig, Sharder()),
        _update(mconfig, sharder, shardings),
      )
      for turn in range(2):
        old_alone, old_spread = alone, spread
        alone, metrics = one(alone, batch, rates, SEED)
        spread, spread_metrics = many(
          spread, sharder.put_batch(batch), rates, SEED
        )
        for old in (old_alone, old_spread):
          assert all(x.is_deleted() for x in jax.tree.leaves(old['params']))
          assert all(x.is_deleted() for x in jax.tree.leaves(old['opt']))
        assert int(alone['step']) == int(spread['step']) == turn + 1
        assert_trees_close(spread_metrics, metrics, rtol=1e-9, atol=1e-12)
    assert (
      jax.tree.map(lambda x: x.sharding, spread) == shardings
    )  # ready for the next update
    assert_trees_close(spread, alone, rtol=1e-7, atol=1e-9)


def test_a_new_step_is_a_new_dropout_mask():
  mconfig = model_config('float32', dropout=0.5)
  params = naive.random_params(mconfig)
  batch = make_batch(np.float32)
  cfg = config(policy_coefficient=0.0, lm_coefficient=0.0, score_loss='bce')
  program = jax.jit(
    functools.partial(
      step.gradient, model_config=mconfig, config=cfg, sharder=Sharder()
    )
  )
  losses = [
    float(program(params, batch, np.uint32(s), np.int32(t))[1]['loss/score'])
    for s, t in ((0, 0), (0, 0), (0, 1), (1, 0))
  ]
  assert losses[0] == losses[1]
  assert len(set(losses)) == 3


def test_a_state_is_created_in_its_shards():
  """Every leaf has its promised shape, dtype and sharding; zero moments."""
  mconfig = model_config('float32')
  opt = optimiser.OptimiserConfig()
  sharder = Sharder(make_mesh({'fsdp': 4, 'tensor': 2}))
  state = state_lib.init_state(mconfig, opt, 0, sharder)
  promised = state_lib.abstract_state(mconfig, opt, sharder)

  def check(got, want):
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert got.sharding.is_equivalent_to(want.sharding, got.ndim)
    assert np.isfinite(np.asarray(got)).all()

  jax.tree.map(check, state, promised)
  kernel = state['params']['high']['q_kernel']  # (1, D = 16, H = 4, h)
  assert kernel.addressable_shards[0].data.shape == (1, 4, 2, 4)
  assert 0.1 < np.std(kernel) < 0.5  # 1 / sqrt(16)
  for leaf in jax.tree.leaves(state['opt']):
    assert not np.asarray(leaf).any()
  assert int(state['step']) == 0
