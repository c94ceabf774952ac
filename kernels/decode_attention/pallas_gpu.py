"""Decode attention on GPUs: one flash kernel (Triton), called for two parts.

    prompt part: units = tiles of slots, keys and values = their prompt's
    own part:    units = slots, keys and values = their own

A program does one key/value head of a unit and one of several equal shares of
the run of blocks that hold anything valid (masks.py: rows of columns are rings;
flash-decoding, Dao et al. 2023), so that few slots with long caches fill the
GPU too and no program has more to do than its neighbours. The shares, and the
two parts, are merged afterwards by
their log-denominators, in a fixed order.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import precision as precision_lib
from kernels.decode_attention import masks
from kernels.decode_attention import tiles as tiles_lib

# Powers of two, for Triton; wider heads do not fit the shared memory.
HEAD_WIDTHS = (16, 32, 64, 128, 256)
# Positions of a block: with heads of width 128, 32 KiB of keys and values a
# stage of the pipeline.
BLOCK = 64
_STAGES = 3
# Rows of a matrix product: the tensor cores' least, and what the registers of
# eight warps hold.
_MIN_ROWS = 16
_MAX_ROWS = 128
# Programs to have at least: four for each of an H100's 132 multiprocessors.
_PROGRAMS = 528


def tile_limit(queries: int) -> int:
  """Slots of a tile at most, of `queries` queries a key/value head."""
  return max(1, min(tiles_lib.MAX_SIZE, _MAX_ROWS // queries))


def num_shares(units: int, heads: int, rows: int, positions: int) -> int:
  """Shares into which the blocks of a unit are cut, from shapes alone.

  Args:
    units: U.
    heads: K.
    rows: M, queries of a key/value head and unit.
    positions: of the cache.
  """
  # A share writes `rows` results of float32 and reads its positions' keys and
  # values: with two positions a row, at most half as many bytes.
  most = -(-positions // max(BLOCK, 2 * rows))
  return max(1, min(most, _PROGRAMS // (units * heads)))


def check(q_BHh, prompt_k_PKhS) -> None:
  """Raises ValueError where the kernel cannot do these shapes."""
  H, h = q_BHh.shape[1:]
  queries = H // prompt_k_PKhS.shape[1]
  if h not in HEAD_WIDTHS:
    raise ValueError(
      f"decode_attention kind 'pallas_gpu' takes heads of width "
      f"{', '.join(map(str, HEAD_WIDTHS))}, got {h}; use kind='xla'"
    )
  if queries > _MAX_ROWS:
    raise ValueError(
      f"decode_attention kind 'pallas_gpu' takes at most {_MAX_ROWS} queries a "
      f"key/value head, got {queries}; use kind='xla'"
    )


def _scores(q_Mh, k_hC, valid_C, scale: float, precision):
  """float32 (M, C) in base 2; a masked one is `MASKED`."""
  scores = jax.lax.dot_general(
    q_Mh,
    k_hC,
    (((1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
    precision=precision,
  )
  return jnp.where(valid_C[None], scores * scale, masks.MASKED)


def _share(count, share, shares: int):
  """First block of a share and the one after its last."""
  each = jax.lax.div(count + (shares - 1), shares)
  begin = jnp.minimum(share * each, count)
  return begin, jnp.minimum(begin + each, count)


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  valid_ref,
  row_ref,
  first_ref,
  count_ref,
  out_ref,
  log_total_ref,
  *,
  queries: int,
  shares: int,
  scale: float,
  precision,
):
  """One share of one head of one unit; see the module."""
  unit, head, share = (pl.program_id(axis) for axis in range(3))
  rows, h = q_ref.shape
  positions = k_ref.shape[3]
  row = row_ref[unit]
  begin, end = _share(count_ref[unit], share, shares)
  real_M1 = jnp.arange(rows)[:, None] < queries
  q = plgpu.load(q_ref.at[:, :], mask=real_M1, other=0.0)
  ragged = positions % BLOCK != 0

  def step(visit, carry):
    acc_Mh, top_M, total_M = carry
    block = jax.lax.rem(first_ref[unit] + visit, -(-positions // BLOCK))
    places = pl.ds(block * BLOCK, BLOCK)
    inside_C = block * BLOCK + jnp.arange(BLOCK) < positions

    def load(ref, mask):
      if not ragged:
        return plgpu.load(ref)
      return plgpu.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))

    k_hC = load(k_ref.at[row, head, :, places], inside_C[None])
    v_Ch = load(v_ref.at[row, head, places, :], inside_C[:, None])
    valid_C = load(valid_ref.at[row, places], inside_C) != 0
    scores_MC = _scores(q, k_hC, valid_C, scale, precision)
    new_M = jnp.maximum(top_M, jnp.max(scores_MC, axis=1))
    factor_M = jnp.exp2(top_M - new_M)
    weight_MC = jnp.exp2(scores_MC - new_M[:, None])
    total_M = total_M * factor_M + jnp.sum(weight_MC, axis=1)
    acc_Mh = acc_Mh * factor_M[:, None] + jax.lax.dot_general(
      weight_MC.astype(v_Ch.dtype),
      v_Ch,
      (((1,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
      precision=precision,
    )
    return acc_Mh, new_M, total_M

  start = (
    jnp.zeros((rows, h), jnp.float32),
    jnp.full((rows,), masks.MASKED, jnp.float32),
    jnp.zeros((rows,), jnp.float32),
  )
  acc_Mh, top_M, total_M = jax.lax.fori_loop(begin, end, step, start)
  # A share without a block has the result 0 with weight 2^MASKED = 0.
  total_M = jnp.maximum(total_M, jnp.finfo(jnp.float32).tiny)
  plgpu.store(out_ref.at[:, :], acc_Mh / total_M[:, None], mask=real_M1)
  plgpu.store(
    log_total_ref.at[:],
    top_M + jnp.log2(total_M),
    mask=jnp.arange(rows) < queries,
  )


def _part(
  q_UKMh: jax.Array,
  k_XKhC: jax.Array,
  v_XKCh: jax.Array,
  valid_XC: jax.Array,
  row_U: jax.Array,
  used_U: jax.Array | None,
  *,
  name: str,
  interpret,
) -> tuple[jax.Array, jax.Array]:
  """Softmax attention of U units, each against one row of the caches.

  Args:
    q_UKMh: M queries of each key/value head and unit.
    k_XKhC: keys of X rows, C positions.
    v_XKCh: values.
    valid_XC: True where a position may be read.
    row_U: int32, the row of each unit.
    used_U: False where nobody looks at a unit's result; None = all are used.
    name: of the part.
    interpret: as `pallas_call` takes it.

  Returns:
    float32 out_UKsMh of each share s, and log2 of its denominator_UKsM.
  """
  U, K, M, h = q_UKMh.shape
  C, itemsize = k_XKhC.shape[3], k_XKhC.dtype.itemsize
  rows = max(_MIN_ROWS, 1 << (M - 1).bit_length())
  shares = num_shares(U, K, M, C)
  first_U, count_U = (x[row_U] for x in masks.blocks_to_read(valid_XC, BLOCK))
  if used_U is not None:
    count_U = jnp.where(used_U, count_U, 0)
  cells = U * K * M * C
  out = (U, K, shares, M)
  return pl.pallas_call(
    functools.partial(
      _kernel,
      queries=M,
      shares=shares,
      # The kernel computes in base 2, as the hardware does.
      scale=h**-0.5 * math.log2(math.e),
      precision=precision_lib.of_products(k_XKhC.dtype),
    ),
    grid=(U, K, shares),
    in_specs=[pl.BlockSpec((None, None, rows, h), lambda u, k, s: (u, k, 0, 0))]
    + [pl.no_block_spec] * 6,
    out_specs=[
      pl.BlockSpec(
        (None, None, None, rows, h), lambda u, k, s: (u, k, s, 0, 0)
      ),
      pl.BlockSpec((None, None, None, rows), lambda u, k, s: (u, k, s, 0)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct((*out, h), jnp.float32),
      jax.ShapeDtypeStruct(out, jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(
      num_warps=8 if rows == _MAX_ROWS else 4, num_stages=_STAGES
    ),
    # At most: what a cache holds is known only at run time.
    cost_estimate=pl.CostEstimate(
      flops=4 * cells * h,
      bytes_accessed=(
        2 * U * K * C * h * itemsize
        + U * K * C
        + U * K * M * h * (itemsize + 4 * shares)
      ),
      transcendentals=cells,
    ),
    interpret=interpret,
    name=f'decode_attention_{name}',
  )(q_UKMh, k_XKhC, v_XKCh, valid_XC.astype(jnp.int8), row_U, first_U, count_U)


def _merge(out_UKsMh: jax.Array, log_total_UKsM: jax.Array):
  """Results of shares into one: (out_UKMh, log_total_UKM)."""
  top = jnp.max(log_total_UKsM, axis=2, keepdims=True)
  weight = jnp.exp2(log_total_UKsM - top)
  total = jnp.sum(weight, axis=2)
  out = jnp.sum(out_UKsMh * weight[..., None], axis=2) / total[..., None]
  return out, top[:, :, 0] + jnp.log2(total)


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
  interpret: bool = False,
) -> jax.Array:
  """As `op.decode_attention`, on one device."""
  B, H, h = q_BHh.shape
  P, K = prompt_k_PKhS.shape[:2]
  G = H // K
  q_BKGh = q_BHh.reshape(B, K, G, h)
  tiles = tiles_lib.make(prompt_B, B, P, tile_limit(G))
  T, N = tiles.slot_TN.shape
  out_TKMh, log_TKM = _merge(
    *_part(
      jnp.swapaxes(tiles.gather(q_BKGh), 1, 2).reshape(T, K, N * G, h),
      prompt_k_PKhS,
      prompt_v_PKSh,
      prompt_valid_PS,
      tiles.prompt_T,
      None if tiles.exact else tiles.count_T > 0,
      name='prompt',
      interpret=interpret,
    )
  )
  out_BKsGh, log_BKsG = _part(
    q_BKGh,
    own_k_BKhR,
    own_v_BKRh,
    own_valid_BR,
    jnp.arange(B, dtype=jnp.int32),
    None,
    name='own',
    interpret=interpret,
  )

  def of_slots(x_TKM, *shape):
    x_TNK = jnp.swapaxes(x_TKM.reshape(T, K, N, G, *shape), 1, 2)
    return tiles.scatter(x_TNK)[:, :, None]

  out_BKGh, _ = _merge(
    jnp.concatenate([of_slots(out_TKMh, h), out_BKsGh], axis=2),
    jnp.concatenate([of_slots(log_TKM), log_BKsG], axis=2),
  )
  return out_BKGh.reshape(B, H, h).astype(q_BHh.dtype)
