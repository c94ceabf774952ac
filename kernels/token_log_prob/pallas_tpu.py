"""The TPU kernel of the forward pass.

Grid: blocks of tokens, then tiles of columns. The hidden states of a block stay
in vector memory while the tiles of the head stream past it once; what is known
of the distributions (`xla.forward` has the meaning) stays beside them. Every
lane keeps its own maximum and sums, of every 128th column, so that a tile costs
no reduction across lanes; they are put together after the last tile.

Megacore chips (v4, v5p) share the blocks of tokens between their two cores.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import precision
from kernels.token_log_prob import blocks_tpu
from kernels.token_log_prob.blocks_tpu import LANES
from kernels.token_log_prob.pallas_common import (
  local_limit,
  local_target,
  pad_tokens,
)
from kernels.token_log_prob.xla import NEVER_A_TOKEN

# Numbers of D that a loop over them takes at a time.
_WIDTH = 512
# An accumulator of each kind has one number for every token and lane.
_ACCUMULATORS = 4


def spread(row, tokens: int):
  """(1, n) numbers a token -> (n, lanes): the same number in every lane."""
  return jnp.broadcast_to(row, (LANES, tokens)).T


def dot(a, b, a_axis: int, b_axis: int):
  """Matrix product over one axis of each, in float32.

  Float32 operands are not rounded.
  """
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=precision.of_products(jnp.promote_types(a.dtype, b.dtype)),
    preferred_element_type=jnp.float32,
  )


def over_parts(size: int, function, most: int | None = None):
  """Runs function(slice) over the parts of an axis, at most _WIDTH long."""
  part = blocks_tpu.part(size, most or _WIDTH)

  @pl.loop(0, size // part)
  def _(i):
    function(pl.ds(pl.multiple_of(i * part, part), part))


def _accumulate(logits, first_column, limit, target, accumulators):
  """One tile of logits into the accumulators, lane by lane.

  Args:
    logits: list of (n, lanes), the tile's columns from left to right.
    first_column: of the tile.
    limit: columns from here on are no tokens; None = all of the tile are.
    target: (n, lanes), the target less the lane's number.
    accumulators: (top, total, mean, taken), (n, lanes) each.
  """
  top, total, mean, taken = accumulators
  target = target - first_column
  if limit is not None:
    lane = jax.lax.broadcasted_iota(jnp.int32, logits[0].shape, 1)
    logits = [
      jnp.where(lane < limit - first_column - LANES * i, x, NEVER_A_TOKEN)
      for i, x in enumerate(logits)
    ]
  new = functools.reduce(jnp.maximum, logits, top)
  scale = jnp.exp(top - new)
  weights = [jnp.exp(x - new) for x in logits]
  total = functools.reduce(jnp.add, weights, total * scale)
  products = [w * x for w, x in zip(weights, logits, strict=True)]
  mean = functools.reduce(jnp.add, products, mean * scale)
  for i, x in enumerate(logits):
    taken = jnp.where(target == LANES * i, x, taken)
  return new, total, mean, taken


def _combine_lanes(top, total, mean, taken):
  """The lanes' (n, lanes) -> (4, n), in the order of the arguments."""
  top = top.T
  whole = jnp.max(top, axis=0, keepdims=True)
  scale = jnp.exp(top - whole)
  sums = (
    jnp.sum(x, axis=0, keepdims=True)
    for x in (total.T * scale, mean.T * scale, taken.T)
  )
  return jnp.concatenate([whole, *sums])


def _forward_kernel(
  limit_ref,
  target_ref,
  scale_ref,
  hidden_ref,
  head_ref,
  out_ref,
  target_nL,
  scale_nL,
  found_AnL,
  *cast_ref,
):
  tokens, columns = hidden_ref.shape[0], head_ref.shape[1]
  tile = pl.program_id(1)

  @pl.when(tile == 0)
  def _():
    lane = jax.lax.broadcasted_iota(jnp.int32, (tokens, LANES), 1)
    target_nL[...] = spread(target_ref[...], tokens) - lane
    scale_nL[...] = spread(scale_ref[...], tokens)
    found_AnL[...] = jnp.zeros_like(found_AnL)
    found_AnL[0] = jnp.full((tokens, LANES), NEVER_A_TOKEN, jnp.float32)

  head = head_ref
  if cast_ref:
    (head,) = cast_ref

    def cast(part):
      head[part, :] = head_ref[part, :].astype(head.dtype)

    over_parts(head.shape[0], cast)

  def add(limit):
    def add_part(part):
      logits = dot(hidden_ref[part, :], head[...], 1, 0)
      scale = scale_nL[part, :]
      found = _accumulate(
        [logits[:, c : c + LANES] * scale for c in range(0, columns, LANES)],
        tile * columns,
        limit,
        target_nL[part, :],
        [found_AnL[a, part, :] for a in range(_ACCUMULATORS)],
      )
      for a in range(_ACCUMULATORS):
        found_AnL[a, part, :] = found[a]

    over_parts(tokens, add_part, blocks_tpu.rows(hidden_ref))

  whole = (tile + 1) * columns <= limit_ref[0]
  pl.when(whole)(lambda: add(None))
  pl.when(jnp.logical_not(whole))(lambda: add(limit_ref[0]))

  @pl.when(tile == pl.num_programs(1) - 1)
  def _():
    out_ref[...] = _combine_lanes(*(found_AnL[a] for a in range(_ACCUMULATORS)))


def _forward_call(hidden_ND, kernel_DV, blocks, vmem, interpret):
  """The `pallas_call`; N is a multiple of the block."""
  (N, D), V = hidden_ND.shape, kernel_DV.shape[1]
  n, c = blocks.tokens, blocks.columns
  same = hidden_ND.dtype == kernel_DV.dtype
  per_lane = pltpu.VMEM((n, LANES), jnp.float32)
  row = pl.BlockSpec((1, n), lambda i, j, _: (0, i))
  return pl.pallas_call(
    _forward_kernel,
    out_shape=jax.ShapeDtypeStruct((_ACCUMULATORS, N), jnp.float32),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(N // n, pl.cdiv(V, c)),
      in_specs=[
        row,
        row,
        pl.BlockSpec(
          # One buffer: the block changes once in hundreds of steps.
          (n, D),
          lambda i, j, _: (i, 0),
          pipeline_mode=pl.Buffered(1),
        ),
        pl.BlockSpec((D, c), lambda i, j, _: (0, j)),
      ],
      out_specs=pl.BlockSpec((_ACCUMULATORS, n), lambda i, j, _: (0, i)),
      scratch_shapes=[
        pltpu.VMEM((n, LANES), jnp.int32),
        per_lane,
        pltpu.VMEM((_ACCUMULATORS, n, LANES), jnp.float32),
      ]
      + ([] if same else [pltpu.VMEM((D, c), hidden_ND.dtype)]),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=blocks_tpu.limit(vmem),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * N * D * V,
      transcendentals=N * V,
      bytes_accessed=hidden_ND.nbytes + N // n * kernel_DV.nbytes + 24 * N,
    ),
    interpret=interpret,
    name='token_log_prob_forward',
  )


def forward(
  hidden_ND: jax.Array,
  kernel_DV: jax.Array,
  target_N: jax.Array,
  temperature_N: jax.Array,
  *,
  vocab_size: int | None,
  first: int | jax.Array = 0,
  vmem: int,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """As `xla.forward`; D is a multiple of 128, the dtype bfloat16 or float32.

  Args:
    hidden_ND, kernel_DV, target_N, temperature_N, vocab_size, first: as there,
      N > 0; a head of another dtype is cast tile by tile, in vector memory.
    vmem: bytes of vector memory of one core.
    interpret: run on a CPU, slowly.
  """
  (N, D), V = hidden_ND.shape, kernel_DV.shape[1]
  blocks = blocks_tpu.forward(
    N,
    D,
    V,
    hidden_bytes=hidden_ND.dtype.itemsize,
    head_bytes=kernel_DV.dtype.itemsize,
    vmem=vmem,
  )
  padded = blocks_tpu.ceil_to(N, blocks.tokens)
  hidden_ND = pad_tokens(hidden_ND, padded)
  found = _forward_call(hidden_ND, kernel_DV, blocks, vmem, interpret)(
    local_limit(first, V, vocab_size),
    pad_tokens(local_target(target_N, first, V), padded, -1)[None],
    pad_tokens(1 / temperature_N.astype(jnp.float32), padded, 1)[None],
    hidden_ND,
    kernel_DV,
  )
  return tuple(found[:, :N])
