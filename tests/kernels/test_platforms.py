"""Hardware that `auto` knows, and hardware that it leaves to XLA."""

import types

import pytest

from kernels import platforms


def _device(platform, kind, **more):
  return types.SimpleNamespace(platform=platform, device_kind=kind, **more)


@pytest.mark.parametrize(
  ('device', 'want'),
  [
    (_device('tpu', 'TPU v5 lite'), 'tpu'),
    (_device('tpu', 'TPU v5'), 'tpu'),
    (_device('tpu', 'TPU v6 lite'), 'tpu'),
    (_device('tpu', 'TPU7x'), 'tpu'),
    (_device('tpu', 'TPU v4'), 'other'),
    (_device('gpu', 'NVIDIA H100', compute_capability='9.0'), 'gpu'),
    (_device('gpu', 'NVIDIA B200', compute_capability=10.0), 'gpu'),
    (_device('gpu', 'NVIDIA L4', compute_capability='8.9'), 'other'),
    (_device('gpu', 'AMD', compute_capability='gfx942'), 'other'),
    (_device('cpu', 'cpu'), 'other'),
  ],
)
def test_auto_platform(device, want):
  assert platforms.auto_platform(device) == want


def test_vector_memory():
  memory = lambda kind: platforms.vector_memory(_device('tpu', kind))  # noqa: E731
  assert memory('TPU v6 lite') == 2 * memory('TPU v5') == 128 * 2**20
  assert memory('TPU v9') == 64 * 2**20
