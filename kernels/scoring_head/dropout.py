"""Counter-based dropout: the mask is a pure function of (seed, row, place).

No mutable key and no dependence on batch make-up: row b keeps the same mask
whatever micro-batch, device or chunk it is computed in. The bits come from the
murmur3 finaliser over a Weyl-style counter, which any backend (and a kernel)
reproduces with integer arithmetic.
"""

import jax
import jax.numpy as jnp


def mix(x: jax.Array) -> jax.Array:
  """The murmur3 32-bit finaliser (Appleby 2011), on uint32."""
  x = x ^ (x >> 16)
  x = x * jnp.uint32(0x85EBCA6B)
  x = x ^ (x >> 13)
  x = x * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def keep_mask(
  seed: jax.Array, row_B: jax.Array, position_T: jax.Array, width: int, rate
) -> jax.Array:
  """bool (B, T, width): True with probability 1 - rate.

  Args:
    seed: uint32 scalar, new each update.
    row_B: uint32 global row index of each sequence.
    position_T: uint32 positions in the row.
    width: units of the hidden layer.
    rate: share of units dropped, in [0, 1).
  """
  row = mix(row_B * jnp.uint32(0x9E3779B9) + jnp.uint32(seed))
  place = mix(row[:, None] + position_T[None, :] * jnp.uint32(0x85EBCA77))
  unit = jnp.arange(width, dtype=jnp.uint32) * jnp.uint32(0xC2B2AE3D)
  bits = mix(place[:, :, None] ^ unit)
  return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
