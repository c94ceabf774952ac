"""Decode attention on TPUs: one flash kernel, called for each of two parts.

    prompt part: units = tiles of slots, keys and values = their prompt's
    own part:    units = slots, keys and values = their own; goes on from the
                 prompt part's result, as if that were one more block

A step takes one block of positions of ALL key/value heads, 1 MiB of keys and
values where the cache is that long, so that fetching the next hides what a
step costs. Steps come from a list made before (work.py): blocks outside the
run that holds anything valid (masks.py: rows of columns are rings) are neither
fetched nor visited, and the prompt is read once a tile, not once a slot.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import precision as precision_lib
from kernels.decode_attention import masks, step_tpu
from kernels.decode_attention import tiles as tiles_lib
from kernels.decode_attention import work as work_lib

LANES = 128
SUBLANES = 8
# Keys and values of a step: takes 0.4 us to fetch on v5p and 1.3 on v5e.
_STEP_BYTES = 2**20
# Scores of a step and key/value head, float32: they and their exponentials are
# temporaries of the kernel.
_SCORE_BYTES = 2**20
# What the compiler gives a kernel anyway; the largest tile (32 slots) compiles
# with half of it.
_VMEM_BYTES = 16 * 2**20
# Of 1 MiB of scalar memory (lists of 1,000 KiB compile for all four families).
_SMEM_BYTES = 640 * 2**10


def block_size(
  positions: int, heads: int, width: int, rows: int, itemsize: int
) -> int:
  """Positions of a block: 128 x a power of two, or all there are.

  Args:
    positions: of the cache.
    heads: K, all in one block.
    width: h.
    rows: queries of a key/value head and unit.
    itemsize: of keys and values, in bytes.
  """
  block = LANES
  while (
    2 * block * 2 * heads * width * itemsize <= _STEP_BYTES
    and 2 * block * rows * 4 <= _SCORE_BYTES
  ):
    block *= 2
  return min(block, positions)


def _rows(queries: int) -> int:
  """Queries of a key/value head rounded up to whole tiles of 8 sublanes."""
  return -(-queries // SUBLANES) * SUBLANES


def check(q_BHh, prompt_k_PKhS, own_k_BKhR, prompt_B) -> None:
  """Raises ValueError where the kernel cannot do these shapes."""
  B, H, h = q_BHh.shape
  P, K, _, S = prompt_k_PKhS.shape
  R = own_k_BKhR.shape[3]
  N = tiles_lib.size(B, P, prompt_B is None)
  T = tiles_lib.bound(B, P, N)
  itemsize = q_BHh.dtype.itemsize
  for name, units, rows, positions in (
    ('prompt', T, N * _rows(H // K), S),
    ('own', B, _rows(H // K), R),
  ):
    block = block_size(positions, K, h, rows, itemsize)
    blocks = -(-positions // block)
    listed = 4 * (2 * units * blocks + 4 * units)
    if listed > _SMEM_BYTES or blocks > work_lib.MAX_BLOCKS:
      raise ValueError(
        f"decode_attention kind 'pallas_tpu': the list of {units} x {blocks} "
        f'blocks ({units} {"tiles" if name == "prompt" else "slots"}, {name} '
        f'caches of {positions} positions) does not fit the scalar memory; '
        "use fewer slots or shorter caches a device, or kind='xla'"
      )


def _part(
  q_UKMh: jax.Array,
  k_XKhC: jax.Array,
  v_XKCh: jax.Array,
  valid_X1C: jax.Array,
  run_U: tuple[jax.Array, jax.Array],
  row_U: jax.Array,
  block: int,
  *,
  interpret,
  before: tuple[jax.Array, jax.Array, jax.Array] | None = None,
):
  """Softmax attention of U units, each against one row of the caches.

  Args:
    q_UKMh: M queries of each key/value head and unit.
    k_XKhC: keys of X rows, C positions.
    v_XKCh: values.
    valid_X1C: int32, not 0 where a position may be read; C rounded up to whole
      blocks.
    run_U: int32, the first block to read and how many, 0 = none.
    row_U: int32, the row of each unit.
    block: positions of a block.
    interpret: as `pallas_call` takes it.
    before: what the softmax goes on from: float32 out_TKNMh, its
      log-denominator_TKNM1 and place_U, t * N + n of each unit.

  Returns:
    out_UKMh; without `before` in float32 and with its log-denominator_UKM1,
    with it in the dtype of the queries.
  """
  U, K, M, h = q_UKMh.shape
  C, itemsize = k_XKhC.shape[3], k_XKhC.dtype.itemsize
  blocks = -(-C // block)
  work = work_lib.make(*run_U, blocks)
  goes_on = before is not None
  place_U = before[2] if goes_on else jnp.zeros((1,), jnp.int32)
  places = before[0].shape[2] if goes_on else 1
  of_unit, of_keys, of_values, of_mask, of_before = step_tpu.index_maps(
    places, blocks
  )
  in_specs = [
    pl.BlockSpec((1, K, M, h), of_unit),
    pl.BlockSpec((1, K, h, block), of_keys),
    pl.BlockSpec((1, K, block, h), of_values),
    pl.BlockSpec((1, 1, block), of_mask),
  ]
  inputs = [q_UKMh, k_XKhC, v_XKCh, valid_X1C]
  out_specs = [pl.BlockSpec((1, K, M, h), of_unit)]
  dtype = q_UKMh.dtype if goes_on else jnp.float32
  out_shape = [jax.ShapeDtypeStruct((U, K, M, h), dtype)]
  if goes_on:
    in_specs += [
      pl.BlockSpec((1, K, 1, M, width), of_before) for width in (h, 1)
    ]
    inputs += before[:2]
  else:
    out_specs += [pl.BlockSpec((1, K, M, 1), of_unit)]
    out_shape += [jax.ShapeDtypeStruct((U, K, M, 1), jnp.float32)]
  cells = U * K * M * C
  bytes_accessed = (
    2 * U * K * C * h * itemsize + 4 * U * C + 2 * U * K * M * h * itemsize
  )
  found = pl.pallas_call(
    functools.partial(
      step_tpu.kernel,
      positions=C,
      blocks=blocks,
      scale=h**-0.5,
      precision=precision_lib.of_products(k_XKhC.dtype),
      goes_on=goes_on,
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=7,
      grid=(work.cores, work.longest),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[
        pltpu.VMEM((K, M, width), jnp.float32) for width in (h, 1, 1)
      ],
    ),
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=_VMEM_BYTES,
    ),
    # At most: what a cache holds is known only at run time.
    cost_estimate=pl.CostEstimate(
      flops=4 * cells * h,
      bytes_accessed=bytes_accessed,
      transcendentals=cells,
    ),
    interpret=interpret,
    name=f'decode_attention_{"own" if goes_on else "prompt"}',
  )(*work, row_U, place_U, *inputs)
  return found[0] if goes_on else found


def _blocks(valid_XC: jax.Array, block: int):
  """The mask as the kernel takes it, and `masks.blocks_to_read`."""
  padded = jnp.pad(valid_XC, ((0, 0), (0, -valid_XC.shape[1] % block)))
  return padded[:, None].astype(jnp.int32), *masks.blocks_to_read(
    valid_XC, block
  )


def decode_attention(
  q_BHh: jax.Array,
  prompt_k_PKhS: jax.Array,
  prompt_v_PKSh: jax.Array,
  own_k_BKhR: jax.Array,
  own_v_BKRh: jax.Array,
  prompt_valid_PS: jax.Array,
  own_valid_BR: jax.Array,
  prompt_B: jax.Array | None,
  *,
  interpret=False,
) -> jax.Array:
  """As `op.decode_attention`, on one device."""
  B, H, h = q_BHh.shape
  P, K, _, S = prompt_k_PKhS.shape
  R, G = own_k_BKhR.shape[3], H // K
  itemsize = q_BHh.dtype.itemsize
  tiles = tiles_lib.make(prompt_B, B, P)
  T, N = tiles.slot_TN.shape
  # Whole tiles of 8 rows: what lies in tiles of slots and what lies slot by
  # slot are then the same bytes. The queries added cost no memory traffic.
  rows = _rows(G)
  q_BKMh = jnp.pad(
    q_BHh.reshape(B, K, G, h), ((0, 0), (0, 0), (0, rows - G), (0, 0))
  )

  block = block_size(S, K, h, N * rows, itemsize)
  valid, first_P, count_P = _blocks(prompt_valid_PS, block)
  out, log_total = _part(
    jnp.swapaxes(tiles.gather(q_BKMh), 1, 2).reshape(T, K, N * rows, h),
    prompt_k_PKhS,
    prompt_v_PKSh,
    valid,
    (
      first_P[tiles.prompt_T],
      jnp.where(tiles.count_T > 0, count_P[tiles.prompt_T], 0),
    ),
    tiles.prompt_T,
    block,
    interpret=interpret,
  )

  block = block_size(R, K, h, rows, itemsize)
  valid, *run_B = _blocks(own_valid_BR, block)
  out_BKMh = _part(
    q_BKMh,
    own_k_BKhR,
    own_v_BKRh,
    valid,
    run_B,
    jnp.arange(B, dtype=jnp.int32),
    block,
    interpret=interpret,
    before=(
      out.reshape(T, K, N, rows, h),
      log_total.reshape(T, K, N, rows, 1),
      tiles.place_B,
    ),
  )
  return out_BKMh[:, :, :G].reshape(B, H, h)
