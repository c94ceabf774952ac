"""The list of what the TPU kernel does: one (unit, visit) a step.

A unit is what has one softmax: a tile of slots against its prompt, or a slot
against its own cache. The run of blocks that hold anything valid is visited in
order and nothing else is, so the number of steps is known only at run time.
Which block a visit is follows from where the run begins (masks.py).
The list is cut once, between two units, for the two cores of a chip that has
two; a chip with one does one part after the other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# (unit, visit) in one int32, for the list lies in scalar memory.
_BITS = 16
MAX_BLOCKS = 2**_BITS


class WorkList(NamedTuple):
  """Steps of U units with C cores.

  Attributes:
    step_W: int32, packed (unit, visit) of each step, by unit and visit.
    fetch_W: int32, packed (unit, visit) whose keys and values lie in memory
      at this step: the step's own, or, where the unit has no block at all,
      what the step before had, so that nothing is fetched.
    start_C: int32 (cores + 1,), where each core's steps begin.
    first_U: int32, the block of each unit's first visit.
    count_U: int32, visits of each unit.
  """

  step_W: jax.Array
  fetch_W: jax.Array
  start_C: jax.Array
  first_U: jax.Array
  count_U: jax.Array

  @property
  def cores(self) -> int:
    """Parts of the list."""
    return len(self.start_C) - 1

  @property
  def longest(self) -> jax.Array:
    """int32 scalar, steps of the core with the most."""
    return jnp.max(self.start_C[1:] - self.start_C[:-1])


def pack(unit, visit):
  """Two small numbers in one int32."""
  return (unit << _BITS) | visit


def unpack(packed):
  """The numbers that `pack` got."""
  return packed >> _BITS, packed & (MAX_BLOCKS - 1)


def make(first_U: jax.Array, count_U: jax.Array, max_blocks: int) -> WorkList:
  """The list; a unit without blocks gets one step, for its result.

  Args:
    first_U: int32, the block at which each unit begins.
    count_U: int32, blocks that it reads from there on.
    max_blocks: blocks a unit can have.
  """
  U = len(count_U)
  visits_U = jnp.maximum(count_U, 1)
  end_U = jnp.cumsum(visits_U)
  start_U = end_U - visits_U
  step = jnp.arange(U * max_blocks, dtype=jnp.int32)[:, None]
  # Sums over one True a row, not gathers, which a TPU does one by one.
  at_WU = (start_U <= step) & (step < end_U)
  unit_W = jnp.sum(at_WU * jnp.arange(U, dtype=jnp.int32), axis=1)
  visit_W = step[:, 0] - jnp.sum(at_WU * start_U, axis=1)
  step_W = pack(unit_W, visit_W)
  full_W = jnp.any(at_WU & (count_U > 0), axis=1)
  total = end_U[-1]
  if U == 1:
    start_C = jnp.stack([jnp.zeros_like(total), total])
  else:
    # The first unit is always the first core's and the last the second's:
    # a core without steps would have no result to write.
    middle = jnp.max(jnp.where(2 * end_U - visits_U <= total, end_U, 0))
    middle = jnp.clip(middle, end_U[0], start_U[-1])
    start_C = jnp.stack([jnp.zeros_like(total), middle, total])
  return WorkList(
    step_W=step_W,
    fetch_W=jax.lax.cummax(jnp.where(full_W, step_W, 0)),
    start_C=start_C,
    first_U=first_U,
    count_U=count_U,
  )
