"""Triton kernels, and the passes made of them and of plain matrix products.

Forward: a program owns 128 tokens and a share of a slab of columns; tiles of
their logits live in registers, and only four numbers a token and share leave
it (`xla.forward` has their meaning).

Backward: the sums that d_hidden and d_kernel are do not fit into one
multiprocessor, and adding to them from many would be in no fixed order. So a
kernel makes the logits of a bounded piece again and writes their GRADIENT, in
the dtype of the hidden states, into the device's memory; two plain products
then sum it up in float32. That is three passes over two bytes a logit, where
the plain form has five over four.

The head is cut and cast slab by slab: no cast copy of it exists.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import precision
from kernels.token_log_prob import pallas_common
from kernels.token_log_prob.pallas_common import (
  COEFFICIENTS,
  local_limit,
  local_target,
  pad_tokens,
)
from kernels.token_log_prob.xla import NEVER_A_TOKEN

# A tile of logits, and how much of D one step of its product takes: as large as
# eight warps' registers and four buffers in shared memory allow.
_TOKENS = 128
_COLUMNS = 256
WIDTH_MULTIPLE = 64
_WARPS, _STAGES = 8, 4
# Neighbouring programs share their tiles through the L2 cache: 16 blocks of
# tokens by 8 shares of the columns, a wave of the H100's 132 multiprocessors.
_GROUP = 16
_SHARES = 8

# Columns of a slab in the forward pass.
_SLAB = 16_384
# Tokens of a piece of the backward pass, and bytes of its gradient.
_PIECE = 32_768
_PIECE_BYTES = 2**28


def _product(hidden_ref, head_ref, rows, columns):
  """The tile (rows, columns) of hidden states times head, float32."""

  def add(i, total):
    inner = pl.ds(i * WIDTH_MULTIPLE, WIDTH_MULTIPLE)
    return total + jax.lax.dot(
      hidden_ref[rows, inner],
      head_ref[inner, columns],
      precision=precision.of_products(hidden_ref.dtype),
      preferred_element_type=jnp.float32,
    )

  return jax.lax.fori_loop(
    0,
    hidden_ref.shape[1] // WIDTH_MULTIPLE,
    add,
    jnp.zeros((_TOKENS, _COLUMNS), jnp.float32),
  )


def _block(num_blocks):
  """This program's block of tokens, and whether there is one."""
  block = pl.program_id(2) * _GROUP + pl.program_id(0)
  return block, block < num_blocks


def _columns_of(start):
  return start + jnp.arange(_COLUMNS)


def _forward_kernel(
  hidden_ref, head_ref, target_ref, scale_ref, limit_ref, out_ref
):
  """out: (share, 4, N)."""
  block, real = _block(hidden_ref.shape[0] // _TOKENS)
  share = pl.program_id(1)
  tiles = head_ref.shape[1] // _COLUMNS // pl.num_programs(1)

  @pl.when(real)
  def _():
    rows = pl.ds(block * _TOKENS, _TOKENS)
    target = target_ref[rows]
    scale = scale_ref[rows]
    limit = limit_ref[0]

    def add(i, found):
      top, total, mean, taken = found
      start = (share * tiles + i) * _COLUMNS
      logits = _product(hidden_ref, head_ref, rows, pl.ds(start, _COLUMNS))
      logits = logits * scale[:, None]
      column = _columns_of(start)
      logits = jnp.where(column[None, :] < limit, logits, NEVER_A_TOKEN)
      new = jnp.maximum(top, jnp.max(logits, axis=1))
      weight = jnp.exp(logits - new[:, None])
      old = jnp.exp(top - new)
      is_target = column[None, :] == target[:, None]
      return (
        new,
        total * old + jnp.sum(weight, axis=1),
        mean * old + jnp.sum(weight * logits, axis=1),
        taken + jnp.sum(jnp.where(is_target, logits, 0.0), axis=1),
      )

    zeros = jnp.zeros((_TOKENS,), jnp.float32)
    start = zeros + NEVER_A_TOKEN, zeros, zeros, zeros
    for i, x in enumerate(jax.lax.fori_loop(0, tiles, add, start)):
      out_ref[share, i, rows] = x


def _d_logits_kernel(
  hidden_ref, head_ref, target_ref, rows_ref, limit_ref, out_ref
):
  """out: (N, columns), in the dtype of the hidden states."""
  block, real = _block(hidden_ref.shape[0] // _TOKENS)
  start = pl.program_id(1) * _COLUMNS

  @pl.when(real)
  def _():
    rows = pl.ds(block * _TOKENS, _TOKENS)
    columns = pl.ds(start, _COLUMNS)
    logits = _product(hidden_ref, head_ref, rows, columns)
    column = _columns_of(start)
    target = target_ref[rows]
    d_logits = pallas_common.d_logits(
      logits,
      column[None, :] == target[:, None],
      *(rows_ref[r, rows][:, None] for r in range(COEFFICIENTS)),
    )
    limit = limit_ref[0]
    d_logits = jnp.where(column[None, :] < limit, d_logits, 0.0)
    out_ref[rows, columns] = d_logits.astype(out_ref.dtype)


def _call(kernel, name, num_tokens, second, out_shape, cost, interpret):
  """The `pallas_call`, its programs in groups of blocks of tokens."""
  blocks = num_tokens // _TOKENS
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    grid=(min(_GROUP, blocks), second, -(-blocks // _GROUP)),
    compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    cost_estimate=cost,
    interpret=bool(interpret),
    name=name,
  )


def _cost(hidden_ND, head_DW, out_bytes):
  (N, D), W = hidden_ND.shape, head_DW.shape[1]
  groups = -(-N // (_GROUP * _TOKENS))
  return pl.CostEstimate(
    flops=2 * N * D * W,
    transcendentals=N * W,
    bytes_accessed=hidden_ND.nbytes + groups * head_DW.nbytes + out_bytes,
  )


def _head_slab(kernel_DV, start, width, dtype):
  """Columns of the head in `dtype`, filled up to whole tiles with zeros."""
  slab = jax.lax.dynamic_slice_in_dim(kernel_DV, start, width, axis=1)
  whole = -(-width // _COLUMNS) * _COLUMNS
  return pad_tokens(slab.astype(dtype), whole, axis=1)


def _over_slabs(body, carry, columns: int, slab: int):
  """body(carry, first column, width) over slabs; the last may be narrower."""
  slabs, rest = divmod(columns, slab)
  if slabs:
    carry, _ = jax.lax.scan(
      lambda carry, start: (body(carry, start, slab), None),
      carry,
      jnp.arange(slabs) * slab,
    )
  if rest:
    carry = body(carry, slabs * slab, rest)
  return carry


def _merge(one, other):
  """Two parts of the vocabulary: top, total, mean, taken of both."""
  top = jnp.maximum(one[0], other[0])
  a, b = jnp.exp(one[0] - top), jnp.exp(other[0] - top)
  return (
    top,
    one[1] * a + other[1] * b,
    one[2] * a + other[2] * b,
    one[3] + other[3],
  )


def forward(
  hidden_ND: jax.Array,
  kernel_DV: jax.Array,
  target_N: jax.Array,
  temperature_N: jax.Array,
  *,
  vocab_size: int | None,
  first: int | jax.Array = 0,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """As `xla.forward`; D is a multiple of 64, the dtype bfloat16 or float32.

  Args:
    hidden_ND, kernel_DV, target_N, temperature_N, vocab_size, first: as there,
      N > 0.
    interpret: run on a CPU, slowly.
  """
  N, V = hidden_ND.shape[0], kernel_DV.shape[1]
  padded = -(-N // _TOKENS) * _TOKENS
  hidden_ND = pad_tokens(hidden_ND, padded)
  target = pad_tokens(local_target(target_N, first, V), padded, -1)
  scale = pad_tokens(1 / temperature_N.astype(jnp.float32), padded, 1)
  limit = local_limit(first, V, vocab_size)

  def add(found, start, width):
    head = _head_slab(kernel_DV, start, width, hidden_ND.dtype)
    tiles = head.shape[1] // _COLUMNS
    shares = max(x for x in range(1, _SHARES + 1) if tiles % x == 0)
    shape = shares, 4, padded
    out = _call(
      _forward_kernel,
      'token_log_prob_forward',
      padded,
      shares,
      jax.ShapeDtypeStruct(shape, jnp.float32),
      _cost(hidden_ND, head, 16 * shares * padded),
      interpret,
    )(hidden_ND, head, target - start, scale, limit - start)
    return functools.reduce(_merge, map(tuple, out), found)

  zeros = jnp.zeros((padded,), jnp.float32)
  found = zeros + NEVER_A_TOKEN, zeros, zeros, zeros
  found = _over_slabs(add, found, V, min(V, _SLAB))
  return tuple(x[:N] for x in found)


def _piece_gradients(
  hidden_nD, kernel_DV, target_n, rows_5n, limit, d_kernel, adds, interpret
):
  """A piece's d_hidden, float32, and d_kernel with its share."""
  n, V = hidden_nD.shape[0], kernel_DV.shape[1]
  dtype = hidden_nD.dtype

  def add(carry, start, width):
    d_hidden, d_kernel = carry
    head = _head_slab(kernel_DV, start, width, dtype)
    W = head.shape[1]
    d_logits = _call(
      _d_logits_kernel,
      'token_log_prob_d_logits',
      n,
      W // _COLUMNS,
      jax.ShapeDtypeStruct((n, W), dtype),
      _cost(hidden_nD, head, n * W * dtype.itemsize),
      interpret,
    )(hidden_nD, head, target_n - start, rows_5n, limit - start)
    dot = functools.partial(
      jnp.einsum,
      preferred_element_type=jnp.float32,
      precision=precision.of_products(dtype),
    )
    d_hidden = d_hidden + dot('nW,DW->nD', d_logits, head)
    share = dot('nD,nW->DW', hidden_nD, d_logits)[:, :width]
    if adds:
      share += jax.lax.dynamic_slice_in_dim(d_kernel, start, width, axis=1)
    d_kernel = jax.lax.dynamic_update_slice_in_dim(
      d_kernel, share, start, axis=1
    )
    return d_hidden, d_kernel

  slab = _PIECE_BYTES // (n * dtype.itemsize) // _COLUMNS * _COLUMNS
  slab = min(max(slab, _COLUMNS), _SLAB, V)
  start = jnp.zeros(hidden_nD.shape, jnp.float32), d_kernel
  return _over_slabs(add, start, V, slab)


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
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """As `xla.backward`; see `forward` for what is asked of the arguments.

  Returns:
    d_hidden in its dtype; d_kernel float32.
  """
  (N, D), V = hidden_ND.shape, kernel_DV.shape[1]
  pieces = -(-N // _PIECE)
  n = -(-N // (pieces * _TOKENS)) * _TOKENS
  padded = pieces * n
  rows = pallas_common.coefficients(
    temperature_N, log_z_N, entropy_N, d_log_prob_N, d_entropy_N
  )
  arrays = (
    pad_tokens(hidden_ND, padded),
    pad_tokens(local_target(target_N, first, V), padded, -1),
    pad_tokens(rows, padded, axis=1),
  )
  limit = local_limit(first, V, vocab_size)

  def body(d_kernel, i):
    hidden, target, rows = (
      jax.lax.dynamic_slice_in_dim(x, i * n, n, axis=axis)
      for x, axis in zip(arrays, (0, 0, 1), strict=True)
    )
    d_hidden, d_kernel = _piece_gradients(
      hidden, kernel_DV, target, rows, limit, d_kernel, pieces > 1, interpret
    )
    return d_kernel, d_hidden.astype(hidden.dtype)

  d_kernel, d_hidden = jnp.zeros((D, V), jnp.float32), None
  if pieces == 1:
    d_kernel, d_hidden = body(d_kernel, 0)
  else:
    d_kernel, d_hidden = jax.lax.scan(body, d_kernel, jnp.arange(pieces))
    d_hidden = d_hidden.reshape(padded, D)
  return d_hidden[:N], d_kernel
