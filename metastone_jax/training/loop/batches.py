"""Update batches from rows: on the host in one process, else on the devices.

A job of one process keeps the rows of a rollout as host arrays, and lays out
and copies each update's part. With several, no host has the rows of the
others: they are global arrays from the start, and programs cut, join and lay
them out. Where each trajectory lies follows from the lengths, which all hosts
have. The batches are the same, row for row.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.parallel import Hosts, distributed
from metastone_jax.training import packing
from metastone_jax.training.loop.collect import Rows, join_rows
from metastone_jax.training.loop.row_plan import RowPlan


class RolloutRows:
  """The rows of one rollout, of all hosts.

  Args:
    hosts: of the run.
    plan: how the phase lays trajectories into rows.
    rows: this host's, one trajectory each, fields of a training batch.
    length_B: tokens of every trajectory, of all hosts.
    prompt_length_B: of its prompt.

  Attributes:
    rows: the fields so far, of all hosts, one trajectory a row.
  """

  def __init__(
    self,
    hosts: Hosts,
    plan: RowPlan,
    rows: Rows,
    length_B: np.ndarray,
    prompt_length_B: np.ndarray,
  ):
    self._hosts, self._plan = hosts, plan
    self._length_B, self._prompt_length_B = length_B, prompt_length_B
    self._global = distributed.several()
    self.rows = hosts.join_rows(rows) if self._global else dict(rows)

  @functools.cached_property
  def _whole(self) -> packing.Placement | None:
    """Where the trajectories of the whole rollout lie."""
    return self._plan.place(self._length_B, self._prompt_length_B)

  def log_prob_batch(self) -> dict[str, jax.Array]:
    """What a log-prob pass over the whole rollout takes."""
    fields = ('tokens', 'target', 'position', 'segment')
    names = [f'{field}_BT' for field in fields] + ['temperature_B']
    chosen = {name: self.rows[name] for name in names}
    return self._laid_out(chosen, self._whole)

  def add(self, name: str, value_BT: jax.Array) -> None:
    """A field that such a pass has computed."""
    shape = self.rows['tokens_BT'].shape
    if not self._global:
      self.rows[name] = packing.back(
        jax.device_get(value_BT), self._whole, shape
      )
      return
    placement = self._hosts.sharder.put_replicated(self._whole)
    program = _back(self._hosts.sharder, shape)
    self.rows[name] = program(value_BT, placement)

  def update_batch(
    self, index: int, updates: int, demonstrations: Rows | None
  ) -> tuple[dict[str, jax.Array], float]:
    """One update's part of the rows, then demonstrations.

    Args:
      index: of the update.
      updates: of the rollout.
      demonstrations: rows to append, the same on every host.

    Returns:
      The batch; the share of padding in what it computes.
    """
    size = len(self._length_B) // updates
    cut = slice(index * size, (index + 1) * size)
    length_B = self._length_B[cut]
    more = {}
    if demonstrations is not None:
      more = demonstrations
      length_B = np.concatenate([length_B, lengths(more)])
    placement = self._plan.place(length_B, self._prompt_length_B[cut])
    padding = self._plan.padding(length_B, placement)
    if self._global:
      if more:
        more = self._hosts.sharder.put_batch(more)
      program = _cut_and_join(self._hosts.sharder, size, cut.start)
      rows = program(self.rows, more)
    else:
      parts = [{name: x[cut] for name, x in self.rows.items()}]
      rows = join_rows(parts + [more] * bool(more))
    return self._laid_out(rows, placement), padding

  def _laid_out(self, rows, placement) -> dict[str, jax.Array]:
    sharder, multiple = self._hosts.sharder, self._plan.multiple
    if self._global:
      placement = sharder.put_replicated(placement)
      return _lay_out(sharder, multiple)(rows, placement)
    return sharder.put_batch(packing.lay_out(rows, placement, multiple))


def demonstration_batch(
  hosts: Hosts, plan: RowPlan, rows: Rows
) -> tuple[dict[str, jax.Array], float]:
  """As `RolloutRows.update_batch`, of demonstrations alone."""
  length_B = lengths(rows)
  placement = plan.place(length_B, None)
  laid = packing.lay_out(rows, placement, plan.multiple)
  return hosts.sharder.put_batch(laid), plan.padding(length_B, placement)


@functools.lru_cache(maxsize=64)
def _cut_and_join(sharder, size: int, first: int):
  """The jitted (rows, demonstrations) -> batch of rows first, first + 1, ..."""

  def cut(rows, more):
    parts = [
      {
        name: jax.lax.slice_in_dim(x, first, first + size)
        for name, x in rows.items()
      }
    ]
    if more:
      parts.append(more)
    return _constrained(sharder, join_rows(parts, jnp))

  return jax.jit(cut)


@functools.lru_cache(maxsize=64)
def _lay_out(sharder, multiple: int):
  """The jitted (rows, placement) -> batch."""

  def lay_out(rows, placement):
    return _constrained(
      sharder, packing.lay_out(rows, placement, multiple, jnp)
    )

  return jax.jit(lay_out)


@functools.lru_cache(maxsize=64)
def _back(sharder, shape: tuple[int, int]):
  """The jitted (result of a batch, placement) -> a row a trajectory."""

  def back(value_BT, placement):
    found = packing.back(value_BT, placement, shape, jnp)
    return _constrained(sharder, {'value_BT': found})['value_BT']

  return jax.jit(back)


def _constrained(sharder, rows):
  return {
    name: jax.lax.with_sharding_constraint(x, sharder.row_sharding(x.shape))
    for name, x in rows.items()
  }


def lengths(rows: Rows) -> np.ndarray:
  """Tokens of each row of one trajectory."""
  return np.count_nonzero(rows['segment_BT'], axis=1)


def count_tokens(rows: Rows) -> int:
  """Tokens of rows that every host has, padding left out."""
  return int(lengths(rows).sum())
