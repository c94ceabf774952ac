"""Places of the marks, side by side, however many there are.

Letters: N places of one device, S slots, as many. A slot holds the place of a
mark; marks come first, so any number of marks is a prefix and work on it can
stop at `count`.

Two places 2i and 2i+1 share 32-bit words of a bfloat16 array's memory on a TPU.
Where both are marks they get slots 2j and 2j+1 before every lone mark, so
blocks of an even number of slots never cut a pair and a kernel can write both
halves of the words at once.
"""

import typing

import jax
import jax.numpy as jnp

# Share of places that are marks, for estimates of cost: the count is data.
EXPECTED_MARKS = 1 / 16

_LANES = 128
_CHUNK = 4096  # slots found at a time


class Slots(typing.NamedTuple):
  """Where the marks are.

  Attributes:
    place_S: int32, the place of each slot; N where there is no mark.
    count: int32 scalar, slots that are marks.
    paired: int32 scalar, even; slots below it hold pairs.
  """

  place_S: jax.Array
  count: jax.Array
  paired: jax.Array


def slots(mark_N: jax.Array, *, sort: bool) -> Slots:
  """Slots of marks (bool): pairs, then lone marks, each by place.

  Args:
    mark_N: bool.
    sort: how to find them: by sorting, or by counting, which is for TPUs,
      whose compiler takes 40 s over a sort of 65,536 numbers.
  """
  N = mark_N.shape[0]
  none = jnp.zeros(min(N, 1), bool)
  after_N = jnp.concatenate([mark_N[1:], none])
  before_N = jnp.concatenate([none, mark_N[:-1]])
  odd_N = jnp.arange(N) & 1 == 1
  both_N = mark_N & jnp.where(odd_N, before_N, after_N)
  find = _by_sorting if sort else _by_counting
  count = jnp.sum(mark_N, dtype=jnp.int32)
  place_S = find(both_N, mark_N & ~both_N, count) if N else jnp.zeros(0, int)
  return Slots(
    jnp.where(jnp.arange(N) < count, place_S, N).astype(jnp.int32),
    count,
    jnp.sum(both_N, dtype=jnp.int32),
  )


def _by_sorting(first_N, second_N, count):
  """Places of the first kind of marks, then of the second."""
  del count
  N = first_N.shape[0]
  if N >= 2**31 // 3:
    raise ValueError(f'{N} places on a device; they are sorted in 32 bits')
  rank_N = jnp.where(first_N, 0, jnp.where(second_N, 1, 2))
  return jnp.sort(rank_N * N + jnp.arange(N, dtype=jnp.int32)) % N


def _by_counting(first_N, second_N, count):
  """As `_by_sorting`, by dense arithmetic that grows with the marks.

  Marks lie in rows of 128. A slot's row is the number of rows whose marks are
  all before it; its lane, the number of marks of the row up to each lane that
  are before it. Rows are picked by a product with ones and zeros, which is
  exact: counts up to 128 are whole numbers in any float.
  """
  N = first_N.shape[0]
  pad = (0, -N % _LANES)
  mark_RL = jnp.concatenate([jnp.pad(x, pad) for x in (first_N, second_N)])
  mark_RL = mark_RL.reshape(-1, _LANES).astype(jnp.bfloat16)
  upto_RL = jnp.dot(
    mark_RL,
    jnp.triu(jnp.ones((_LANES, _LANES), jnp.bfloat16)),
    preferred_element_type=jnp.float32,
  )
  total_R = upto_RL[:, -1].astype(jnp.int32)
  end_R = jnp.cumsum(total_R)
  rows = jnp.arange(end_R.shape[0])
  chunk = min(_CHUNK, N)

  def body(i, place_S):
    slot_C1 = i * chunk + jnp.arange(chunk, dtype=jnp.int32)[:, None]
    before_CR = end_R <= slot_C1
    row_C1 = jnp.sum(before_CR, 1, keepdims=True)
    rest_C1 = slot_C1 - jnp.sum(
      jnp.where(before_CR, total_R, 0), 1, keepdims=True
    )
    upto_CL = jnp.dot(
      (rows == row_C1).astype(jnp.bfloat16),
      upto_RL.astype(jnp.bfloat16),
      preferred_element_type=jnp.float32,
    )
    lane_C = jnp.sum(upto_CL <= rest_C1, 1)
    place_C = row_C1[:, 0] * _LANES + lane_C
    half = upto_RL.size // 2
    place_C = jnp.where(place_C < half, place_C, place_C - half)
    return jax.lax.dynamic_update_slice(
      place_S, place_C.astype(jnp.int32), (i * chunk,)
    )

  chunks = -(-N // chunk)
  place_S = jax.lax.fori_loop(
    0, -(-count // chunk), body, jnp.zeros(chunks * chunk, jnp.int32)
  )
  return place_S[:N]
