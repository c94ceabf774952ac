"""Tiles: the slots of one prompt, a few at a time.

A tile is the unit of work against the prompt caches: whatever reads a prompt
for a tile reads it once for all its slots, wherever they are. A tile that a
group does not fill has places that repeat its last slot, and nobody looks at
what they get. Tiles that no group needs hold any slot.
"""

import dataclasses

import jax
import jax.numpy as jnp

# Slots of a tile at most: with 8 rows a slot and key/value head a matrix
# product of 256 rows, whose arithmetic takes as long as fetching the prompt on
# v5e, 1.5 times as long on v5p and half as long on v6e.
MAX_SIZE = 32
# Groups smaller than this are not worth a smaller matrix product.
_MIN_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Tiles:
  """T tiles of N places for B slots of P prompts.

  Attributes:
    prompt_T: int32, the prompt of each tile.
    count_T: int32, slots of each tile, at most N; 0 = the tile is not used.
    slot_TN: int32, the slot at each place.
    place_B: int32, t * N + n of each slot.
    exact: place number i is slot number i.
    whole: tile number i is prompt number i.
  """

  prompt_T: jax.Array
  count_T: jax.Array
  slot_TN: jax.Array
  place_B: jax.Array
  exact: bool
  whole: bool

  def gather(self, x_B: jax.Array) -> jax.Array:
    """Slots into places: (B, ...) -> (T, N, ...)."""
    if self.exact:
      return x_B.reshape(*self.slot_TN.shape, *x_B.shape[1:])
    return x_B[self.slot_TN]

  def scatter(self, x_TN: jax.Array) -> jax.Array:
    """Places back into slots: (T, N, ...) -> (B, ...)."""
    x_M = x_TN.reshape(-1, *x_TN.shape[2:])
    return x_M if self.exact else x_M[self.place_B]

  def prompts(self, x_P: jax.Array) -> jax.Array:
    """The prompt of each tile, copied unless `whole`: (P, ...) -> (T, ...)."""
    return x_P if self.whole else x_P[self.prompt_T]


def size(slots: int, prompts: int, equal: bool, limit: int = MAX_SIZE) -> int:
  """N, from shapes alone.

  Groups of equal size are cut into as few equal parts as `limit` allows. Of
  ragged groups only the mean is known: a tile holds twice that, so that most
  groups need one tile and a small group does not compute for too many.

  Args:
    slots: B.
    prompts: P.
    equal: whether every prompt has B / P slots.
    limit: N at most.
  """
  mean = -(-slots // prompts)
  if equal:
    return -(-mean // -(-mean // limit))
  return min(limit, max(_MIN_SIZE, 2 * mean), slots)


def bound(slots: int, prompts: int, size: int) -> int:
  """T: tiles of N that any grouping of the slots can need."""
  used = min(slots, prompts)  # prompts with a slot, at most
  return used + (slots - used) // size


def make(
  prompt_B: jax.Array | None,
  slots: int,
  prompts: int,
  limit: int = MAX_SIZE,
) -> Tiles:
  """The tiles of a grouping.

  Args:
    prompt_B: int32, the prompt of each slot, in any order; None = equal
      groups of neighbours.
    slots: B, at least 1.
    prompts: P, divides B where the groups are equal.
    limit: N at most.
  """
  B, P = slots, prompts
  N = size(B, P, prompt_B is None, limit)
  if prompt_B is None:
    if B % (P * N) == 0:
      slot_TN = jnp.arange(B, dtype=jnp.int32).reshape(-1, N)
      T = len(slot_TN)
      return Tiles(
        prompt_T=jnp.arange(T, dtype=jnp.int32) // (T // P),
        count_T=jnp.full((T,), N, jnp.int32),
        slot_TN=slot_TN,
        place_B=slot_TN.reshape(-1),
        exact=True,
        whole=T == P,
      )
    prompt_B = jnp.arange(B, dtype=jnp.int32) // (B // P)
  T = bound(B, P, N)
  slot, tile, prompt = (jnp.arange(n, dtype=jnp.int32) for n in (B, T, P))
  count_P = jnp.sum(prompt_B[None] == prompt[:, None], axis=1, dtype=jnp.int32)
  tiles_P = -(-count_P // N)
  tile_end_P = jnp.cumsum(tiles_P)
  prompt_T = jnp.minimum(
    jnp.sum(tile_end_P[None] <= tile[:, None], axis=1, dtype=jnp.int32),
    jnp.max(prompt_B),
  )
  first_T = (tile - (tile_end_P - tiles_P)[prompt_T]) * N
  count_T = jnp.clip(count_P[prompt_T] - first_T, 0, N)
  # Slots of the same prompt before each. Sums over comparisons, here and below:
  # a sort takes a TPU's compiler long, and there are few slots.
  before_BB = (prompt_B[:, None] == prompt_B[None]) & (slot < slot[:, None])
  rank_B = jnp.sum(before_BB, axis=1, dtype=jnp.int32)
  place_B = (tile_end_P - tiles_P)[prompt_B] * N + rank_B
  place_TN = jnp.minimum(jnp.arange(N), jnp.maximum(count_T - 1, 0)[:, None])
  place_TN += tile[:, None] * N
  slot_TN = jnp.sum(jnp.where(place_TN[..., None] == place_B, slot, 0), axis=-1)
  return Tiles(
    prompt_T=prompt_T,
    count_T=count_T,
    slot_TN=slot_TN,
    place_B=place_B,
    exact=False,
    whole=False,
  )
