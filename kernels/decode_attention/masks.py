"""What the kernels make of a mask."""

import jax
import jax.numpy as jnp

# What a masked score is: finite, so that no difference of two is NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def blocks_to_read(valid_XC: jax.Array, block: int) -> jax.Array:
  """int32 (X,): blocks of each row up to its last valid position.

  Args:
    valid_XC: True where a position may be read.
    block: positions of a block.
  """
  C = valid_XC.shape[1]
  last_X = jnp.max(jnp.where(valid_XC, jnp.arange(1, C + 1), 0), axis=1)
  return (-(-last_X // block)).astype(jnp.int32)
