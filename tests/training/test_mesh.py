"""The step on 8 fake devices, its state really split, against one device."""

import dataclasses
import functools
import warnings

import jax
import numpy as np

from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.training import optimiser, step
from metastone_jax.training import state as state_lib
from tests import quick
from tests.model import naive
from tests.training.batches import (
  EVERYTHING,
  SEED,
  assert_trees_close,
  gradient,
  make_batch,
  model_config,
)

OPTIMISER = optimiser.OptimiserConfig()
PIECES = dataclasses.replace(EVERYTHING, num_micro_batches=2)


def test_float32_gradients_of_a_three_axis_mesh_equal_one_device():
  mconfig = model_config('float32')
  sharder = Sharder(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  state = state_lib.abstract_state(mconfig, OPTIMISER, sharder)
  params = naive.random_params(mconfig)
  sharded = jax.device_put(
    params, jax.tree.map(lambda x: x.sharding, state['params'])
  )
  # Really split: (1, D = 16, F = 24) over fsdp and tensor.
  kernel = sharded['low']['gate_kernel']
  assert kernel.addressable_shards[0].data.shape == (1, 8, 12)
  batch = make_batch(np.float32)
  alone = gradient(params, batch, EVERYTHING, mconfig)
  spread = gradient(
    sharded, sharder.put_batch(batch), EVERYTHING, mconfig, sharder
  )
  assert_trees_close(spread, alone, rtol=1e-5, atol=1e-5)


def _update(mconfig, sharder, shardings=None):
  return quick.jit(
    functools.partial(
      step.update,
      model_config=mconfig,
      opt_config=OPTIMISER,
      config=PIECES,
      sharder=sharder,
    ),
    donate_argnums=0,
    out_shardings=shardings and (shardings, None),
  )


def _fresh_state(mconfig):
  """On the host: random parameters, zero moments."""
  params = naive.random_params(mconfig)
  opt = jax.eval_shape(functools.partial(optimiser.init, OPTIMISER), params)
  opt = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), opt)
  return {'params': params, 'opt': opt, 'step': np.int32(0)}


def test_updates_are_donated_and_run_unchanged_on_a_mesh():
  """Two updates in float64: one device, and fsdp 4 x tensor 2."""
  rates = {'backbone': np.float64(1e-3), 'head': np.float64(1e-2)}
  with jax.enable_x64(True):
    mconfig = model_config()
    sharder = Sharder(make_mesh({'fsdp': 4, 'tensor': 2}))
    shardings = jax.tree.map(
      lambda x: x.sharding,
      state_lib.abstract_state(mconfig, OPTIMISER, sharder),
    )
    batch = make_batch()
    alone = jax.device_put(_fresh_state(mconfig))
    spread = jax.device_put(_fresh_state(mconfig), shardings)
    one = _update(mconfig, Sharder())
    many = _update(mconfig, sharder, shardings)
    for turn in range(2):
      old = alone, spread
      with warnings.catch_warnings():
        warnings.simplefilter('error')  # "donated buffers were not usable"
        alone, metrics = one(alone, batch, rates, SEED)
        spread, spread_metrics = many(
          spread, sharder.put_batch(batch), rates, SEED
        )
      for leaf in jax.tree.leaves(old):
        assert leaf.is_deleted()
      assert int(alone['step']) == int(spread['step']) == turn + 1
      assert_trees_close(spread_metrics, metrics, rtol=1e-9, atol=1e-12)
      if turn == 0:
        # The first moments are the clipped gradients, times 1 - b1.
        assert_trees_close(spread['opt'], alone['opt'], rtol=1e-9, atol=1e-13)
      assert_trees_close(spread, alone, rtol=1e-7, atol=1e-9)
    # Ready for the next update, and really split: (1, D = 16, F = 24).
    assert jax.tree.map(lambda x: x.sharding, spread) == shardings
    for leaf in (
      spread['params']['low']['gate_kernel'],
      spread['opt']['backbone'][1].mu['low']['gate_kernel'],
    ):
      assert leaf.addressable_shards[0].data.shape == (1, 4, 12)
    head = spread['opt']['head'][1].nu['hidden_kernel']  # (16, 32)
    assert head.addressable_shards[0].data.shape == (4, 16)


def test_a_state_is_created_in_its_shards():
  """Every leaf has its promised shape, dtype and sharding; zero moments."""
  mconfig = model_config('float32')
  sharder = Sharder(make_mesh({'fsdp': 4, 'tensor': 2}))
  state = state_lib.init_state(mconfig, OPTIMISER, 0, sharder)
  promised = state_lib.abstract_state(mconfig, OPTIMISER, sharder)

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
