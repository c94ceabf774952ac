"""How tiles of d_kernel travel between the device's memory and a TPU's core.

Two slots of vector memory. With q the number of a step among those of its half
of the vocabulary, slot q % 2 is read during step q - 1, added to in step q, and
written during step q + 1, whose first product covers the time until the slot
must be free again. A tile is read again only after the step that follows its
write has waited for it; a half of one tile reads it in its own step.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.token_log_prob import blocks_tpu
from kernels.token_log_prob.blocks_tpu import LANES, Blocks


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static about one call of the backward kernel.

  Attributes:
    blocks: sizes of a block.
    calls: blocks of tokens that a call works on.
    columns: V of this device.
    accumulate: whether it is added to what is there from the start.
    copied: whether the head is copied (cast, or its last tile cleaned).
  """

  blocks: Blocks
  calls: int
  columns: int
  accumulate: bool
  copied: bool

  @property
  def tiles(self) -> int:
    """Tiles of columns."""
    return -(-self.columns // self.blocks.columns)

  @property
  def halves(self) -> int:
    """Parts of the vocabulary."""
    return min(2, self.tiles)

  @property
  def per_half(self) -> int:
    """Tiles of the first half; the second may have one less."""
    return -(-self.tiles // self.halves)

  @property
  def tail(self) -> int:
    """Columns of d_kernel in the last tile, whole lanes."""
    before = (self.tiles - 1) * self.blocks.columns
    return blocks_tpu.ceil_to(self.columns - before, LANES)


@dataclasses.dataclass(frozen=True)
class Position:
  """Where in its half of the vocabulary the kernel is.

  Attributes:
    block: of tokens, among those of the call.
    j: tile, among those of the half.
    count: tiles of the half.
    first_tile: the half's first one.
  """

  block: jax.Array
  j: jax.Array
  count: jax.Array
  first_tile: jax.Array

  @property
  def step(self):
    """Number of this step in its half."""
    return self.block * self.count + self.j

  @property
  def slot(self):
    """Slot of this step's tile."""
    return self.step % 2

  @property
  def tile(self):
    """This step's tile."""
    return self.first_tile + self.j

  @property
  def tile_before(self):
    """The last step's."""
    return self.first_tile + jnp.where(self.j == 0, self.count, self.j) - 1

  @property
  def tile_after(self):
    """The next step's."""
    return self.first_tile + jnp.where(self.j + 1 == self.count, 0, self.j + 1)

  @property
  def block_after(self):
    """The next step's block."""
    return jnp.where(self.j + 1 == self.count, self.block + 1, self.block)


@dataclasses.dataclass(frozen=True)
class Stream:
  """The copies of d_kernel.

  Attributes:
    plan: of the call.
    at: where the kernel is.
    hbm: d_kernel in the device's memory, float32 (D, whole lanes).
    slots: float32 (2, D, columns of a tile) of vector memory.
    semaphores: (reading or writing, slot).
  """

  plan: Plan
  at: Position
  hbm: jax.Array
  slots: jax.Array
  semaphores: jax.Array

  def _copy(self, tile, slot, width, writing):
    start = pl.multiple_of(tile * self.plan.blocks.columns, LANES)
    there = self.hbm.at[:, pl.ds(start, width)]
    here = self.slots.at[slot, :, pl.ds(0, width)]
    source, target = (here, there) if writing else (there, here)
    return pltpu.make_async_copy(
      source, target, self.semaphores.at[int(writing), slot]
    )

  def _for_width(self, tile, act):
    """act(width of the tile): the last one may be narrower than the others."""
    columns, tail = self.plan.blocks.columns, self.plan.tail
    last = tile == self.plan.tiles - 1
    if tail == columns or self.plan.tiles == 1:
      act(tail)
    else:
      pl.when(last)(lambda: act(tail))
      pl.when(jnp.logical_not(last))(lambda: act(columns))

  def start(self, tile, slot, *, writing: bool):
    """Starts the copy of a tile from (or, writing, to) the memory."""
    self._for_width(
      tile, lambda width: self._copy(tile, slot, width, writing).start()
    )

  def wait(self, tile, slot, *, writing: bool):
    """Waits for it."""
    self._for_width(
      tile, lambda width: self._copy(tile, slot, width, writing).wait()
    )

  def free_other_slot(self):
    """Waits for the last step's write, then starts the next step's read."""
    at, plan = self.at, self.plan

    @pl.when(at.step > 0)
    def _():
      self.wait(at.tile_before, 1 - at.slot, writing=True)

    reads = (at.block_after < plan.calls) & (at.count > 1)
    if not plan.accumulate:
      reads &= at.block_after > 0

    @pl.when(reads)
    def _():
      self.start(at.tile_after, 1 - at.slot, writing=False)

  def store(self, add: Callable[[jax.Array, bool], None]):
    """This step's share, added to what was read, on its way to the memory.

    Args:
      add: (slot, adds): writes the share to the slot, or adds it to what the
        slot holds.
    """
    at, plan = self.at, self.plan
    adds = (at.block > 0) | plan.accumulate

    # Nobody has started this one before.
    @pl.when(adds & ((at.step == 0) | (at.count == 1)))
    def _():
      self.start(at.tile, at.slot, writing=False)

    @pl.when(adds)
    def _():
      self.wait(at.tile, at.slot, writing=False)
      add(at.slot, True)

    pl.when(jnp.logical_not(adds))(functools.partial(add, at.slot, False))
    self.start(at.tile, at.slot, writing=True)

    # Nobody will wait for this one after.
    @pl.when((at.block == plan.calls - 1) & (at.j == at.count - 1))
    def _():
      self.wait(at.tile, at.slot, writing=True)
