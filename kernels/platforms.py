"""Hardware that the kernels are written for: where `auto` may take them."""

import jax

_MIB = 2**20
# Vector memory of one core, by `device_kind`. A v4 has 16 MiB: no kernel here
# was planned for that, or compiled for it.
_VECTOR_MEMORY = {
  'TPU v5 lite': 128 * _MIB,
  'TPU v5e': 128 * _MIB,
  'TPU v5': 64 * _MIB,
  'TPU v5p': 64 * _MIB,
  'TPU v6 lite': 128 * _MIB,
  'TPU v6e': 128 * _MIB,
  'TPU7x': 64 * _MIB,
}
# Tiles take up to 192 KiB of shared memory: Hopper and later.
_COMPUTE_CAPABILITY = 9.0


def vector_memory(device: jax.Device) -> int:
  """Bytes of a TPU core's vector memory; the least where it is not known."""
  return _VECTOR_MEMORY.get(device.device_kind, min(_VECTOR_MEMORY.values()))


def auto_platform(device: jax.Device) -> str:
  """'tpu' or 'gpu' where `auto` may take a kernel, else 'other'."""
  if device.platform == 'tpu' and device.device_kind in _VECTOR_MEMORY:
    return 'tpu'
  try:
    capability = float(getattr(device, 'compute_capability', 0))
  except ValueError:  # AMD's are names
    return 'other'
  return 'gpu' if capability >= _COMPUTE_CAPABILITY else 'other'
