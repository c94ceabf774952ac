"""Names of TPU slices and GPU sets: sizes, shapes, hosts, refusals."""

import pytest

from launch.pods import accelerators
from metastone_jax.errors import UserError


@pytest.mark.parametrize(
  ('name', 'gcloud', 'chips', 'hosts', 'topology'),
  [
    ('v5p-128', '--accelerator-type=v5p-128', 64, 16, '4x4x4'),
    ('v5p:4x4x4', '--accelerator-type=v5p-128', 64, 16, '4x4x4'),
    ('v5p:4x8x12', '--type=v5p --topology=4x8x12', 384, 96, '4x8x12'),
    ('v5e-16', '--accelerator-type=v5litepod-16', 16, 4, '4x4'),
    ('v5litepod-256', '--accelerator-type=v5litepod-256', 256, 64, '16x16'),
    ('v6e-8', '--accelerator-type=v6e-8', 8, 1, '2x4'),
    ('v6e-256', '--accelerator-type=v6e-256', 256, 64, '16x16'),
    ('tpu7x-8', '--accelerator-type=tpu7x-8', 4, 1, '2x2x1'),
    ('v4-8', '--accelerator-type=v4-8', 4, 1, '2x2x1'),
    ('h100-64', '', 64, 8, ''),
  ],
)
def test_accelerator_names(name, gcloud, chips, hosts, topology):
  a = accelerators.parse(name)
  assert (' '.join(a.gcloud), a.chips, a.hosts) == (gcloud, chips, hosts)
  assert a.topology == topology and a.is_tpu == bool(topology)
  assert accelerators.parse(a.name) == a


@pytest.mark.parametrize(
  ('name', 'part'),
  [
    ('v9-8', 'v5p-128'),
    ('v5p', 'v5p-128'),
    ('v5p-100', 'v5p-8, v5p-16'),
    ('v5p-7', 'v5p-8'),
    ('v5p:4x4', '4x4x4'),
    ('v5p:8x4x4', 'ascending'),
    ('v6e:3x3', '16x16'),
    ('v5e-0', 'v5e-1'),
    ('v5p:0x0x0', '4x4x4'),
    ('h100-12', 'h100-16'),
    ('h100:4x4', 'h100-64'),
  ],
)
def test_accelerator_names_refused(name, part):
  with pytest.raises(UserError, match=part) as error:
    accelerators.parse(name)
  assert name in str(error.value) and '\n' not in str(error.value)
