"""Decode attention: forms without a kernel, plans of work, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

from kernels.decode_attention import (
  Split,
  choose,
  decode_attention,
  masks,
  pallas_gpu,
  pallas_tpu,
  reference,
  work,
  xla,
)
from kernels.decode_attention import tiles as tiles_lib
from tests import quick
from tests.kernels import decode_attention_cases as cases

GROUPS = {
  'equal': (3, 3),
  'ragged': (0, 5, 1, 0),
  'one': (1,),
  'large': (37,),  # more than a tile, and no multiple of anything
}


@pytest.mark.parametrize('name', GROUPS)
def test_xla_and_reference_are_the_loop(name):
  arrays, prompt_B = cases.make(GROUPS[name], 7, 9, 2, 3, 4)
  want = cases.want(arrays, prompt_B)
  with jax.enable_x64(True):
    arrays = tuple(map(jnp.asarray, arrays))
    got = {
      'reference': quick.jit(reference.decode_attention)(*arrays, prompt_B),
      'ragged': quick.jit(lambda *x: decode_attention(*x[:-1], prompt_B=x[-1]))(
        *arrays, prompt_B
      ),
    }
    if len(set(GROUPS[name])) == 1:
      got['equal'] = quick.jit(decode_attention)(*arrays)
  for form, out in got.items():
    assert out.dtype == jnp.float64, form
    np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-13, err_msg=form)


def test_empty_shapes():
  """No slot; no own position; float32 through the kernels too."""
  arrays, prompt_B = cases.make((2, 2), 7, 3, 2, 2, 16)
  arrays = [np.asarray(x, np.float32 if x.dtype == float else bool)
            for x in arrays]  # fmt: skip
  none = [x if name.startswith('prompt') else x[:0]
          for name, x in zip(cases.NAMES, arrays, strict=True)]  # fmt: skip
  assert decode_attention(*none).shape == (0, 4, 16)
  arrays[3], arrays[4] = arrays[3][..., :0], arrays[4][:, :, :0]
  arrays[6] = arrays[6][:, :0]
  want = cases.want(arrays, prompt_B)
  for kind in ('xla', 'pallas_tpu', 'pallas_gpu'):
    got = quick.jit(
      functools.partial(decode_attention, kind=kind, interpret=True)
    )(*arrays)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=kind)


_SLOTS, _PROMPTS = 12, 4  # fixed, so that a program is compiled once


@functools.cache
def _tiles(limit: int, equal: bool):
  def make(prompt_B):
    tiles = tiles_lib.make(None if equal else prompt_B, _SLOTS, _PROMPTS, limit)
    x_B, x_P = jnp.arange(_SLOTS) * 10, jnp.arange(_PROMPTS)
    return (
      tiles.prompt_T,
      tiles.count_T,
      tiles.slot_TN,
      tiles.place_B,
      tiles.scatter(tiles.gather(x_B)),
      tiles.prompts(x_P),
    )

  return quick.jit(make)


def _check_tiles(prompt_B, limit: int, equal: bool):
  prompt_T, count_T, slot_TN, place_B, there_and_back, prompts = map(
    np.asarray, _tiles(limit, equal)(prompt_B)
  )
  T, N = slot_TN.shape
  assert limit >= N
  held = [
    (prompt_T[t], slot_TN[t, n], t * N + n)
    for t in range(T)
    for n in range(count_T[t])
  ]
  held.sort(key=lambda one: one[1])
  assert [slot for _, slot, _ in held] == list(range(_SLOTS))
  assert [prompt for prompt, _, _ in held] == list(prompt_B)
  assert [place for _, _, place in held] == list(place_B)
  # Places without a slot of their own repeat one of the same prompt.
  used_T = count_T > 0
  np.testing.assert_array_equal(
    np.array(prompt_B)[slot_TN][used_T],
    np.repeat(prompt_T[:, None], N, axis=1)[used_T],
  )
  groups = np.bincount(prompt_B, minlength=_PROMPTS)
  assert (count_T > 0).sum() == sum(-(-groups // N))
  np.testing.assert_array_equal(there_and_back, np.arange(_SLOTS) * 10)
  np.testing.assert_array_equal(prompts, prompt_T)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  st.lists(st.integers(0, _PROMPTS - 1), min_size=_SLOTS, max_size=_SLOTS),
  st.sampled_from([1, 5, 32]),
)
def test_tiles_hold_every_slot_once(prompt_B, limit):
  _check_tiles(np.array(prompt_B, np.int32), limit, equal=False)


@pytest.mark.parametrize('limit', [1, 2, 3, 32])
def test_tiles_of_equal_groups(limit):
  prompt_B = np.repeat(np.arange(_PROMPTS, dtype=np.int32), 3)
  _check_tiles(prompt_B, limit, equal=True)


def test_tile_sizes():
  size = tiles_lib.size
  assert size(32, 4, equal=True) == 8
  assert size(64, 1, equal=True) == 32
  assert size(37, 1, equal=True) == 19
  assert size(32, 4, equal=False) == 16
  assert size(32, 32, equal=False) == 8
  assert size(512, 8, equal=False) == 32
  assert size(3, 3, equal=False) == 3


_work = quick.jit(functools.partial(work.make, max_blocks=4))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  st.lists(st.integers(0, 4), min_size=7, max_size=7)
  | st.lists(st.integers(0, 4), min_size=1, max_size=1)
)
def test_work_list_has_every_block_once_and_nothing_else(counts):
  firsts = np.arange(len(counts), dtype=np.int32) % 4
  found = jax.device_get(_work(firsts, np.array(counts, np.int32)))
  np.testing.assert_array_equal(found.first_U, firsts)
  start = found.start_C.tolist()
  total = sum(max(count, 1) for count in counts)
  assert start[0] == 0
  assert start[-1] == total
  steps = [work.unpack(int(x)) for x in found.step_W[:total]]
  assert steps == [(u, b) for u, c in enumerate(counts) for b in range(c or 1)]
  # What is fetched: every block once, in order, and at an empty unit nothing
  # new (before the first block, the very first of all).
  fetched = [work.unpack(int(x)) for x in found.fetch_W[:total]]
  real = [(u, b) for u, c in enumerate(counts) for b in range(c)]
  changes = [x for i, x in enumerate(fetched) if i == 0 or x != fetched[i - 1]]
  assert [x for x in changes if x in real] == real
  assert len(changes) <= len(real) + 1
  for step, fetch in zip(steps, fetched, strict=True):
    assert fetch == step or counts[step[0]] == 0
  # Two cores: neither idle, cut between units, as even as units allow.
  assert int(found.longest) == max(np.diff(start))
  if len(counts) > 1:
    assert len(start) == 3 and min(np.diff(start)) > 0
    assert steps[start[1]][1] == 0
    assert int(found.longest) <= total / 2 + max(max(counts), 1)


_blocks = quick.jit(functools.partial(masks.blocks_to_read, block=3))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=14, max_size=14))
def test_a_ring_of_blocks_is_read_over_its_shortest_run(valid):
  """Five blocks, the last one shorter; a row from its front on is as ever."""
  used = {place // 3 for place, x in enumerate(valid) if x}
  runs = [
    (length, first)
    for length in range(6)
    for first in range(5)
    if used <= {(first + i) % 5 for i in range(length)}
  ]
  first, count = (int(x[0]) for x in _blocks(np.array([valid])))
  assert count == min(runs)[0]
  assert (count, first) in runs
  if count:
    assert first in used
  if used == set(range(len(used))):
    assert first == 0


def test_block_sizes():
  """At least 1 MiB of keys and values a step, where the cache is that long."""
  block = functools.partial(pallas_tpu.block_size, width=128, itemsize=2)
  heads = {'1.5b': (2, 6), '7b': (4, 7), '32b, tensor 4': (2, 5), '32b': (8, 5)}
  for K, G in heads.values():
    for positions in (2048, 8192, 32768):
      for rows in (-(-G // 8) * 8, 32 * 8):
        size = block(positions, K, rows=rows)
        step = 2 * size * K * 128 * 2
        assert size % 128 == 0 and step == 2**20
        # Double buffers, mask, scores and weights of a head, accumulators.
        vmem = 2 * step + 2 * 8 * size * 4
        vmem += 4 * rows * size * 4 + 6 * K * rows * 128 * 4
        assert vmem <= pallas_tpu._VMEM_BYTES
  assert block(300, 2, rows=8) == 300  # short: all at once
  assert block(300, 32, rows=8) == 128


def test_shares_fill_the_gpu_and_leave_no_one_idle():
  shares = pallas_gpu.num_shares
  assert shares(32, 2, 6, 8192) == 8
  assert shares(24, 2, 5, 32768) == 11
  assert shares(512, 8, 5, 32768) == 1
  assert shares(4, 2, 48, 2048) == 22  # not 66: partial results cost bytes
  assert shares(1, 1, 1, 10) == 1
  for count in range(12):
    for n in (1, 3, 8):
      ends = [pallas_gpu._share(count, s, n) for s in range(n)]
      blocks = [b for begin, end in ends for b in range(begin, end)]
      assert blocks == list(range(count))
      assert max(end - begin for begin, end in ends) == -(-count // n)


def test_auto_picks_by_platform_and_shape():
  big = dict(head_width=128, dtype=jnp.bfloat16, cache_bytes=2**28)
  assert choose('auto', platform='tpu', **big) == 'pallas_tpu'
  assert choose('auto', platform='gpu', **big) == 'pallas_gpu'
  assert choose('auto', platform='other', **big) == 'xla'
  assert choose('auto', platform='cpu', **big) == 'xla'
  for change in (
    {'cache_bytes': 2**24},
    {'dtype': jnp.float32},
    {'head_width': 24},
  ):
    for platform in ('tpu', 'gpu'):
      assert choose('auto', platform=platform, **{**big, **change}) == 'xla'
  assert choose('pallas_gpu', platform='cpu', **big) == 'pallas_gpu'
  with pytest.raises(ValueError, match='triton.*use one of auto'):
    choose('triton', platform='cpu', **big)


def _abstract(P=2, B=4, H=4, K=2, h=16, S=8, R=8, dtype=jnp.float32):
  x = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
  return [
    x((B, H, h)),
    x((P, K, h, S)),
    x((P, K, S, h)),
    x((B, K, h, R)),
    x((B, K, R, h)),
    jax.ShapeDtypeStruct((P, S), bool),
    jax.ShapeDtypeStruct((B, R), bool),
  ]


@pytest.mark.parametrize(
  'kind, shapes, message',
  [
    ('pallas_tpu', dict(dtype=jnp.float16), 'one dtype.*float16.*xla'),
    ('pallas_gpu', dict(dtype=jnp.float16), 'one dtype.*float16.*xla'),
    ('pallas_gpu', dict(h=24), 'width.*24.*xla'),
    ('pallas_gpu', dict(H=512), 'got 256.*xla'),
    ('pallas_tpu', dict(B=8192, P=1, R=65536), '8192 x 16.*scalar memory'),
    ('xla', dict(H=3), '2 key/value heads do not divide 3'),
    ('xla', dict(B=3), '3 slots are no equal groups of 2.*prompt_B'),
    ('xla', dict(S=0), 'at least one position'),
  ],
)
def test_what_cannot_be_done_is_refused(kind, shapes, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      functools.partial(decode_attention, kind=kind), *_abstract(**shapes)
    )


@pytest.mark.parametrize('index', range(1, 7))
def test_shapes_that_do_not_fit_are_named(index):
  arrays = _abstract()
  shape = (*arrays[index].shape[:-1], 5)
  arrays[index] = jax.ShapeDtypeStruct(shape, arrays[index].dtype)
  with pytest.raises(ValueError, match='has shape'):
    jax.eval_shape(decode_attention, *arrays)


def test_splits_that_do_not_fit_are_named():
  mesh = _mesh()
  for split, shapes, message in (
    (Split(mesh, length=('tensor',)), {}, 'not split by position'),
    (Split(mesh, batch=('data', 'fsdp')), dict(P=2), '2 prompts.*4 devices'),
    (Split(mesh, heads=('tensor',)), dict(K=1), '1 key/value.*2 devices'),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(
        functools.partial(decode_attention, split=split), *_abstract(**shapes)
      )


def test_differentiation_is_an_error():
  """Through every floating argument, backward and forward mode."""
  arrays, _ = cases.make((2, 2), 5, 4, 2, 2, 8)

  def loss(x, i):
    return decode_attention(*arrays[:i], x, *arrays[i + 1 :]).sum()

  for i in range(5):
    with pytest.raises(NotImplementedError, match='has no gradient'):
      jax.grad(loss)(arrays[i], i)
  with pytest.raises(NotImplementedError, match='has no gradient'):
    jax.jvp(jax.jit(lambda q: loss(q, 0)), arrays[:1], arrays[:1])


def _mesh() -> Mesh:
  return Mesh(
    np.array(jax.devices()).reshape(2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
  )


@pytest.mark.parametrize('ragged', [False, True])
@pytest.mark.parametrize('kind', ['xla', 'pallas_tpu', 'pallas_gpu'])
def test_split_over_devices_is_the_loop(kind, ragged):
  """Slots and prompts over data x fsdp, heads over tensor: 8 devices."""
  # Two prompts a device, four slots: prompt_B counts from 0 on each device.
  counts = (3, 1, 0, 4, 2, 2, 4, 0) if ragged else (2,) * 8
  arrays, prompt_B = cases.make(counts, 6, 5, 2, 2, 16)
  arrays = [
    jnp.asarray(x, jnp.float32 if x.dtype == float else bool) for x in arrays
  ]
  split = Split(_mesh(), batch=('data', 'fsdp'), heads=('tensor',))
  local_B = jnp.asarray(prompt_B % 2) if ragged else None
  got = quick.jit(
    functools.partial(decode_attention, kind=kind, split=split, interpret=True)
  )(*arrays, prompt_B=local_B)
  assert len(got.sharding.device_set) == 8
  np.testing.assert_allclose(
    got, cases.want(arrays, prompt_B), rtol=2e-5, atol=2e-6
  )


def test_xla_reads_a_prompt_once_however_large_its_group():
  """One product a prompt, no copy of it: groups are static."""
  text = jax.jit(xla.decode_attention, static_argnums=7).lower(
    *_abstract(B=80), None
  ).as_text()  # fmt: skip
  assert 'tensor<2x40x' in text and 'gather' not in text
