"""Counter-based dropout: the mask is a function of (seed, sequence, position).

No mutable key and no dependence on batch make-up: a sequence keeps its mask
whatever row, micro-batch, device or chunk it is computed in. The bits come from
the murmur3 finaliser over a Weyl-style counter, which any backend (and a
kernel) reproduces with integer arithmetic.
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
  seed: jax.Array, row: jax.Array, position: jax.Array, width: int, rate
) -> jax.Array:
  """bool (B, T, width): True with probability 1 - rate.

  Args:
    seed: uint32 scalar, new each update.
    row: uint32 global number of the sequence; (B,), or (B, T) where rows hold
      several.
    position: uint32 position in the sequence; (T,), or (B, T).
    width: units of the hidden layer.
    rate: share of units dropped, in [0, 1).
  """
  row = mix(row * jnp.uint32(0x9E3779B9) + jnp.uint32(seed))
  if row.ndim == 1:
    row = row[:, None]
  place = mix(row + position * jnp.uint32(0x85EBCA77))
  unit = jnp.arange(width, dtype=jnp.uint32) * jnp.uint32(0xC2B2AE3D)
  bits = mix(place[:, :, None] ^ unit)
  return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
