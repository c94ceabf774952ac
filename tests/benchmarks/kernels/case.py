"""What is measured: one operator, at one shape, in one form and direction."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import (
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)


@dataclasses.dataclass(frozen=True)
class Case:
  """One program of an operator.

  Attributes:
    operator: folder under kernels/.
    shape: words for a table, for example '32b, 4,096 marks'.
    form: 'naive' (the reference), or a kind of its op: 'xla', 'pallas_tpu',
      'pallas_gpu'.
    direction: 'forward' or 'gradient' (forward and backward together).
    function: of the arguments; can be jitted.
    arguments: their shapes.
    flops: arithmetic of the operator itself, nothing computed twice.
    bytes: least traffic of a device's memory: every array once.
    make: arguments with values worth computing on, from a seed.
    mesh: axes and their sizes, also of one device: it says what the program is
      compiled for. `function` takes the mesh as a keyword; flops and bytes are
      those of one of its devices.
    specs: how the arguments lie on it.
    turns: of loops whose number of turns the values decide.
  """

  operator: str
  shape: str
  form: str
  direction: str
  function: Callable
  arguments: tuple[jax.ShapeDtypeStruct, ...]
  flops: float
  bytes: float
  make: Callable[[int], tuple]
  mesh: dict[str, int]
  specs: tuple[PartitionSpec, ...]
  turns: int = 1

  def on(self, devices: Sequence[jax.Device]) -> tuple[Callable, list] | None:
    """The function, and how its arguments lie on these devices.

    None where they are too few.
    """
    count = math.prod(self.mesh.values())
    if count > len(devices):
      return None
    mesh = Mesh(
      np.array(devices[:count]).reshape(*self.mesh.values()),
      tuple(self.mesh),
      axis_types=(AxisType.Auto,) * len(self.mesh),
    )
    return (
      functools.partial(self.function, mesh=mesh),
      [NamedSharding(mesh, spec) for spec in self.specs],
    )

  @property
  def platforms(self) -> tuple[str, ...]:
    """Where the form runs without interpretation."""
    return {'pallas_tpu': ('tpu',), 'pallas_gpu': ('cuda', 'gpu')}.get(
      self.form, ('cpu', 'tpu', 'cuda', 'gpu')
    )
