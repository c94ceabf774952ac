"""Mesh shapes, and the errors a user can make."""

import jax
import pytest

from metastone_jax.errors import UserError
from metastone_jax.parallel import MESH_AXES, make_mesh
from metastone_jax.parallel.mesh import mesh_shape


@pytest.mark.parametrize(
  ('sizes', 'devices', 'shape'),
  [
    ({}, 1, (1, 1, 1, 1)),
    ({'fsdp': 8}, 8, (1, 8, 1, 1)),
    ({'fsdp': -1}, 8, (1, 8, 1, 1)),
    ({'fsdp': -1, 'tensor': 2}, 8, (1, 4, 1, 2)),
    ({'data': 2, 'fsdp': 2, 'tensor': -1}, 8, (2, 2, 1, 2)),
    ({'data': -1, 'sequence': 4}, 4, (1, 1, 4, 1)),
  ],
)
def test_shapes(sizes, devices, shape):
  assert mesh_shape(sizes, devices) == shape


@pytest.mark.parametrize(
  ('sizes', 'devices', 'message'),
  [
    ({'model': 8}, 8, "mesh axis 'model' is unknown; use data, fsdp"),
    ({'fsdp': 3}, 8, 'needs 3 devices and there are 8'),
    ({'fsdp': 16}, 8, 'needs 16 devices and there are 8'),
    ({}, 8, 'needs 1 devices and there are 8'),
    ({'tensor': 3, 'fsdp': -1}, 8, '3 does not divide the 8 devices'),
    ({'tensor': 16, 'fsdp': -1}, 8, '16 does not divide the 8 devices'),
    ({'fsdp': -1, 'data': -1}, 8, 'at most one is -1'),
    ({'fsdp': 0}, 8, 'sizes are positive'),
    ({'fsdp': -2}, 8, 'sizes are positive'),
  ],
)
def test_errors_are_one_clear_line(sizes, devices, message):
  with pytest.raises(UserError, match=message) as error:
    mesh_shape(sizes, devices)
  assert '\n' not in str(error.value)


def test_make_mesh_covers_the_devices_in_order():
  mesh = make_mesh({'fsdp': 4, 'tensor': 2})
  assert mesh.axis_names == MESH_AXES
  assert dict(mesh.shape) == {'data': 1, 'fsdp': 4, 'sequence': 1, 'tensor': 2}
  assert list(mesh.devices.flat) == jax.devices()
  two = make_mesh({'tensor': 2}, jax.devices()[2:4])
  assert list(two.devices.flat) == jax.devices()[2:4]
  with pytest.raises(UserError, match='needs 5 devices'):
    make_mesh({'fsdp': 5})
