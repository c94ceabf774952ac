"""Rows split over devices, in zig-zag order: nothing else changes."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import Layout
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder
from metastone_jax.training import optimiser, packing, places, step
from metastone_jax.training import state as state_lib
from tests import quick
from tests.model import naive
from tests.training import trajectories
from tests.training.batches import (
  SEED,
  STEP,
  assert_trees_close,
  gradient,
  model_config,
)


def _padded(objective, dtype, multiple):
  rows = trajectories.make_rows(objective, dtype)
  return packing.lay_out(
    trajectories.without_prompt_length(rows), None, multiple
  )


@pytest.mark.parametrize(
  ('objective', 'sizes'),
  [
    ('gspo', dict(data=2, sequence=2, tensor=2)),
    ('grpo', dict(fsdp=2, sequence=4)),
  ],
)
def test_split_rows_give_the_update_of_whole_rows(objective, sizes):
  """Loss, all gradients and all metrics; micro-batches; dropout on."""
  with jax.enable_x64(True):
    sharder = trajectories.mesh(**sizes)
    multiple = places.length_multiple(sharder)
    assert multiple == (4 if 'tensor' in sizes else 8)
    rows = _padded(objective, 'float64', multiple)
    trajectories.check(objective, 'float64', rows, sharder, num_micro_batches=2)


@pytest.mark.parametrize('objective', ['dr_grpo', 'dapo'])
def test_packed_rows_split_over_devices(objective):
  rows = trajectories.make_rows(objective, 'float32')
  moved, _, options = trajectories.packed(rows, 32, 4)
  sharder = trajectories.mesh(data=2, sequence=4)
  trajectories.check(objective, 'float32', moved, sharder, **options)


def test_log_probs_come_back_in_the_order_of_the_row():
  mconfig = model_config('float32')
  rows = _padded('grpo', 'float32', 8)

  def run(sharder):
    program = functools.partial(
      step.log_prob_pass,
      model_config=mconfig,
      num_micro_batches=2,
      sharder=sharder,
    )
    return jax.device_get(
      quick.jit(program)(
        trajectories.params('float32'), sharder.put_batch(rows)
      )
    )

  want, got = run(Sharder()), run(trajectories.mesh(fsdp=2, sequence=4))
  real = rows['segment_BT'] != 0
  for name, value in want.items():
    np.testing.assert_allclose(
      got[name][real], value[real], rtol=1e-5, atol=1e-5
    )


def test_a_length_that_cannot_be_split_is_named():
  sharder = trajectories.mesh(sequence=4, tensor=2)
  with pytest.raises(UserError, match='rows of 12 places.*a multiple of 8'):
    places.stored_layout(Layout(), sharder, 12)
  assert places.stored_layout(Layout(packed=True), sharder, 16) == Layout(
    packed=True, zigzag=4
  )
  assert places.length_multiple(trajectories.mesh(fsdp=8)) == 1


def test_hidden_states_stay_on_their_devices(monkeypatch):
  """No program moves a (B, T, D) array: only keys, values and parameters.

  Heads run in several chunks; chunks cut across devices would gather all.
  """
  monkeypatch.setattr('kernels.scoring_head.steps._CPU_CHUNK', 2)
  mconfig = dataclasses.replace(
    model_config('float32'), width=32, num_kv_heads=1, remat='full'
  )
  sharder = trajectories.mesh(fsdp=2, sequence=4)
  rows = _padded('grpo', 'float32', 32)
  state = state_lib.abstract_state(
    mconfig, optimiser.OptimiserConfig(), sharder
  )
  program = jax.jit(
    functools.partial(
      step.gradient,
      model_config=mconfig,
      config=trajectories.update_config('grpo', log_prob_chunk=2),
      sharder=sharder,
    )
  )
  compiled = program.lower(
    state['params'], sharder.put_batch(rows), SEED, STEP
  ).compile()
  found = re.findall(
    r'= \(?\w+\[([\d,]*)\].* (all-gather|all-to-all|all-reduce|'
    r'reduce-scatter|collective-permute)(?:-start)?\(',
    compiled.as_text(),
  )
  assert {'all-gather', 'all-reduce'} <= {kind for _, kind in found}
  local, T = len(rows['tokens_BT']) // 2, rows['tokens_BT'].shape[1]
  keys = local * T * mconfig.num_kv_heads * mconfig.head_width
  parameters = max(x.size for x in jax.tree.leaves(state['params']))
  largest = max(math.prod(map(int, s.split(','))) for s, _ in found if s)
  assert largest <= max(keys, parameters) < local * T * mconfig.width


def _packed_and_split(kernels: dict, base, config, rows):
  """The update with kernels in interpret mode, on 8 devices, packed."""
  # 256 places: 128 a device, the least that splash attention takes.
  moved, placement, options = trajectories.packed(rows, 256, 2)
  assert placement.sequence_BT.max() == len(rows['tokens_BT'])
  sharder = trajectories.mesh(data=2, sequence=2, tensor=2)
  return gradient(
    naive.random_params(base),
    sharder.put_batch(moved),
    dataclasses.replace(config, **options),
    dataclasses.replace(base, **kernels, interpret_kernels=True),
    sharder,
  )


@pytest.mark.parametrize(
  'kernels',
  [
    dict(
      attention='splash', token_log_prob='pallas_tpu', scoring_head='pallas_gpu'
    ),
    # The GPU's attention does no context parallelism.
    dict(
      attention='xla', token_log_prob='pallas_gpu', scoring_head='pallas_gpu'
    ),
  ],
  ids=['tpu', 'gpu'],
)
def test_kernels_packed_and_split_are_the_plain_update(kernels):
  """Every kernel at once, inside shard_map, against plain rows.

  The score head's is the GPU's in both: the TPU's takes bfloat16 alone.
  """
  base = dataclasses.replace(
    model_config('float32'),
    width=128,
    num_heads=2,
    num_kv_heads=1,
    head_width=128,
  )
  rows = trajectories.make_rows('grpo', 'float32')
  config = trajectories.update_config('grpo')
  want = gradient(
    naive.random_params(base),
    trajectories.without_prompt_length(rows),
    config,
    base,
  )
  got = _packed_and_split(kernels, base, config, rows)
  assert_trees_close(got, want, rtol=1e-4, atol=1e-4)


def _largest(tree) -> float:
  return max(np.abs(x).max() for x in jax.tree.leaves(tree))


def test_score_head_of_a_tpu_packed_and_split():
  """bfloat16 is all that it does: against the plain form in bfloat16."""
  base = dataclasses.replace(
    model_config('float32'),
    width=128,
    num_heads=2,
    num_kv_heads=1,
    head_width=64,
    dtype='bfloat16',
  )
  rows = trajectories.make_rows('grpo', 'float32')
  config = trajectories.update_config('grpo')
  want, got = (
    _packed_and_split(
      dict(attention='xla', token_log_prob='xla', scoring_head=kind),
      base,
      config,
      rows,
    )
    for kind in ('xla', 'pallas_tpu')
  )
  # Rounding of each mark's gradient, which the kernel does not round.
  head = want[0]['score_head']
  assert _largest(head) > 0.01
  # Masters are float32, and so are their gradients: sums are not rounded.
  kernel = head['hidden_kernel']
  assert (kernel != kernel.astype(jnp.bfloat16).astype(np.float32)).any()
  assert_trees_close(
    got[0]['score_head'], head, rtol=2**-8, atol=2**-8 * _largest(head)
  )
  assert_trees_close(got, want, rtol=2**-6, atol=2**-6 * _largest(want[0]))
