"""The device mesh: axes `data, fsdp, sequence, tensor`.

- data: copies of the parameters, different rows (between slices).
- fsdp: different rows, parameters and optimiser states split.
- sequence: one row's positions split (context parallelism).
- tensor: heads, feed-forward units and vocabulary split.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from metastone_jax.errors import UserError

MESH_AXES = ('data', 'fsdp', 'sequence', 'tensor')


def mesh_shape(
  sizes: Mapping[str, int], num_devices: int
) -> tuple[int, int, int, int]:
  """Completes the configured axis sizes for a number of devices.

  Args:
    sizes: axis name -> size; a missing axis is 1, one axis may be -1 (the
      rest of the devices).
    num_devices: devices to cover exactly.

  Raises:
    UserError: an unknown axis, a size < 1, or a product that does not cover
      the devices.
  """
  unknown = sorted(set(sizes) - set(MESH_AXES))
  if unknown:
    raise UserError(
      f'mesh axis {unknown[0]!r} is unknown; use {", ".join(MESH_AXES)}'
    )
  shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
  if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
    raise UserError(
      f'mesh {dict(sizes)}: sizes are positive, and at most one is -1 (the '
      'rest of the devices)'
    )
  given = math.prod(size for size in shape if size != -1)
  if -1 in shape:
    if num_devices % given:
      raise UserError(
        f'mesh {dict(sizes)}: {given} does not divide the {num_devices} '
        'devices; change config.mesh'
      )
    shape[shape.index(-1)] = num_devices // given
  elif given != num_devices:
    raise UserError(
      f'mesh {dict(sizes)} needs {given} devices and there are {num_devices}; '
      'change config.mesh, or set one axis to -1 for the rest'
    )
  return tuple(shape)


def make_mesh(
  sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of `sizes` over `devices` (default: all), axes MESH_AXES.

  Raises:
    UserError: see `mesh_shape`.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_shape(sizes, len(devices))
  if devices[0].platform == 'cpu':
    grid = np.array(devices).reshape(shape)
  else:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
