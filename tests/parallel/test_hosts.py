"""Shares, rollout meshes and moves between meshes, on 8 fake devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from metastone_jax.errors import UserError
from metastone_jax.parallel import MESH_AXES, Hosts, Sharder, make_mesh

AXES = {'kernel': ('embed', 'feed_forward'), 'bias': ('feed_forward',)}


def _params(sharder):
  host = {
    'kernel': np.arange(128, dtype=np.float32).reshape(8, 16) / 7,
    'bias': np.arange(16, dtype=np.float32) / 3,
  }
  return host, {
    name: jax.device_put(x, sharder.sharding(AXES[name], x.shape))
    for name, x in host.items()
  }


def _permuted():
  """A mesh whose devices are in another order than those of a host."""
  devices = np.array(jax.devices())[[0, 2, 1, 3, 7, 5, 6, 4]]
  return Mesh(
    devices.reshape(1, 4, 1, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4
  )


@pytest.mark.parametrize('rollout_mesh', [{}, {'tensor': 4, 'data': 2}])
@pytest.mark.parametrize('permuted', [False, True])
def test_local_copy(rollout_mesh, permuted):
  mesh = _permuted() if permuted else make_mesh({'fsdp': 4, 'tensor': 2})
  sharder = Sharder.of(mesh)
  hosts = Hosts.build(sharder, rollout_mesh)
  host, params = _params(sharder)
  found = hosts.local_copy(params, AXES, 'bfloat16')
  for name, x in host.items():
    assert found[name].dtype == 'bfloat16'
    assert found[name].sharding.mesh == hosts.local.mesh
    np.testing.assert_array_equal(
      np.asarray(found[name], np.float32),
      np.asarray(x.astype(found[name].dtype), np.float32),
    )
    width = found[name].addressable_shards[0].data.shape[-1]
    assert width == (4 if rollout_mesh else 16)


@pytest.mark.parametrize('permuted', [False, True])
def test_join_rows(permuted):
  mesh = _permuted() if permuted else make_mesh({'fsdp': -1})
  hosts = Hosts.build(Sharder.of(mesh), {})
  rows = {
    'a': np.arange(48).reshape(16, 3).astype(np.int32),
    'b': np.arange(16) > 4,
  }
  found = hosts.join_rows(rows)
  for name, x in rows.items():
    np.testing.assert_array_equal(np.asarray(found[name]), x)
    assert found[name].sharding == hosts.sharder.row_sharding(x.shape)


def test_one_device():
  sharder = Sharder.of(make_mesh({'fsdp': -1}, jax.devices()[:1]))
  hosts = Hosts.build(sharder, {})
  host, params = _params(sharder)
  found = hosts.local_copy(params, AXES, 'bfloat16')
  for name, x in host.items():
    assert found[name].dtype == 'bfloat16'
    np.testing.assert_array_equal(found[name], x.astype('bfloat16'))
  assert hosts.share(5, 'x') == slice(0, 5)


def test_bad_input():
  sharder = Sharder.of(make_mesh({'fsdp': -1}))
  with pytest.raises(
    UserError, match=r'rollout_mesh, over the 8 devices of one host: .*needs 3'
  ):
    Hosts.build(sharder, {'tensor': 3})
  hosts = Hosts(sharder, sharder, None, 3, 1)
  assert hosts.share(6, 'x') == slice(2, 4)
  with pytest.raises(
    UserError, match='prompts_per_step=8 does not divide over the 3 processes'
  ):
    hosts.share(8, 'prompts_per_step')
