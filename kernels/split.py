"""Mesh axes over which an operator's arrays are split."""

import dataclasses
import math

from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Split:
  """What every operator over sequences has; some add axes of their own.

  Attributes:
    mesh: the mesh.
    batch: axes of B.
    length: axes of T.
  """

  mesh: Mesh
  batch: tuple[str, ...] = ()
  length: tuple[str, ...] = ()

  def size(self, axes: tuple[str, ...]) -> int:
    """Devices along these axes."""
    return math.prod(self.mesh.shape[axis] for axis in axes)
