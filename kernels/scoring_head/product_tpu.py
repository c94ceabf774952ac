"""The first layer's gradient as a TPU kernel: features times live units.

A unit that is alive passes back the gradient of its mark's logit times its
weight in the second layer, and nothing else depends on its value. So the
backward pass keeps one bit a unit, a sixteenth of the activations, instead of
computing them again:

  gradient[d, e] = w2[e] / (1 - rate) * sum_m feature[m, d] grad[m] bit[m, e]

Bits of 32 slots lie in the words of one row: of `rows` slots, bit k of row i
belongs to slot k * rows / 32 + i, which on a TPU is a move of whole registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import blocks_tpu, rows_tpu
from kernels.scoring_head.blocks_tpu import ProductBlocks

BITS = 32


def pack(alive_RU: jax.Array) -> jax.Array:
  """int32 (R / 32, U) of bool (R, U)."""
  rows, units = alive_RU.shape
  bits = alive_RU.astype(jnp.int32).reshape(BITS, rows // BITS, units)
  place = jax.lax.broadcasted_iota(jnp.int32, bits.shape, 0)
  return jnp.sum(bits << place, 0)  # no two share a bit: + is |


def unpack(word_WU: jax.Array) -> jax.Array:
  """bool (32 W, U) of int32 (W, U)."""
  count, units = word_WU.shape
  shape = (BITS, count, units)
  place = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  bits = (jnp.broadcast_to(word_WU[None], shape) >> place) & 1
  return bits.reshape(BITS * count, units) != 0


def add_product(
  total_DE: jax.Array,
  feature_SD: jax.Array,
  word_WE: jax.Array,
  grad_SL: jax.Array,
  output_E: jax.Array,
  count: jax.Array,
  *,
  rows: int,
  blocks: ProductBlocks,
  interpret=False,
) -> jax.Array:
  """`total_DE` plus the gradient over some slots, in place.

  Args:
    total_DE: float32.
    feature_SD: bfloat16 features by slot, finite up to a whole block.
    word_WE: int32, `pack` of each `rows` slots.
    grad_SL: float32 gradient of the logits by slot, in all of 128 lanes; 0
      where there is no mark.
    output_E: float32, the second layer over 1 - rate.
    count: slots that are marks; blocks behind it are not read.
    rows: slots whose bits lie together; divides `blocks.marks`.
    blocks: sizes; `blocks.marks` divides S.
    interpret: run in interpret mode.
  """
  S, D = feature_SD.shape
  E = word_WE.shape[1]
  M, columns, U = blocks.marks, blocks.width, blocks.units
  tile = pl.BlockSpec((columns, U), lambda e, d, m, *_: (d, e))
  steps = jnp.maximum(-(-count // M), 1)
  expected = S  # a whole round; the number of rounds is data
  return pl.pallas_call(
    functools.partial(_kernel, rows=rows),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(E // U, D // columns, steps),
      in_specs=[
        tile,
        pl.BlockSpec((M, columns), lambda e, d, m, *_: (m, d)),
        pl.BlockSpec((M // BITS, U), lambda e, d, m, *_: (m, e)),
        pl.BlockSpec((M, rows_tpu.LANES), lambda e, d, m, *_: (m, 0)),
        pl.BlockSpec((1, U), lambda e, d, m, *_: (0, e)),
      ],
      out_specs=tile,
      scratch_shapes=[pltpu.VMEM((columns, U), jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct((D, E), jnp.float32),
    input_output_aliases={1: 0},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=blocks_tpu.VMEM_LIMIT,
    ),
    cost_estimate=pl.CostEstimate(
      flops=int(2 * expected * D * E),
      # Features once a tile of units, bits once a tile of columns.
      bytes_accessed=int(
        8 * D * E
        + 2 * expected * D * (E // U)
        + expected / 8 * E * (D // columns)
      ),
      transcendentals=0,
    ),
    interpret=interpret,
    name='score_head_hidden_kernel_gradient',
  )(
    count[None],
    total_DE,
    feature_SD,
    word_WE,
    grad_SL,
    output_E[None],
  )


def _kernel(
  count_ref,
  total_ref,
  feature_ref,
  word_ref,
  grad_ref,
  output_ref,
  result_ref,
  sum_ref,
  *,
  rows: int,
):
  m = pl.program_id(2)
  last = pl.num_programs(2) - 1
  marks, units = feature_ref.shape[0], output_ref.shape[1]

  @pl.when(m == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)

  @pl.when(m * marks < count_ref[0])
  def _():
    parts = []
    for r in range(marks // rows):
      words = word_ref[pl.ds(r * rows // BITS, rows // BITS)]
      grad = rows_tpu.spread(grad_ref[pl.ds(r * rows, rows)], units)
      part = jnp.where(unpack(words), grad, 0)
      parts.append(part.astype(feature_ref.dtype))
    sum_ref[...] += jax.lax.dot_general(
      feature_ref[...],
      jnp.concatenate(parts, 0),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )

  @pl.when(m == last)
  def _():
    result_ref[...] = total_ref[...] + sum_ref[...] * output_ref[...]
