"""Update batches from rows: on the host in one process, else on the devices.

A job of one process keeps the rows of a rollout as host arrays, and copies
each update's part. With several, no host has the rows of the others: they are
global arrays from the start, and programs cut and join them. The batches are
the same, row for row.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.parallel import Hosts, distributed
from metastone_jax.training.loop.collect import Rows, join_rows


class RolloutRows:
  """The rows of one rollout, of all hosts.

  Args:
    hosts: of the run.
    rows: this host's rows, fields of a training batch.

  Attributes:
    rows: the fields so far, of all hosts.
  """

  def __init__(self, hosts: Hosts, rows: Rows):
    self._hosts = hosts
    self._global = distributed.several()
    self.rows = hosts.join_rows(rows) if self._global else dict(rows)

  def on_devices(self, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Fields of all rows, for a program over the whole rollout."""
    chosen = {name: self.rows[name] for name in names}
    return chosen if self._global else self._hosts.sharder.put_batch(chosen)

  def add(self, name: str, value: jax.Array) -> None:
    """A field that such a program has computed."""
    self.rows[name] = value if self._global else jax.device_get(value)

  def update_batch(
    self, index: int, updates: int, demonstrations: Rows | None
  ) -> dict[str, jax.Array]:
    """The batch of one update: its part of the rows, then demonstrations.

    Args:
      index: of the update.
      updates: of the rollout.
      demonstrations: rows to append, the same on every host.
    """
    size = len(self.rows['tokens_BT']) // updates
    if not self._global:
      cut = slice(index * size, (index + 1) * size)
      parts = [{name: x[cut] for name, x in self.rows.items()}]
      if demonstrations is not None:
        parts.append(demonstrations)
      return self._hosts.sharder.put_batch(join_rows(parts))
    more = {}
    if demonstrations is not None:
      more = self._hosts.sharder.put_batch(demonstrations)
    program = _cut_and_join(self._hosts.sharder, size, index * size)
    return program(self.rows, more)


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
    joined = join_rows(parts, jnp)
    return {
      name: jax.lax.with_sharding_constraint(x, sharder.row_sharding(x.shape))
      for name, x in joined.items()
    }

  return jax.jit(cut)


def count_tokens(rows: Rows) -> int:
  """Tokens of rows that every host has, padding left out."""
  return int(np.count_nonzero(rows['segment_BT']))
