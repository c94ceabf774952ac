"""What the TPU kernels of this operator have in common."""

import jax
import jax.numpy as jnp

from kernels.token_log_prob.tpu_blocks import LANES

# Vector memory of one core where the chip is not known: v5p's and tpu7x's.
VMEM = 64 * 2**20


def local_target(target_N, first, columns: int) -> jax.Array:
  """Targets as columns of this device; -1 where they are not among them.

  A target beyond the last column must not be found in the padding of the last
  tile, which is masked by a very small logit.
  """
  local = target_N - first
  return jnp.where((local >= 0) & (local < columns), local, -1)


def local_limit(first, columns: int, vocab_size: int | None) -> jax.Array:
  """int32 (1,): how many of this device's columns may be tokens."""
  limit = columns
  if vocab_size is not None:
    limit = jnp.clip(vocab_size - first, 0, columns)
  return jnp.asarray(limit, jnp.int32).reshape(1)


def spread(row, tokens: int):
  """(1, n) numbers a token -> (n, lanes): the same number in every lane."""
  return jnp.broadcast_to(row, (LANES, tokens)).T


def dot(a, b, a_axis: int, b_axis: int):
  """Matrix product over one axis of each, in float32.

  Float32 operands (tests; a TPU's own product rounds them to bfloat16) are not
  rounded.
  """
  exact = jnp.float32 in (a.dtype, b.dtype)
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def pad_tokens(x_N, tokens: int, value=0, axis: int = 0) -> jax.Array:
  """Fills the axis up to `tokens` with `value`."""
  if x_N.shape[axis] == tokens:
    return x_N
  pads = [(0, 0)] * x_N.ndim
  pads[axis] = (0, tokens - x_N.shape[axis])
  return jnp.pad(x_N, pads, constant_values=value)
