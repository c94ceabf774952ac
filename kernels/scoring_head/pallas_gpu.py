"""The score head on marks as Triton kernels.

Forward, one kernel: a program computes blocks of marks against its share of the
hidden units, a tile at a time, and leaves a partial logit for each mark;
partial logits are summed afterwards, in a fixed order. Programs of one share
lie side by side in the grid, so a tile of the first layer is read from memory
once and by the others from the L2 cache. Hidden activations stay in registers.

Backward, one kernel and two plain products: sums of the features' gradient (a
mark's is D wide) do not fit on a multiprocessor, so for a bounded number of
marks at a time the kernel computes the hidden units again and writes THEIR
GRADIENT to memory, in the features' dtype; from it plain matrix products make
the gradients of features and first layer. The number of such rounds is data.

Letters as in `marks`; M slots of a block, E hidden units, U of a tile, R slots
of a round.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import precision
from kernels.scoring_head import dropout
from kernels.scoring_head.marks import EXPECTED_MARKS, Slots


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of both kernels.

  Attributes:
    marks: M.
    units: U.
    depth: columns of the features multiplied at a time.
    shares: most shares of the hidden units.
    lines: blocks of marks in the forward grid; a program takes every
      `lines`-th.
    round: R, a multiple of `marks`.
    warps: of a program.
    stages: tiles under way from memory at a time.
  """

  marks: int = 128
  units: int = 128
  depth: int = 64
  shares: int = 28
  lines: int = 64
  round: int = 2048
  warps: int = 8
  stages: int = 3


BLOCKS = Blocks()


def fits(width: int, hidden: int, places: int) -> bool:
  """Whether the kernels can do these shapes; offsets have 32 bits."""
  return (
    width % BLOCKS.depth == 0
    and hidden % BLOCKS.units == 0
    and places * width < 2**31
  )


def logits(
  feature_ND: jax.Array,
  weights: tuple[jax.Array, ...],
  hash_N: jax.Array | None,
  slots: Slots,
  *,
  rate: float,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> jax.Array:
  """(N,) float32 logits; 0 where there is no mark.

  Args:
    feature_ND: bfloat16 or float32 features.
    weights: the head's four arrays, of the features' dtype.
    hash_N: `dropout.place_hash`; None without dropout.
    slots: `marks.slots`.
    rate: share of hidden units dropped.
    blocks: sizes; None = BLOCKS.
    interpret: run in interpret mode.
  """
  N, D = feature_ND.shape
  E = weights[0].shape[1]
  blocks = blocks or BLOCKS
  place_S = _cover(slots.place_S, N, blocks.marks)
  shares = _shares(E, blocks)
  hash_S = None if hash_N is None else _take(hash_N, place_S)
  parts = pl.pallas_call(
    functools.partial(_logits_kernel, rate=rate, blocks=blocks, shares=shares),
    grid=(min(blocks.lines, place_S.shape[0] // blocks.marks), shares),
    out_shape=jax.ShapeDtypeStruct((shares, place_S.shape[0]), jnp.float32),
    compiler_params=plgpu.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
    cost_estimate=_cost(N * EXPECTED_MARKS, D, E, 2 * D),
    interpret=interpret,
    name='score_head_logits',
  )(
    slots.count[None],
    # Any place will do where there is no mark.
    jnp.minimum(place_S, N - 1),
    feature_ND,
    weights[0],
    *_vectors(weights),
    *(() if hash_S is None else (hash_S,)),
  )
  logit_S = parts.sum(0) / (1 - rate) + weights[3].astype(jnp.float32)
  return jnp.zeros(N, logit_S.dtype).at[place_S].set(logit_S, mode='drop')


def gradients(
  feature_ND: jax.Array,
  weights: tuple[jax.Array, ...],
  hash_N: jax.Array | None,
  slots: Slots,
  grad_N: jax.Array,
  *,
  rate: float,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """As `xla.gradients`; a round's hidden gradients go through memory.

  Args:
    feature_ND: as for `logits`, and so on.
    weights: as for `logits`.
    hash_N: as for `logits`.
    slots: as for `logits`.
    grad_N: gradient of the logits, 0 where there is no mark.
    rate: as for `logits`.
    blocks: as for `logits`.
    interpret: as for `logits`.
  """
  N, D = feature_ND.shape
  E = weights[0].shape[1]
  blocks = blocks or BLOCKS
  R = min(blocks.round, -(-N // blocks.marks) * blocks.marks)
  place_S = _cover(slots.place_S, N, R)
  grad_N = grad_N.astype(jnp.float32)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def body(i, sums):
    feature, kernel, vectors = sums
    place_R = jax.lax.dynamic_slice(place_S, (i * R,), (R,))
    feature_RD = _take(feature_ND, place_R)
    hidden_RE, parts = _hidden_gradients(
      jnp.clip(slots.count - i * R, 0, R),
      feature_RD,
      weights,
      _take(grad_N, place_R),
      None if hash_N is None else _take(hash_N, place_R),
      rate=rate,
      blocks=blocks,
      interpret=interpret,
    )
    grad_RD = dot('RE,DE->RD', hidden_RE, weights[0]).astype(feature.dtype)
    return (
      feature.at[place_R].set(grad_RD, mode='drop'),
      kernel + dot('RD,RE->DE', feature_RD, hidden_RE),
      vectors + parts.sum(0),
    )

  zeros = (
    jnp.zeros_like(feature_ND),
    jnp.zeros((D, E), jnp.float32),
    jnp.zeros((2, E), jnp.float32),
  )
  feature, kernel, vectors = jax.lax.fori_loop(
    0, -(-slots.count // R), body, zeros
  )
  return feature, (kernel, vectors[1], vectors[0][:, None], grad_N.sum()[None])


def _hidden_gradients(
  count, feature_RD, weights, grad_R, hash_R, *, rate, blocks, interpret
):
  """Gradient of the hidden units, bfloat16, and parts of the vectors'."""
  R, D = feature_RD.shape
  E = weights[0].shape[1]
  lines = R // blocks.marks
  return pl.pallas_call(
    functools.partial(_gradients_kernel, rate=rate, blocks=blocks),
    grid=(lines, E // blocks.units),
    out_shape=[
      jax.ShapeDtypeStruct((R, E), feature_RD.dtype),
      jax.ShapeDtypeStruct((lines, 2, E), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
    cost_estimate=_cost(R, D, E, 2 * (D + E)),
    interpret=interpret,
    name='score_head_hidden_gradient',
  )(
    count[None],
    feature_RD,
    weights[0],
    *_vectors(weights),
    grad_R,
    *(() if hash_R is None else (hash_R,)),
  )


def _cover(place_S, nowhere: int, multiple: int):
  pad = (0, -place_S.shape[0] % multiple)
  return jnp.pad(place_S, pad, constant_values=nowhere)


def _take(value_N, place_S):
  return value_N.at[place_S].get(mode='fill', fill_value=0)


def _vectors(weights):
  return weights[1].astype(jnp.float32), weights[2][:, 0].astype(jnp.float32)


def _shares(hidden: int, blocks: Blocks) -> int:
  """The most shares, up to a limit, of a whole number of tiles each."""
  tiles = hidden // blocks.units
  return max(k for k in range(1, blocks.shares + 1) if tiles % k == 0)


def _cost(marks, D, E, bytes_a_mark) -> pl.CostEstimate:
  return pl.CostEstimate(
    flops=int(2 * marks * (D + 1) * E),
    bytes_accessed=int(marks * bytes_a_mark + 2 * D * E),
    transcendentals=0,
  )


def _alive(read, kernel_ref, bias_ref, hash_ref, rows, start, rate, blocks):
  """Hidden values of a tile, and where they are above 0 and not dropped.

  Args:
    read: (M, depth) features, from the first column of a depth.
    kernel_ref: the first layer.
    bias_ref: its bias.
    hash_ref: hashes of the places by slot; None without dropout.
    rows: the block's slots.
    start: first hidden unit of the tile.
    rate: share of hidden units dropped.
    blocks: sizes.
  """
  units = pl.ds(start, blocks.units)

  def add(k, sum_MU):
    depth = pl.ds(k * blocks.depth, blocks.depth)
    tile = kernel_ref[depth, units]
    return sum_MU + plgpu.dot(
      read(depth), tile, precision=precision.of_products(tile.dtype)
    )

  value = jax.lax.fori_loop(
    0,
    kernel_ref.shape[0] // blocks.depth,
    add,
    jnp.zeros((blocks.marks, blocks.units), jnp.float32),
  )
  value += bias_ref[units][None]
  alive = value > 0
  if hash_ref is not None:
    unit = (start + jnp.arange(blocks.units)).astype(jnp.uint32)
    alive &= dropout.keep_units(hash_ref[rows][:, None], unit[None], rate)
  return value, alive


def _logits_kernel(
  count_ref,
  place_ref,
  feature_ref,
  kernel_ref,
  bias_ref,
  output_ref,
  *refs,
  rate: float,
  blocks: Blocks,
  shares: int,
):
  *hash_ref, part_ref = refs
  hash_ref = hash_ref[0] if hash_ref else None
  line, share = pl.program_id(0), pl.program_id(1)
  lines = place_ref.shape[0] // blocks.marks
  lines = min(blocks.lines, lines)
  tiles = kernel_ref.shape[1] // blocks.units // shares
  # Blocks line, line + lines, ... as far as there are marks.
  filled = jax.lax.div(count_ref[0] + blocks.marks - 1, blocks.marks)
  turns = jax.lax.div(jnp.maximum(filled - line + lines - 1, 0), lines)

  @pl.loop(0, turns)
  def _(turn):
    rows = pl.ds((line + turn * lines) * blocks.marks, blocks.marks)
    place_M = place_ref[rows]

    def add(t, sum_M):
      start = (share * tiles + t) * blocks.units
      value, alive = _alive(
        lambda depth: feature_ref[place_M, depth],
        kernel_ref,
        bias_ref,
        hash_ref,
        rows,
        start,
        rate,
        blocks,
      )
      output = output_ref[pl.ds(start, blocks.units)][None]
      return sum_M + jnp.sum(jnp.where(alive, value * output, 0), 1)

    zero = jnp.zeros(blocks.marks, jnp.float32)
    part_ref[share, rows] = jax.lax.fori_loop(0, tiles, add, zero)


def _gradients_kernel(
  count_ref,
  feature_ref,
  kernel_ref,
  bias_ref,
  output_ref,
  grad_ref,
  *refs,
  rate: float,
  blocks: Blocks,
):
  *hash_ref, hidden_ref, vectors_ref = refs
  hash_ref = hash_ref[0] if hash_ref else None
  line, start = pl.program_id(0), pl.program_id(1) * blocks.units
  rows = pl.ds(line * blocks.marks, blocks.marks)
  units = pl.ds(start, blocks.units)
  filled = line * blocks.marks < count_ref[0]

  @pl.when(filled)
  def _():
    value, alive = _alive(
      lambda depth: feature_ref[rows, depth],
      kernel_ref,
      bias_ref,
      hash_ref,
      rows,
      start,
      rate,
      blocks,
    )
    # 0 where there is no mark.
    live = jnp.where(alive, grad_ref[rows][:, None] / (1 - rate), 0)
    hidden = live * output_ref[units][None]
    hidden_ref[rows, units] = hidden.astype(hidden_ref.dtype)
    vectors_ref[line, 0, units] = jnp.sum(live * value, 0)
    vectors_ref[line, 1, units] = jnp.sum(hidden, 0)

  @pl.when(jnp.logical_not(filled))
  def _():
    hidden_ref[rows, units] = jnp.zeros(
      (blocks.marks, blocks.units), hidden_ref.dtype
    )
    for k in range(2):
      vectors_ref[line, k, units] = jnp.zeros(blocks.units, jnp.float32)
