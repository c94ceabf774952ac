"""The score head on marks, backward, as two TPU kernels.

The first goes over blocks of marks as the forward kernel does. It computes the
hidden units again, sums the features' gradient in VMEM and writes its rows in
place, sums the gradients of the vectors, and leaves behind the gathered
features and one bit a hidden unit. From these the second (`product_tpu`) makes
the gradient of the first layer without computing anything again. Three products
in all, as many as the gradient has.

What is left behind exists for a round of slots at a time, so memory does not
grow with the number of marks; the number of rounds is data. Gradients of
weights are sums over rounds, blocks and marks in a fixed order.

Letters as in `pallas_tpu`; R slots of a round.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import (
  blocks_tpu,
  feature_tpu,
  pallas_tpu,
  product_tpu,
  rows_tpu,
)
from kernels.scoring_head.blocks_tpu import Blocks, ProductBlocks
from kernels.scoring_head.marks import Slots
from kernels.scoring_head.product_tpu import BITS

ROUND_SLOTS = 4096


def gradients(
  feature_ND: jax.Array,
  weights: tuple[jax.Array, ...],
  hash_N: jax.Array | None,
  slots: Slots,
  grad_N: jax.Array,
  *,
  rate: float,
  blocks: Blocks | None = None,
  product: ProductBlocks | None = None,
  round_slots: int | None = None,
  cores: int = 1,
  interpret=False,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """As `xla.gradients`.

  Args:
    feature_ND: as for `pallas_tpu.logits`, and so on.
    weights: as for `pallas_tpu.logits`.
    hash_N: as for `pallas_tpu.logits`.
    slots: as for `pallas_tpu.logits`.
    grad_N: gradient of the logits by slot, 0 where there is no mark.
    rate: as for `pallas_tpu.logits`.
    blocks: of the first kernel; None = those for these shapes.
    product: of the second.
    round_slots: of a round, about; None = ROUND_SLOTS.
    cores: as for `pallas_tpu.logits`.
    interpret: as for `pallas_tpu.logits`.
  """
  N, D = feature_ND.shape
  E = weights[0].shape[1]
  blocks = blocks or blocks_tpu.blocks(D, E, backward=True)
  product = product or blocks_tpu.product_blocks(D, E, blocks.marks)
  multiple = blocks.marks * cores
  R = (
    min(-(-N // multiple), max(1, (round_slots or ROUND_SLOTS) // multiple))
    * multiple
  )
  place_S = pallas_tpu.cover(slots.place_S, R)
  grad_N = grad_N.astype(jnp.float32)
  output_E = weights[2][:, 0].astype(jnp.float32) / (1 - rate)

  def body(i, sums):
    feature, kernel, vectors = sums
    bounds = jnp.stack([slots.count, slots.paired]) - i * R
    bounds = jnp.clip(bounds, 0, R)
    feature, *kept, more = _features(
      feature,
      feature_ND,
      weights,
      hash_N,
      jax.lax.dynamic_slice(place_S, (i * R,), (R,)),
      grad_N,
      bounds,
      rate=rate,
      blocks=blocks,
      cores=cores,
      interpret=interpret,
    )
    kernel = product_tpu.add_product(
      kernel,
      *kept,
      output_E,
      bounds[0],
      rows=blocks.rows,
      blocks=product,
      interpret=interpret,
    )
    return feature, kernel, vectors + more.sum(0)

  zeros = (
    jnp.zeros_like(feature_ND),
    jnp.zeros((D, E), jnp.float32),
    jnp.zeros((2, E), jnp.float32),
  )
  feature, kernel, vectors = jax.lax.fori_loop(
    0, -(-slots.count // R), body, zeros
  )
  output = vectors[0] / (1 - rate)
  bias = vectors[1] * output_E
  return feature, (kernel, bias, output[:, None], grad_N.sum()[None])


def _features(
  result_ND,
  feature_ND,
  weights,
  hash_N,
  place_R,
  grad_N,
  bounds,
  *,
  rate,
  blocks,
  cores,
  interpret,
):
  """The first kernel, over one round.

  Returns:
    `result_ND` with the features' gradient written into it; the gathered
    features, bits and gradients of the logits by slot; the sums of the two
    vectors' gradients, (cores, 2, E).
  """
  D, E = weights[0].shape
  M, U, R = blocks.marks, blocks.units, place_R.shape[0]
  inputs, specs = pallas_tpu.block_inputs(
    feature_ND, weights, hash_N, place_R, blocks, cores
  )
  inputs += [rows_tpu.table(grad_N), result_ND]
  specs += [
    pallas_tpu.whole_table(grad_N.shape[0]),
    pl.BlockSpec(memory_space=pl.ANY),
  ]
  kernel = functools.partial(
    feature_tpu.kernel, blocks=blocks, rate=rate, cores=cores
  )
  if hash_N is None:
    kernel = pallas_tpu.without_hash(kernel)
  computed = pallas_tpu.at_computed(cores)
  at_words = lambda *at: (computed(*at)[0], pallas_tpu.at_tile(*at)[1])  # noqa: E731
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(cores, pallas_tpu.steps(bounds[0], M, cores), E // U),
      in_specs=specs,
      out_specs=[
        anywhere,
        anywhere,
        pl.BlockSpec((M // BITS, U), at_words),
        anywhere,
        pl.BlockSpec((1, 2, E), lambda c, j, e, *_: (c, 0, 0)),
      ],
      scratch_shapes=[
        *pallas_tpu.scratch(blocks, D),
        pltpu.VMEM((M, rows_tpu.LANES), jnp.float32),
        pltpu.VMEM((M, D), jnp.float32),
        pltpu.SemaphoreType.DMA((2,)),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(result_ND.shape, result_ND.dtype),
      jax.ShapeDtypeStruct((R, D), feature_ND.dtype),
      jax.ShapeDtypeStruct((R // BITS, E), jnp.int32),
      jax.ShapeDtypeStruct((R, rows_tpu.LANES), jnp.float32),
      jax.ShapeDtypeStruct((cores, 2, E), jnp.float32),
    ],
    input_output_aliases={len(inputs): 0},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=blocks_tpu.VMEM_LIMIT,
    ),
    cost_estimate=_cost(R, D, E, M),
    interpret=interpret,
    name='score_head_feature_gradient',
  )(bounds, *inputs)


def _cost(R, D, E, M) -> pl.CostEstimate:
  marks = R  # a whole round; the number of rounds is data
  return pl.CostEstimate(
    flops=int(4 * marks * D * E),
    # Pairs of rows in and out, features left behind, bits; the first layer
    # once a block.
    bytes_accessed=int(
      marks * (10 * D + E / 8) + -(-marks // M) * 2 * D * E + 8 * E
    ),
    transcendentals=0,
  )
