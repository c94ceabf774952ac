"""The kernels of decode attention, interpreted, against a float64 loop.

Blocks are small here, so that short caches have several of them.
"""

import contextlib
import functools
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from kernels.decode_attention import (
  decode_attention,
  pallas_gpu,
  pallas_tpu,
  step_tpu,
)
from kernels.decode_attention import tiles as tiles_lib
from tests import quick
from tests.kernels import decode_attention_cases as cases

# `InterpretParams` models memories, copies and uninitialised bits.
RUNS = {
  'tpu': dict(kind='pallas_tpu', interpret=True),
  'tpu_memory': dict(kind='pallas_tpu', interpret=pltpu.InterpretParams()),
  'gpu': dict(kind='pallas_gpu', interpret=True),
}
TOLERANCE = {'float32': 3e-6, 'bfloat16': 2e-2}

# name: counts, S, R, K, G, h, dtype, sharpness of the softmax. A TPU block is
# 128 positions here, a GPU block 16.
SHAPES = {
  'whole_blocks': ((2, 2), 128, 256, 2, 3, 16, 'float32', 1),
  'ragged': ((0, 5, 1, 0, 3), 200, 300, 2, 2, 32, 'float32', 1),
  'bfloat16': ((1, 4), 150, 260, 1, 7, 64, 'bfloat16', 1),
  'sharp': ((5,), 130, 300, 1, 1, 16, 'float32', 40),
  'tiny': ((1, 1, 1), 3, 1, 3, 1, 16, 'float32', 1),
}


@contextlib.contextmanager
def small_blocks():
  """Several blocks in short caches, several shares, several tiles a prompt."""
  with (
    mock.patch.object(pallas_tpu, '_STEP_BYTES', 1),
    mock.patch.object(pallas_gpu, 'BLOCK', 16),
    mock.patch.object(pallas_gpu, '_PROGRAMS', 40),
    mock.patch.object(tiles_lib, 'MAX_SIZE', 4),
    mock.patch.object(tiles_lib, '_MIN_SIZE', 2),
    # The default of an argument is bound when the function is made.
    mock.patch.object(tiles_lib.make, '__defaults__', (4,)),
    mock.patch.object(tiles_lib.size, '__defaults__', (4,)),
  ):
    yield


def _cast(arrays, dtype):
  return tuple(
    jnp.asarray(x, bool if x.dtype == bool else dtype) for x in arrays
  )


@functools.cache
def _case(name):
  """(arrays as the kernels get them, prompt_B, what must come out)."""
  *shape, dtype, sharpness = SHAPES[name]
  arrays, prompt_B = cases.make(*shape, sharpness=sharpness)
  arrays = _cast(arrays, dtype)
  exact = [np.asarray(x.astype('float32') if x.dtype != bool else x)
           for x in arrays]  # fmt: skip
  return arrays, prompt_B, cases.want(exact, prompt_B)


def _run(arrays, prompt_B, run):
  with small_blocks():
    out = quick.jit(
      lambda *x: decode_attention(*x[:7], prompt_B=x[7], **RUNS[run])
    )(*arrays, prompt_B)
    assert out.dtype == arrays[0].dtype
    return np.asarray(out.astype('float32'))


def _compare(got, want, dtype, sharpness=1):
  """Scores of n carry errors of n roundings, and so do their exponentials."""
  assert np.isfinite(got).all()
  tolerance = TOLERANCE[dtype] * sharpness
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('run', RUNS)
@pytest.mark.parametrize('name', SHAPES)
def test_kernel_is_the_loop(name, run):
  arrays, prompt_B, want = _case(name)
  _compare(_run(arrays, prompt_B, run), want, *SHAPES[name][6:])


@pytest.mark.parametrize(
  'name, run',
  [('whole_blocks', 'tpu_memory'), ('sharp', 'tpu'), ('sharp', 'gpu')],
)
def test_equal_groups_need_no_prompt_of_each_slot(name, run):
  """One tile a group; two of three places for a group of five."""
  arrays, _, want = _case(name)
  _compare(_run(arrays, None, run), want, *SHAPES[name][6:])


_ANY = 160, 150, 1, 2, 16  # S, R, K, G, h, of six slots of four prompts


@functools.cache
def _compiled(run):
  arrays, prompt_B = cases.make((3, 1, 0, 2), *_ANY)
  with small_blocks():
    return (
      quick.jit(lambda *x: decode_attention(*x[:7], prompt_B=x[7], **RUNS[run]))
      .lower(*_cast(arrays, 'float32'), prompt_B)
      .compile()
    )


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
  st.lists(st.integers(0, 3), min_size=6, max_size=6),
  st.integers(0, 2**16),
)
@pytest.mark.parametrize('run', ['tpu', 'gpu'])
@pytest.mark.parametrize('own', ['nothing', 'everything', 'random', 'ring'])
def test_any_grouping_any_lengths(own, run, prompts, seed):
  """Groups of 0 to 6 slots in any order; caches empty, full, or with holes.

  Or they begin anywhere and go on at the front. Outside the blocks that hold
  something the caches are NaN: nothing there may be read, and a slot that has
  written nothing reads nothing at all.
  """
  counts = np.bincount(prompts, minlength=4).tolist()
  arrays, _ = cases.make(counts, *_ANY, seed=seed)
  prompt_B = np.array(prompts, np.int32)
  q, prompt_k, prompt_v, own_k, own_v, prompt_valid, own_valid = arrays
  if own == 'ring':
    B, R = own_valid.shape
    begin_B1, length_B1 = np.random.default_rng(seed).integers(
      [[0], [1]], [[R], [R // 2]], size=(2, B)
    )[..., None]
    own_valid[:] = (np.arange(R) - begin_B1) % R < length_B1
  elif own != 'random':
    own_valid[:] = own == 'everything'
  want = cases.want(arrays, prompt_B)
  block = {'tpu': 128, 'gpu': 16}[run]
  for k, v, valid in (
    (prompt_k, prompt_v, prompt_valid),
    (own_k, own_v, own_valid),
  ):
    for row in range(len(valid)):
      used = np.unique(np.flatnonzero(valid[row]) // block)
      # Holes between blocks in use may be read, a ring's are outside.
      if own != 'ring' and len(used):
        used = np.arange(used[-1] + 1)
      unread = ~np.isin(np.arange(valid.shape[1]) // block, used)
      k[row][..., unread] = v[row][:, unread] = np.nan
  got = np.asarray(_compiled(run)(*_cast(arrays, 'float32'), prompt_B))
  _compare(got, want, 'float32')


@pytest.mark.parametrize('run', ['tpu', 'gpu'])
def test_a_program_gives_the_same_bits_each_time(run):
  arrays, prompt_B = cases.make((3, 1, 0, 2), *_ANY, seed=1)
  outs = [
    np.asarray(_compiled(run)(*_cast(arrays, 'float32'), prompt_B))
    for _ in range(2)
  ]
  np.testing.assert_array_equal(*outs)


def _no_rescaling(scores, top, total, step=step_tpu._softmax_step):
  weight, factor, top, total = step(scores, top, total)
  return weight, jnp.ones_like(factor), top, total


def _no_mask_tpu(q, k, valid, scale, precision, scores=step_tpu._scores):
  return scores(q, k, jnp.ones_like(valid), scale, precision)


def _no_mask_gpu(q, k, valid, scale, precision, scores=pallas_gpu._scores):
  return scores(q, k, jnp.ones_like(valid), scale, precision)


def _first_of_tile(places, blocks, maps=step_tpu.index_maps):
  """Every slot goes on from the result of its tile's first place."""
  *rest, before = maps(places, blocks)
  return *rest, lambda *args: (*before(*args)[:2], 0, 0, 0)


def _next_values(places, blocks, maps=step_tpu.index_maps):
  """Values of the first block, always."""
  unit, keys, values, *rest = maps(places, blocks)
  return unit, keys, lambda *args: (*values(*args)[:2], 0, 0), *rest


def _one_block_less(valid, block, blocks=pallas_tpu._blocks):
  mask, first, count = blocks(valid, block)
  return mask, first, jnp.maximum(count - 1, 0)


def _share_less(count, share, shares, of=pallas_gpu._share):
  begin, end = of(count, share, shares)
  return begin, jnp.maximum(end - 1, begin)


def _merge_by_mean(out, log_total, merge=pallas_gpu._merge):
  return merge(out, jnp.zeros_like(log_total))


def _wrong_prompt(*args, make=tiles_lib.make):
  tiles = make(*args)
  return tiles_lib.Tiles(
    **{
      **vars(tiles),
      'prompt_T': jnp.roll(tiles.prompt_T, 1),
      'whole': False,
    }
  )


MUTANTS = {
  'no rescaling': ('tpu', step_tpu, '_softmax_step', _no_rescaling),
  'no mask': ('tpu', step_tpu, '_scores', _no_mask_tpu),
  'bits past the end': (
    'tpu',
    step_tpu,
    '_inside',
    lambda v, first, positions: v,
  ),
  'first of its tile': ('tpu', step_tpu, 'index_maps', _first_of_tile),
  'first values': ('tpu', step_tpu, 'index_maps', _next_values),
  'a block less': ('tpu', pallas_tpu, '_blocks', _one_block_less),
  'another prompt': ('tpu', tiles_lib, 'make', _wrong_prompt),
  'no mask, GPU': ('gpu', pallas_gpu, '_scores', _no_mask_gpu),
  'a block a share less': ('gpu', pallas_gpu, '_share', _share_less),
  'mean of shares': ('gpu', pallas_gpu, '_merge', _merge_by_mean),
  'another prompt, GPU': ('gpu', tiles_lib, 'make', _wrong_prompt),
}


@pytest.mark.parametrize('name', MUTANTS)
def test_a_broken_kernel_is_found(name):
  run, module, attribute, mutant = MUTANTS[name]
  # Only a sharp softmax has a maximum that moves by much.
  case = 'sharp' if mutant is _no_rescaling else 'ragged'
  arrays, prompt_B, want = _case(case)
  with mock.patch.object(module, attribute, mutant):
    with pytest.raises(AssertionError):
      _compare(_run(arrays, prompt_B, run), want, *SHAPES[case][6:])
