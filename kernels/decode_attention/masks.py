"""What the kernels make of a mask."""

import jax
import jax.numpy as jnp

# What a masked score is: finite, so that no difference of two is NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def blocks_to_read(
  valid_XC: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
  """The blocks of each row that hold anything valid, and those between them.

  Rows are rings: slots write their columns round and round, so what a row
  holds may begin anywhere and go on at the front. The blocks are the shortest
  run on the ring; a row that is valid from its front on is read from there.

  Args:
    valid_XC: True where a position may be read.
    block: positions of a block.

  Returns:
    int32 (X,), the first block of the run; and (X,), its length, 0 = nothing
    is valid. Block i of it is (first + i) modulo the row's blocks.
  """
  X, C = valid_XC.shape
  N = -(-C // block)
  padded_XC = jnp.pad(valid_XC, ((0, 0), (0, N * block - C)))
  used_XN = jnp.any(padded_XC.reshape(X, N, block), axis=2)
  place = jnp.arange(N, dtype=jnp.int32)
  # From each used block back to the used one before it, round the ring.
  up_to_XN = jax.lax.cummax(jnp.where(used_XN, place, -1), axis=1)
  before_XN = jnp.pad(up_to_XN, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  before_XN = jnp.where(before_XN < 0, up_to_XN[:, -1:] - N, before_XN)
  gap_XN = jnp.where(used_XN, place - before_XN, 0)
  first_X = jnp.argmax(gap_XN, axis=1).astype(jnp.int32)
  gap_X = jnp.max(gap_XN, axis=1)
  return first_X, jnp.where(gap_X > 0, N + 1 - gap_X, 0)
