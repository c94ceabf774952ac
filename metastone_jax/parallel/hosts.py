"""Each host's own devices beside the mesh of all: shares, local meshes, moves.

A rollout is drawn by every host for its own problems, on its own devices, with
no word to the others. So the parameters, which are split over the mesh of all
devices, are laid out once a rollout so that every host holds all of them, split
over its own devices as the rollout mesh says (`local_copy`); and the rows that
the hosts have made become global arrays (`join_rows`).

A job of one process is a job of one host: the same code.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metastone_jax.errors import UserError
from metastone_jax.parallel.mesh import MESH_AXES, make_mesh
from metastone_jax.parallel.rules import Sharder


def _by_process(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  """The devices of each process, by process number.

  Raises:
    UserError: processes with different numbers of devices.
  """
  found: dict[int, list[jax.Device]] = {}
  for device in devices:
    found.setdefault(device.process_index, []).append(device)
  groups = [
    sorted(found[process], key=lambda d: d.id) for process in sorted(found)
  ]
  if len({len(group) for group in groups}) > 1:
    counts = ', '.join(f'{i}: {len(g)}' for i, g in enumerate(groups))
    raise UserError(
      f'processes have different numbers of devices ({counts}); start all on '
      'the same kind of host'
    )
  return groups


@dataclasses.dataclass(frozen=True)
class Hosts:
  """The hosts of a job and this one's place among them.

  Attributes:
    sharder: the mesh of all devices, on which training runs.
    local: the rollout mesh of this host's devices.
    spread: axis 'host' before those of the rollout mesh; None on one device.
    count: hosts.
    index: of this host.
  """

  sharder: Sharder
  local: Sharder
  spread: Mesh | None
  count: int
  index: int

  @classmethod
  def build(cls, sharder: Sharder, rollout_mesh: Mapping[str, int]) -> 'Hosts':
    """Lays out the rollout mesh on every host.

    Args:
      sharder: mesh and rules of the training.
      rollout_mesh: axis -> size over the devices of ONE host; empty = rows
        over all of them ('data'), each with whole weights.

    Raises:
      UserError: the mesh does not fit a host's devices.
    """
    if sharder.mesh is None:
      return cls(sharder, sharder, None, 1, 0)
    groups = _by_process(list(sharder.mesh.devices.flat))
    try:
      meshes = [
        make_mesh(rollout_mesh or {'data': -1}, group) for group in groups
      ]
    except UserError as error:
      raise UserError(
        f'rollout_mesh, over the {len(groups[0])} devices of one host: {error}'
      ) from error
    processes = [group[0].process_index for group in groups]
    index = processes.index(jax.process_index())
    spread = Mesh(
      np.stack([mesh.devices for mesh in meshes]),
      ('host', *MESH_AXES),
      axis_types=(jax.sharding.AxisType.Auto,) * (1 + len(MESH_AXES)),
    )
    local = meshes[index]
    return cls(
      sharder,
      Sharder(None if local.size == 1 else local, sharder.rules),
      spread,
      len(groups),
      index,
    )

  def share(self, count: int, what: str) -> slice:
    """This host's contiguous part of `count` problems.

    Raises:
      UserError: `count` does not divide by the hosts.
    """
    if count % self.count:
      raise UserError(
        f'{what}={count} does not divide over the {self.count} processes; '
        f'make it a multiple of {self.count}'
      )
    size = count // self.count
    return slice(self.index * size, (self.index + 1) * size)

  # Parameters, to every host.

  def local_copy(
    self,
    params: Any,
    axes: Any,
    dtype: Any,
    prepare: Callable[[Any], Any] | None = None,
  ) -> Any:
    """Parameters for this host's own programs, cast before they travel.

    Args:
      params: on the mesh of all devices.
      axes: logical axes, a tree like `prepare(params)`.
      dtype: wanted.
      prepare: rearranges the tree, in the same program; give the same function
        every time, or the program is compiled anew. None = leave it.

    Returns:
      The tree on the rollout mesh.
    """
    if self.spread is None:
      treedef = jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple))
      return jax.tree.unflatten(treedef, _cast(None, dtype, prepare)(params))
    wanted = jax.tree.map(
      lambda x, names: NamedSharding(
        self.spread,
        PartitionSpec()
        if self.local.mesh is None
        else self.local.spec(names, x.shape),
      ),
      jax.eval_shape(prepare, params) if prepare else params,
      axes,
    )
    spread = self._move(params, wanted, dtype, prepare)
    return jax.tree.map(self._own_part, spread)

  def _own_part(self, x: jax.Array) -> jax.Array:
    """The copy that this host holds, as an array of its own devices.

    Its pieces stay where they are.
    """
    pieces = {piece.device: piece.data for piece in x.addressable_shards}
    if self.local.mesh is None:
      (piece,) = pieces.values()
      return piece
    sharding = NamedSharding(self.local.mesh, x.sharding.spec)
    return jax.make_array_from_single_device_arrays(
      x.shape, sharding, [pieces[d] for d in self.local.mesh.local_devices]
    )

  def _move(
    self, tree: Any, shardings: Any, dtype: Any = None, prepare=None
  ) -> Any:
    """Casts and lays out anew: one program where the device orders agree."""
    targets, treedef = jax.tree.flatten(shardings)
    same = list(self.spread.devices.flat) == list(
      self.sharder.mesh.devices.flat
    )
    if same:
      moved = _cast(tuple(targets), dtype, prepare)(tree)
    else:
      leaves = jax.tree.leaves(tree)
      if dtype is not None or prepare is not None:
        leaves = _cast(None, dtype, prepare)(tree)
      moved = jax.device_put(leaves, targets)
    return jax.tree.unflatten(treedef, moved)

  # Rows, from every host.

  def join_rows(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Rows of all hosts as global arrays, in the order of the hosts.

    Args:
      rows: this host's, equally many on each.

    Returns:
      Arrays on the mesh of all devices, rows split over 'batch'.
    """
    held = NamedSharding(self.spread, PartitionSpec('host'))
    joined = {
      name: jax.make_array_from_process_local_data(
        held, x, (x.shape[0] * self.count, *x.shape[1:])
      )
      for name, x in rows.items()
    }
    wanted = {
      name: self.sharder.row_sharding(x.shape) for name, x in joined.items()
    }
    return self._move(joined, wanted)


@functools.lru_cache(maxsize=64)
def _cast(shardings: tuple | None, dtype: Any, prepare: Any):
  """The jitted rearrangement and cast of a tree into a list of arrays."""

  def cast(tree):
    leaves = jax.tree.leaves(tree if prepare is None else prepare(tree))
    return leaves if dtype is None else [x.astype(dtype) for x in leaves]

  return jax.jit(
    cast, out_shardings=None if shardings is None else list(shardings)
  )
