"""Limits of the accelerator that is here."""

from metastone_jax.compile_check import targets

# What `device_kind` of a card holds -> key of targets.CHIPS.
_KINDS = {
  'v5 lite': 'v5e',
  'v5e': 'v5e',
  'v5p': 'v5p',
  'v5': 'v5p',
  'v6': 'v6e',
  '7x': 'tpu7x',
  'H100': 'h100',
}


def chip_of(device_kind: str) -> tuple[str, targets.Chip]:
  """Name and limits of a device.

  Args:
    device_kind: as JAX or the driver calls it.

  Raises:
    SystemExit: it is not in the table.
  """
  name = next((v for k, v in _KINDS.items() if k in device_kind), None)
  if name is None:
    raise SystemExit(
      f'{device_kind} is no accelerator of the table '
      f'({", ".join(sorted(set(_KINDS.values())))})'
    )
  return name, targets.CHIPS[name]
