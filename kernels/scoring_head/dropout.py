"""Counter-based dropout: the mask is a function of (seed, sequence, position).

No mutable key and no dependence on batch make-up: a sequence keeps its mask
whatever row, micro-batch, device or chunk it is computed in. The bits come from
the murmur3 finaliser over a Weyl-style counter, which any backend (and a
kernel) reproduces with integer arithmetic.

The counter has two halves, so that a kernel hashes a place once and a unit of
a place with little work: `place_hash` of (seed, sequence, position), then
`keep_units` of (place, unit).
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


def place_hash(
  seed: jax.Array, row: jax.Array, position: jax.Array
) -> jax.Array:
  """uint32 hash of each place; uint32 arguments that broadcast together.

  Args:
    seed: new each update.
    row: global number of the sequence.
    position: in the sequence.
  """
  row = mix(row * jnp.uint32(0x9E3779B9) + jnp.uint32(seed))
  return mix(row + position * jnp.uint32(0x85EBCA77))


def threshold(rate: float) -> int:
  """Hashes below it are dropped, of 2**32."""
  return min(int(rate * 2**32), 2**32 - 1)


def keep_units(place: jax.Array, unit: jax.Array, rate: float) -> jax.Array:
  """bool: True with probability 1 - rate; the arguments broadcast together.

  Args:
    place: `place_hash`.
    unit: uint32 number of the hidden unit.
    rate: share of units dropped, in [0, 1).
  """
  bits = mix(place ^ (unit * jnp.uint32(0xC2B2AE3D)))
  return bits >= jnp.uint32(threshold(rate))


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
  if row.ndim == 1:
    row = row[:, None]
  place = place_hash(seed, row, position)
  unit = jnp.arange(width, dtype=jnp.uint32)
  return keep_units(place[:, :, None], unit, rate)
