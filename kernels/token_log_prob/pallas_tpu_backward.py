"""The TPU kernel of the backward pass.

Grid: two halves of the vocabulary, blocks of tokens, tiles of columns. A block
of tokens and the float32 gradient in it stay in vector memory while tiles of
the head stream past; each tile's logits are made again, turned into their
gradient, and multiplied by the head (into d_hidden) and by the hidden states:
that share of d_kernel is added to what lies in the device's memory, read and
written by copies that run beside the arithmetic (stream_tpu.py). Three matrix
products; two kernels, one for each gradient, would need four.

The halves are what the two cores of a megacore chip (v4, v5p) share; they touch
different columns of d_kernel, and each has its own d_hidden, summed at the end.
Few blocks of tokens at a time go through one call, so that these two stay
small.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.token_log_prob import blocks_tpu, pallas_common
from kernels.token_log_prob.blocks_tpu import LANES
from kernels.token_log_prob.pallas_common import (
  COEFFICIENTS,
  local_limit,
  local_target,
  pad_tokens,
)
from kernels.token_log_prob.pallas_tpu import dot, over_parts, spread
from kernels.token_log_prob.stream_tpu import Plan, Position, Stream

# Bytes of float32 d_hidden, of both halves, that one call may leave behind.
_PARTIAL = 64 * 2**20


def _load_block(plan, target_ref, rows_ref, hidden_hbm, scratch, block):
  """What stays in vector memory for all tiles of a block of tokens."""
  n = plan.blocks.tokens
  copy = pltpu.make_async_copy(
    hidden_hbm.at[pl.ds(pl.multiple_of(block * n, LANES), n), :],
    scratch['hidden'],
    scratch['semaphore'],
  )
  copy.start()
  lane = jax.lax.broadcasted_iota(jnp.int32, (n, LANES), 1)
  scratch['target'][...] = spread(target_ref[...], n) - lane

  @pl.loop(0, COEFFICIENTS)  # One transpose's worth of memory.
  def _(i):
    scratch['rows'][i] = spread(rows_ref[pl.ds(i, 1), :], n)

  scratch['d_hidden'][...] = jnp.zeros_like(scratch['d_hidden'])
  copy.wait()

  # In narrow parts: what is transposed exists three times over.
  def transpose(part):
    scratch['transposed'][part, :] = scratch['hidden'][:, part].T

  over_parts(scratch['hidden'].shape[1], transpose, LANES)


def _clean_head(plan, head_ref, scratch, tile):
  """The tile of the head in the dtype of the hidden states.

  What the last tile holds beyond the head's columns is not a number one may
  multiply by zero.
  """
  if not plan.copied:
    return head_ref
  copy = scratch['head']
  columns = plan.blocks.columns
  left = plan.columns - tile * columns

  def cast(part):
    copy[part, :] = head_ref[part, :].astype(copy.dtype)

  def clean(part):
    found = head_ref[part, :]
    column = jax.lax.broadcasted_iota(jnp.int32, found.shape, 1)
    copy[part, :] = jnp.where(column < left, found, 0).astype(copy.dtype)

  whole = left >= columns
  pl.when(whole)(lambda: over_parts(copy.shape[0], cast))
  if plan.columns % columns:
    pl.when(jnp.logical_not(whole))(lambda: over_parts(copy.shape[0], clean))
  return copy


def _make_d_logits(plan, head, scratch, first_column, limit):
  """The gradient of the loss in the tile's products, cast for the next two."""

  def make(part):
    logits = dot(scratch['hidden'][part, :], head[...], 1, 0)
    numbers = [scratch['rows'][r, part, :] for r in range(COEFFICIENTS)]
    target = scratch['target'][part, :] - first_column
    for c in range(0, plan.blocks.columns, LANES):
      d_logits = pallas_common.d_logits(
        logits[:, c : c + LANES], target == c, *numbers
      )
      if limit is not None:
        lane = jax.lax.broadcasted_iota(jnp.int32, d_logits.shape, 1)
        d_logits = jnp.where(lane < limit - first_column - c, d_logits, 0)
      scratch['d_logits'][part, c : c + LANES] = d_logits.astype(
        scratch['d_logits'].dtype
      )

  over_parts(plan.blocks.tokens, make, blocks_tpu.rows(scratch['hidden']))


def _add_d_hidden(head, scratch, part):
  scratch['d_hidden'][:, part] += dot(
    scratch['d_logits'][...], head[part, :], 1, 1
  )


def _add_d_kernel(slot, adds, scratch, part):
  share = dot(scratch['transposed'][part, :], scratch['d_logits'][...], 1, 0)
  if adds:
    share += scratch['slots'][slot, part, :]
  scratch['slots'][slot, part, :] = share


def _kernel(plan, meta_ref, target_ref, rows_ref, hidden_hbm, head_ref, *refs):
  """meta: (columns that may be tokens, first block of tokens)."""
  if plan.accumulate:
    refs = refs[1:]  # The same memory as the result.
  partial_hbm, d_kernel_hbm, *refs = refs
  scratch = dict(zip(_scratch(plan, hidden_hbm), refs, strict=True))
  half, block, j = (pl.program_id(i) for i in range(3))
  first_tile = half * plan.per_half
  count = jnp.minimum(plan.per_half, plan.tiles - first_tile)
  at = Position(block, j, count, first_tile)

  @pl.when(j == 0)
  def _():
    _load_block(
      plan, target_ref, rows_ref, hidden_hbm, scratch, meta_ref[1] + block
    )

  @pl.when(j < count)
  def _():
    head = _clean_head(plan, head_ref, scratch, at.tile)
    first_column = at.tile * plan.blocks.columns
    whole = first_column + plan.blocks.columns <= meta_ref[0]
    make = functools.partial(_make_d_logits, plan, head, scratch, first_column)
    pl.when(whole)(lambda: make(None))
    pl.when(jnp.logical_not(whole))(lambda: make(meta_ref[0]))
    stream = Stream(
      plan, at, d_kernel_hbm, scratch['slots'], scratch['semaphores']
    )
    stream.free_other_slot()
    D = hidden_hbm.shape[1]
    over_parts(D, functools.partial(_add_d_hidden, head, scratch))
    stream.store(
      lambda slot, adds: over_parts(
        D, functools.partial(_add_d_kernel, slot, adds, scratch)
      )
    )

  @pl.when(j == plan.per_half - 1)
  def _():
    n = plan.blocks.tokens
    pltpu.sync_copy(
      scratch['d_hidden'],
      partial_hbm.at[half, pl.ds(pl.multiple_of(block * n, LANES), n), :],
    )


def _scratch(plan, hidden_ND):
  """Names and shapes of the vector memory and semaphores of the kernel."""
  D, dtype = hidden_ND.shape[1], hidden_ND.dtype
  n, c = plan.blocks.tokens, plan.blocks.columns
  float32 = jnp.float32
  found = dict(
    hidden=pltpu.VMEM((n, D), dtype),
    transposed=pltpu.VMEM((D, n), dtype),
    d_hidden=pltpu.VMEM((n, D), float32),
    target=pltpu.VMEM((n, LANES), jnp.int32),
    rows=pltpu.VMEM((COEFFICIENTS, n, LANES), float32),
    d_logits=pltpu.VMEM((n, c), dtype),
    slots=pltpu.VMEM((2, D, c), float32),
    semaphore=pltpu.SemaphoreType.DMA,
    semaphores=pltpu.SemaphoreType.DMA((2, 2)),
  )
  if plan.copied:
    found['head'] = pltpu.VMEM((D, c), dtype)
  return found


def _cost(plan, D, hidden_ND, kernel_DV):
  tokens = plan.calls * plan.blocks.tokens
  # Of d_kernel, read and written; a first call has nothing to read at first.
  passes = 2 * plan.calls - (0 if plan.accumulate else 1)
  return pl.CostEstimate(
    flops=6 * tokens * D * plan.columns,
    transcendentals=tokens * plan.columns,
    bytes_accessed=plan.halves * tokens * D * (hidden_ND.dtype.itemsize + 4)
    + plan.calls * kernel_DV.nbytes
    + passes * D * plan.columns * 4,
  )


def _call(plan, hidden_ND, kernel_DV, vmem, interpret):
  """The `pallas_call` on `plan.calls` blocks of tokens from meta[1] on."""
  D = hidden_ND.shape[1]
  n, c = plan.blocks.tokens, plan.blocks.columns
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  in_specs = [
    pl.BlockSpec((1, n), lambda h, i, j, meta: (0, meta[1] + i)),
    pl.BlockSpec((COEFFICIENTS, n), lambda h, i, j, meta: (0, meta[1] + i)),
    anywhere,
    pl.BlockSpec(
      (D, c),
      lambda h, i, j, meta: (
        0,
        jnp.minimum(h * plan.per_half + j, plan.tiles - 1),
      ),
    ),
  ]
  width = blocks_tpu.ceil_to(plan.columns, LANES)
  out_shape = [
    jax.ShapeDtypeStruct((plan.halves, plan.calls * n, D), jnp.float32),
    jax.ShapeDtypeStruct((D, width), jnp.float32),
  ]
  aliases = {}
  if plan.accumulate:
    in_specs.append(anywhere)
    aliases = {5: 1}  # The prefetched scalars count.
  return pl.pallas_call(
    functools.partial(_kernel, plan),
    out_shape=out_shape,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(plan.halves, plan.calls, plan.per_half),
      in_specs=in_specs,
      out_specs=[anywhere] * len(out_shape),
      scratch_shapes=list(_scratch(plan, hidden_ND).values()),
    ),
    input_output_aliases=aliases,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=blocks_tpu.limit(vmem),
    ),
    cost_estimate=_cost(plan, D, hidden_ND, kernel_DV),
    interpret=interpret,
    name='token_log_prob_backward',
  )


def backward(
  hidden_ND: jax.Array,
  kernel_DV: jax.Array,
  target_N: jax.Array,
  temperature_N: jax.Array,
  log_z_N: jax.Array,
  entropy_N: jax.Array,
  d_log_prob_N: jax.Array,
  d_entropy_N: jax.Array,
  *,
  vocab_size: int | None,
  first: int | jax.Array = 0,
  vmem: int,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array]:
  """As `xla.backward`; `pallas_tpu.forward` says what it takes.

  Returns:
    d_hidden in its dtype; d_kernel float32.
  """
  N, V = hidden_ND.shape[0], kernel_DV.shape[1]
  plan = _plan(hidden_ND, kernel_DV, vmem)
  n, calls = plan.blocks.tokens, plan.calls
  total = blocks_tpu.ceil_to(N, calls * n)
  hidden_ND = pad_tokens(hidden_ND, total)
  target = pad_tokens(local_target(target_N, first, V), total, -1)[None]
  rows = pallas_common.coefficients(
    temperature_N, log_z_N, entropy_N, d_log_prob_N, d_entropy_N
  )
  rows = pad_tokens(rows, total, axis=1)
  limit = local_limit(first, V, vocab_size)

  def call(plan, block, *d_kernel):
    partial, d_kernel = _call(plan, hidden_ND, kernel_DV, vmem, interpret)(
      jnp.append(limit, block).astype(jnp.int32),
      target,
      rows,
      hidden_ND,
      kernel_DV,
      *d_kernel,
    )
    return partial.sum(0).astype(hidden_ND.dtype), d_kernel

  # The first call writes every tile of d_kernel: nothing has to be zeroed.
  d_hidden, d_kernel = call(plan, 0)
  if total > calls * n:
    plan = dataclasses.replace(plan, accumulate=True)

    def more(i, carry):
      d_hidden, d_kernel = carry
      new, d_kernel = call(plan, i * calls, d_kernel)
      return jax.lax.dynamic_update_slice_in_dim(
        d_hidden, new, i * calls * n, axis=0
      ), d_kernel

    d_hidden, d_kernel = jax.lax.fori_loop(
      1, total // (calls * n), more, (pad_tokens(d_hidden, total), d_kernel)
    )
  return d_hidden[:N], d_kernel[:, :V]


def _plan(hidden_ND, kernel_DV, vmem) -> Plan:
  """Of the first call: as many blocks as divide all and keep _PARTIAL."""
  (N, D), V = hidden_ND.shape, kernel_DV.shape[1]
  blocks = blocks_tpu.backward(
    N,
    D,
    V,
    hidden_bytes=hidden_ND.dtype.itemsize,
    head_bytes=kernel_DV.dtype.itemsize,
    vmem=vmem,
  )
  total = -(-N // blocks.tokens)
  most = max(1, _PARTIAL // (2 * 4 * blocks.tokens * D))
  return Plan(
    blocks,
    calls=max(x for x in range(1, min(most, total) + 1) if total % x == 0),
    columns=V,
    accumulate=False,
    copied=kernel_DV.dtype != hidden_ND.dtype or V % blocks.columns > 0,
  )
