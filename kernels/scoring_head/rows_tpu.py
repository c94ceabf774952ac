"""Single rows and single numbers of large arrays, in a TPU kernel.

Rows of a bfloat16 matrix in HBM: a DMA moves whole 32-bit words, and a word
holds the same column of rows 2i and 2i+1. So what is moved is the pair of rows
that holds a place: reading, the half that is wanted is picked in VMEM; writing,
the other half is the row of the other place if that is a mark (`marks` gives
both one block, side by side) and 0 if not, which is what its gradient is.

Numbers of a vector that lies in VMEM as a table of 128 lanes: a place's row is
loaded or stored as a whole, its lane picked afterwards for all at once.

Letters: M slots of a block, C of a chunk, D columns, L the 128 lanes. Values by
slot are kept in all lanes of an (M, L) array, ready for arithmetic on (M, D).
`stage` holds the pairs of a chunk, (2C, D); its copies share one semaphore.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
_TOGETHER = 8  # copies started, or rows moved, in one turn of a loop
GROUP = 16  # slots picked at a time: registers hold 16 x 5,120 words


def table(value_N: jax.Array) -> jax.Array:
  """A vector as (N / 128, 128), padded with zeros."""
  return jnp.pad(value_N, (0, -value_N.shape[0] % LANES)).reshape(-1, LANES)


def spread(value_ML: jax.Array, width: int) -> jax.Array:
  """Repeated to a width that is a multiple of 128."""
  return jnp.concatenate([value_ML] * (width // LANES), axis=1)


def pair_of(place: jax.Array) -> jax.Array:
  """First of the two rows that share words with a place."""
  return pl.multiple_of((place >> 1) * 2, 2)


def _each(count, most: int, do) -> None:
  """`do(i)` for i below `count`; several a turn where `count` is `most`."""
  together = _TOGETHER if most % _TOGETHER == 0 else 1

  @pl.when(count == most)
  def _():
    @pl.loop(0, most // together)
    def _(turn):
      for i in range(together):
        do(turn * together + i)

  @pl.when(count != most)
  def _():
    pl.loop(0, count)(do)


def _staged(stage_ref, i):
  return stage_ref.at[pl.ds(pl.multiple_of(2 * i, 2), 2)]


def _copy_in(place, matrix_ref, stage_ref, i, sem):
  pair = matrix_ref.at[pl.ds(pair_of(place), 2)]
  return pltpu.make_async_copy(pair, _staged(stage_ref, i), sem)


def _copy_out(place, matrix_ref, stage_ref, i, sem):
  pair = matrix_ref.at[pl.ds(pair_of(place), 2)]
  return pltpu.make_async_copy(_staged(stage_ref, i), pair, sem)


def start_reading(
  place_ref, note_ref, first, count, matrix_ref, stage_ref, sem
) -> None:
  """Starts to copy the pairs of `count` slots from `first` on.

  Args:
    place_ref: (1, 1, M) int32 places by slot, in SMEM.
    note_ref: (M, L) int32, gets them.
    first: first slot of the chunk.
    count: slots to copy, up to C.
    matrix_ref: (N, D) in HBM, N even.
    stage_ref: (2C, D).
    sem: DMA semaphore of this stage.
  """

  def start(i):
    place = place_ref[0, 0, first + i]
    _copy_in(place, matrix_ref, stage_ref, i, sem).start()
    note_ref[pl.ds(first + i, 1)] = jnp.full((1, LANES), place, jnp.int32)

  _each(count, stage_ref.shape[0] // 2, start)


def wait_reading(count, matrix_ref, stage_ref, sem) -> None:
  """Until the `count` copies of `start_reading` are there."""

  # Waiting counts bytes: any copy of the same size stands for any other.
  def wait(i):
    _copy_in(jnp.int32(0), matrix_ref, stage_ref, i, sem).wait()

  _each(count, stage_ref.shape[0] // 2, wait)


def pick(stage_ref, note_ref, x_ref, first, count) -> None:
  """The wanted half of each pair of a chunk, zeros from `count` on.

  Args:
    stage_ref: (2C, D).
    note_ref: (M, L) int32 places by slot.
    x_ref: (M, D) of the block; rows from `first` on are written.
    first: first slot of the chunk in its block.
    count: slots of the chunk that are marks.
  """
  chunk, width = stage_ref.shape[0] // 2, stage_ref.shape[1]
  group = min(GROUP, chunk)

  @pl.loop(0, chunk // group)
  def _(g):
    start = pl.multiple_of(g * group, group)
    words = pltpu.bitcast(
      stage_ref[pl.ds(pl.multiple_of(2 * start, 2 * group), 2 * group)],
      jnp.uint32,
    )
    rows = pl.ds(pl.multiple_of(first + start, group), group)
    words = jnp.where(
      is_odd(note_ref[rows], width), words & jnp.uint32(0xFFFF0000), words << 16
    )
    slot = start + jax.lax.broadcasted_iota(jnp.int32, words.shape, 0)
    words = jnp.where(slot < count, words, jnp.uint32(0))
    x_ref[rows] = pltpu.bitcast(words, jnp.float32).astype(x_ref.dtype)


def is_odd(place_ML: jax.Array, width: int) -> jax.Array:
  """Whether a place is the second of its pair; bool (M, width)."""
  return spread(place_ML & 1, width) != 0


def fuse(value_CD: jax.Array, odd_CD, paired_CD) -> jax.Array:
  """Words to write for each slot: its row, and its neighbour's if paired.

  Args:
    value_CD: float32 rows by slot.
    odd_CD: bool, the place is odd.
    paired_CD: bool, slots 2j and 2j+1 are the two places of a pair; the words
      of 2j are then right, those of 2j+1 not to be written.

  Returns:
    uint32 (C, D).
  """
  high = value_CD.astype(jnp.bfloat16).astype(jnp.float32)
  high = pltpu.bitcast(high, jnp.uint32)
  words = jnp.where(odd_CD, high, high >> 16)
  return words | jnp.where(paired_CD, row_after(high), jnp.uint32(0))


def row_after(x_CD: jax.Array) -> jax.Array:
  """The next slot's row, for each."""
  return pltpu.roll(x_CD, x_CD.shape[0] - 1, 0)


def is_written(slot, paired) -> jax.Array:
  """Whether a slot's words are to be written: the second of a pair's not."""
  return (slot >= paired) | (slot & 1 == 0)


def start_writing(
  place_ref, first, count, paired, matrix_ref, stage_ref, sem
) -> None:
  """Starts to copy the pairs of `count` slots from `first` on out.

  Args:
    place_ref: (1, 1, M) int32 places by slot, in SMEM.
    first: first slot of the chunk.
    count: slots of the chunk that are marks.
    paired: slots of the chunk below it hold pairs.
    matrix_ref: (N, D) in HBM, N even.
    stage_ref: (2C, D).
    sem: DMA semaphore of this stage.
  """

  def start(i):
    @pl.when(is_written(i, paired))
    def _():
      place = place_ref[0, 0, first + i]
      _copy_out(place, matrix_ref, stage_ref, i, sem).start()

  _each(count, stage_ref.shape[0] // 2, start)


def wait_writing(count, paired, matrix_ref, stage_ref, sem) -> None:
  """Until the copies of `start_writing` are done."""

  def wait(i):
    @pl.when(is_written(i, paired))
    def _():
      _copy_out(jnp.int32(0), matrix_ref, stage_ref, i, sem).wait()

  _each(count, stage_ref.shape[0] // 2, wait)


def _lane(shape) -> jax.Array:
  return jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def look_up(table_ref, place_ref, note_ref, found_ref, count) -> None:
  """Numbers of a block's places, zeros from `count` on.

  Args:
    table_ref: `table` of a vector.
    place_ref: (1, 1, M) int32 places by slot, in SMEM.
    note_ref: (M, L), the same in VMEM; anything from `count` on.
    found_ref: (M, L), gets the numbers.
    count: marks of the block.
  """

  def load(i):
    row = place_ref[0, 0, i] >> 7
    found_ref[pl.ds(i, 1)] = table_ref[pl.ds(row, 1)]

  _each(count, found_ref.shape[0], load)
  shape = found_ref.shape
  mine = _lane(shape) == note_ref[...] & (LANES - 1)
  mine &= jax.lax.broadcasted_iota(jnp.int32, shape, 0) < count
  value = jnp.sum(jnp.where(mine, found_ref[...], 0), 1, keepdims=True)
  found_ref[...] = jnp.broadcast_to(value, shape)


def put(table_ref, place_ref, value_ref, count) -> None:
  """Writes the numbers of a block's places; `value_ref` is (M, L)."""

  def store(i):
    place = place_ref[0, 0, i]
    row = pl.ds(place >> 7, 1)
    mine = _lane((1, LANES)) == place & (LANES - 1)
    table_ref[row] = jnp.where(mine, value_ref[pl.ds(i, 1)], table_ref[row])

  _each(count, value_ref.shape[0], store)
