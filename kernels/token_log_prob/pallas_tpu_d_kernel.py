"""The TPU kernel of the head's gradient alone, with tiles of columns outside.

Grid: tiles of columns, then blocks of tokens. A tile of the head, transposed,
and the float32 gradient in it stay in vector memory while the hidden states
stream past; the gradient is rounded once, to any dtype, when the last block has
been added. No float32 copy of it ever exists in the device's memory.

Here columns of the vocabulary are rows and tokens lie along the lanes, so that
all three operands of the two products are as the matrix unit wants them.

Megacore chips (v4, v5p) share the tiles between their two cores.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.token_log_prob import gradient, tpu_blocks
from kernels.token_log_prob.tpu_tools import VMEM, dot, pad_tokens

# Columns of a tile whose logits are made at a time, and rows of D in the loops.
_ROWS = 512
_WIDTH = 512


def _over_width(D, function):
  """Runs function(slice) over the parts of D."""
  width = tpu_blocks.part(D, _WIDTH)

  @pl.loop(0, D // width)
  def _(i):
    function(pl.ds(pl.multiple_of(i * width, width), width))


def _add_part(part, first_row, limit, target_ref, rows_ref, refs):
  """The gradient in the logits of a part of the tile's columns, (rows, n)."""
  hidden_ref, head_ref, d_logits_ref = refs
  logits = dot(head_ref[part, :], hidden_ref[...], 1, 1)
  row = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0) + first_row
  d_logits = gradient.d_logits(
    logits,
    row == target_ref[...],
    *(rows_ref[r : r + 1, :] for r in range(gradient.COEFFICIENTS)),
  )
  if limit is not None:
    d_logits = jnp.where(row < limit, d_logits, 0)
  d_logits_ref[part, :] = d_logits.astype(d_logits_ref.dtype)


def _kernel(
  limit_ref,
  target_ref,
  rows_ref,
  hidden_ref,
  head_ref,
  out_ref,
  transposed_ref,
  sum_ref,
  d_logits_ref,
):
  D, columns = head_ref.shape
  tile, block = pl.program_id(0), pl.program_id(1)

  @pl.when(block == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)

    def transpose(part):
      cast = head_ref[part, :].astype(transposed_ref.dtype)
      transposed_ref[:, part] = cast.T

    _over_width(D, transpose)

  rows = tpu_blocks.part(columns, _ROWS)

  def make(limit):
    @pl.loop(0, columns // rows)
    def _(i):
      _add_part(
        pl.ds(pl.multiple_of(i * rows, rows), rows),
        tile * columns + i * rows,
        limit,
        target_ref,
        rows_ref,
        (hidden_ref, transposed_ref, d_logits_ref),
      )

  whole = (tile + 1) * columns <= limit_ref[0]
  pl.when(whole)(lambda: make(None))
  pl.when(jnp.logical_not(whole))(lambda: make(limit_ref[0]))

  def add(part):
    sum_ref[:, part] += dot(d_logits_ref[...], hidden_ref[:, part], 1, 0)

  _over_width(D, add)

  @pl.when(block == pl.num_programs(1) - 1)
  def _():
    def store(part):
      out_ref[part, :] = sum_ref[:, part].T.astype(out_ref.dtype)

    _over_width(D, store)


def d_kernel(
  hidden_ND: jax.Array,
  kernel_DV: jax.Array,
  target_N: jax.Array,
  rows_5N: jax.Array,
  limit: jax.Array,
  *,
  dtype,
  vmem: int = VMEM,
  interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
  """The gradient in the head, (D, V).

  Args:
    hidden_ND, kernel_DV, target_N, rows_5N, limit, vmem, interpret: as in
      `pallas_tpu_d_hidden.d_hidden`.
    dtype: of the result.
  """
  (N, D), V = hidden_ND.shape, kernel_DV.shape[1]
  blocks = tpu_blocks.d_kernel(
    N,
    D,
    V,
    hidden_bytes=hidden_ND.dtype.itemsize,
    head_bytes=kernel_DV.dtype.itemsize,
    out_bytes=jnp.dtype(dtype).itemsize,
    vmem=vmem,
  )
  n, c = blocks.tokens, blocks.columns
  padded = tpu_blocks.ceil_to(N, n)
  hidden_ND = pad_tokens(hidden_ND, padded)
  tiles = pl.cdiv(V, c)
  call = pl.pallas_call(
    _kernel,
    out_shape=jax.ShapeDtypeStruct((D, V), dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(tiles, padded // n),
      in_specs=[
        pl.BlockSpec((1, n), lambda j, i, _: (0, i)),
        pl.BlockSpec((gradient.COEFFICIENTS, n), lambda j, i, _: (0, i)),
        pl.BlockSpec((n, D), lambda j, i, _: (i, 0)),
        pl.BlockSpec((D, c), lambda j, i, _: (0, j)),
      ],
      out_specs=pl.BlockSpec((D, c), lambda j, i, _: (0, j)),
      scratch_shapes=[
        pltpu.VMEM((c, D), hidden_ND.dtype),
        pltpu.VMEM((c, D), jnp.float32),
        pltpu.VMEM((c, n), hidden_ND.dtype),
      ],
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=tpu_blocks.limit(vmem),
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * padded * D * V,
      transcendentals=padded * V,
      bytes_accessed=(
        tiles * hidden_ND.nbytes
        + kernel_DV.nbytes
        + D * V * jnp.dtype(dtype).itemsize
      ),
    ),
    interpret=interpret,
    name='token_log_prob_d_kernel',
  )
  return call(
    limit,
    pad_tokens(target_N, padded, -1)[None],
    pad_tokens(rows_5N, padded, axis=1),
    hidden_ND,
    kernel_DV,
  )
