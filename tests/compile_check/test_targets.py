"""The table of machines: every name is found, and both tables agree."""

import pytest

from launch.pods import accelerators
from metastone_jax.compile_check import targets
from metastone_jax.errors import UserError


@pytest.mark.parametrize(
  ('name', 'ours', 'topology', 'devices', 'hosts'),
  [
    ('v5p-128', 'v5p-128', 'v5p:4x4x4', 64, 16),
    ('v5p:4x4x4', 'v5p-128', 'v5p:4x4x4', 64, 16),
    ('v5p-8', 'v5p-8', 'v5p:2x2x1', 4, 1),
    ('v5litepod-16', 'v5e-16', 'v5e:4x4', 16, 4),
    ('v5e:4x4', 'v5e-16', 'v5e:4x4', 16, 4),
    ('V6E-256', 'v6e-256', 'v6e:16x16', 256, 64),
    ('v6e-1', 'v6e-1', 'v6e:1x1', 1, 1),
    ('v6e-8', 'v6e-8', 'v6e:2x4', 8, 1),
    ('tpu7x-8', 'tpu7x-8', 'tpu7x:2x2x1', 8, 1),
    ('h100-64', 'h100-64', '8x8', 64, 8),
    ('h100-1', 'h100-1', '1x1', 1, 1),
  ],
)
def test_names(name, ours, topology, devices, hosts):
  found = targets.parse(name)
  assert (found.name, found.topology) == (ours, topology)
  assert (found.devices, found.hosts) == (devices, hosts)


def test_one_host_of_a_slice():
  assert targets.parse('v5p-128').one_host().name == 'v5p-8'
  assert targets.parse('v5e-256').one_host().name == 'v5e-4'
  assert targets.parse('h100-64').one_host().name == 'h100-8'
  assert targets.parse('v6e-4').one_host().name == 'v6e-4'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('a100-8', 'families are'),
    ('v5p', 'is unknown'),
    ('v5p-127', 'counts TensorCores'),
    ('v5p-12', 'not in the table'),
    ('v5p:4x4', 'not in the table'),
    ('v5e-0', 'counts chips'),
    ('v5e:4xfour', 'no topology'),
    ('h100-12', 'nodes of 8'),
  ],
)
def test_bad_names(name, message):
  with pytest.raises(UserError, match=message):
    targets.parse(name)


def test_every_listed_name_is_a_target():
  for name in targets.names():
    assert targets.parse(name).name == name


def test_launchers_and_compiler_mean_the_same_machines():
  """launch.pods has its own table, of what gcloud and GKE want to know."""
  for name in targets.names():
    if name in ('h100-1', 'h100-2', 'h100-4'):
      continue  # launched by hand: clusters give whole nodes
    target, machine = targets.parse(name), accelerators.parse(name)
    assert machine.chips == target.chips, name
    assert machine.hosts == target.hosts, name
    if target.chip.platform == 'tpu':
      assert machine.topology == target.topology.split(':')[1], name
