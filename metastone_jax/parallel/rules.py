"""One table from logical axis names to mesh axes, and its application.

Code names what an axis IS ('embed', 'heads', 'batch'); the table, one a
config, says over which mesh axes it is split. An axis whose size the mesh does
not divide is left whole (a tiny vocabulary, two key/value heads), which the
start-up plan prints.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# logical axis -> mesh axes, in the order they are tried.
DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'length': ('sequence',),
  # The residual stream between blocks, which the backward pass keeps: split
  # over `tensor` as well (sequence parallelism, Korthikanti et al. 2022).
  'residual_length': ('sequence', 'tensor'),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'feed_forward': ('tensor',),
  'vocabulary': ('tensor',),
  'score_hidden': ('tensor',),
  # Activations' width stays whole: 'embed' above is for parameters.
  'activation': (),
  'layer': (),
  'head_width': (),
}


@dataclasses.dataclass(frozen=True)
class Sharder:
  """Applies a rules table on one mesh; without a mesh it does nothing.

  Attributes:
    mesh: the mesh, or None for a single device.
    rules: logical axis name -> mesh axes.
  """

  mesh: Mesh | None = None
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=lambda: dict(DEFAULT_RULES)
  )

  def __hash__(self):
    return hash((self.mesh, tuple(sorted(self.rules.items()))))

  @classmethod
  def of(cls, mesh: Mesh) -> 'Sharder':
    """On this mesh; of a single device, without one."""
    return cls(None if mesh.size == 1 else mesh)

  def mesh_axes(
    self, axes: Sequence[str | None], shape: Sequence[int]
  ) -> list[tuple[str, ...]]:
    """The mesh axes that split each axis of an array; () = whole."""
    entries, used = [], set()
    for axis, size in zip(axes, shape, strict=True):
      mesh_axes = tuple(
        name
        for name in (self.rules[axis] if axis is not None else ())
        if name not in used and self.mesh.shape[name] > 1
      )
      if size % math.prod(self.mesh.shape[name] for name in mesh_axes):
        mesh_axes = ()
      used.update(mesh_axes)
      entries.append(mesh_axes)
    return entries

  def spec(
    self, axes: Sequence[str | None], shape: Sequence[int]
  ) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes and sizes."""
    return PartitionSpec(
      *(names or None for names in self.mesh_axes(axes, shape))
    )

  def sharding(
    self, axes: Sequence[str | None], shape: Sequence[int]
  ) -> NamedSharding | None:
    """NamedSharding of such an array; None without a mesh."""
    if self.mesh is None:
      return None
    return NamedSharding(self.mesh, self.spec(axes, shape))

  def num_parts(self, axis: str) -> int:
    """Into how many parts the mesh splits an axis that it divides."""
    if self.mesh is None:
      return 1
    return math.prod(self.mesh.shape[name] for name in self.rules[axis])

  def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
    """`with_sharding_constraint` by logical axes, inside jit."""
    if self.mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))

  def tree_shardings(self, abstract: Any, axes: Any) -> Any:
    """Shardings of a tree of arrays with a matching tree of axis tuples."""
    if self.mesh is None:
      return None
    return jax.tree.map(
      lambda x, names: self.sharding(names, x.shape), abstract, axes
    )

  def row_sharding(self, shape: Sequence[int]) -> NamedSharding | None:
    """Of an array of rows: split over 'batch', else whole."""
    return self.sharding(('batch',) + (None,) * (len(shape) - 1), shape)

  def put_batch(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Copies host arrays to the devices, rows split over 'batch'.

    With several processes each gives the whole batch, and only its devices'
    part is copied.
    """
    return {
      name: self._put(x, self.row_sharding(x.shape))
      for name, x in batch.items()
    }

  def put_replicated(self, tree: Any) -> Any:
    """Copies host arrays that are the same everywhere to every device."""
    return jax.tree.map(
      lambda x: self._put(
        np.asarray(x), self.sharding((None,) * np.ndim(x), np.shape(x))
      ),
      tree,
    )

  def _put(self, x: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    if sharding is None:
      return jax.device_put(x)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    # device_put would first compare x across all processes.
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
