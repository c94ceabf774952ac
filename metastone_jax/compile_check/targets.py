"""The table of machines: every name they go by, and their limits.

A target's own name is what users say: `v5p-128` and `tpu7x-128` count
TensorCores as gcloud does (64 chips), `v5e-16` and `v6e-8` count chips,
`h100-64` GPUs. gcloud's `v5litepod-16` and the compiler's `v5e:4x4` are
accepted as well.

Limits are the vendors' published peaks for one device (a v5p chip is one
device to JAX, a tpu7x chip two): bf16 FLOP/s, memory bandwidth, and the
bandwidth of the interconnect that one mesh axis can count on. That is a ring
over one torus axis, both directions; on GPUs NVLink, one direction, which is
too good for bytes between nodes (one InfiniBand adapter a GPU has a ninth of
it): on several nodes the link seconds are a lower bound. Memory a program can
have is what the compiler itself enforces.

Sources: cloud.google.com/tpu/docs (system architecture of v5e, v5p, v6e,
tpu7x), "How to Scale Your Model" (link bandwidths), NVIDIA's H100 SXM data
sheet.
"""

import dataclasses
import math

from metastone_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of device.

  Attributes:
    platform: of the compiler, 'tpu' or 'cuda'.
    memory: bytes a program can have.
    flops: peak bf16 FLOP/s, dense.
    memory_bandwidth: bytes/s.
    link_bandwidth: bytes/s that one mesh axis can move in and out of a device.
    host_devices: devices of one host in a slice of several hosts.
  """

  platform: str
  memory: float
  flops: float
  memory_bandwidth: float
  link_bandwidth: float
  host_devices: int


CHIPS = {
  'v5e': Chip('tpu', 15.75 * GIB, 197e12, 819e9, 90e9, 4),
  'v5p': Chip('tpu', 95.74 * GIB, 459e12, 2765e9, 180e9, 4),
  'v6e': Chip('tpu', 31.25 * GIB, 918e12, 1640e9, 180e9, 4),
  # Half a chip: two devices a chip.
  'tpu7x': Chip('tpu', 94.75 * GIB, 1153.5e12, 3690e9, 180e9, 8),
  # 80 GB less what the driver and the libraries keep.
  'h100': Chip('cuda', 74.0 * GIB, 989e12, 3350e9, 450e9, 8),
}

# Torus of a slice by its number of chips.
_TORUS = {
  'v5e': {
    1: '1x1',
    4: '2x2',
    8: '2x4',
    16: '4x4',
    32: '4x8',
    64: '8x8',
    128: '8x16',
    256: '16x16',
  },
  'v5p': {
    4: '2x2x1',
    8: '2x2x2',
    16: '2x2x4',
    32: '2x4x4',
    64: '4x4x4',
    128: '4x4x8',
    256: '4x8x8',
    512: '8x8x8',
    1024: '8x8x16',
  },
}
_TORUS['v6e'] = _TORUS['v5e']
_TORUS['tpu7x'] = _TORUS['v5p']

# What a name counts, in one chip.
_UNITS = {'v5p': 2, 'v5e': 1, 'v6e': 1, 'tpu7x': 2, 'h100': 1}
_FAMILY_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v7x': 'tpu7x'}


@dataclasses.dataclass(frozen=True)
class Target:
  """A machine to compile for.

  Attributes:
    name: our name.
    family: key of CHIPS.
    chips: of the whole machine.
    topology: the compiler's name of the machine (TPU), or nodes x GPUs.
  """

  name: str
  family: str
  chips: int
  topology: str

  @property
  def chip(self) -> Chip:
    """Limits of one device."""
    return CHIPS[self.family]

  @property
  def devices(self) -> int:
    """Devices as JAX counts them."""
    return self.chips * (2 if self.family == 'tpu7x' else 1)

  @property
  def hosts(self) -> int:
    """Hosts (nodes) of the machine."""
    if self.family in ('v5e', 'v6e') and self.chips <= 8:
      return 1  # these slices are one machine of up to 8 chips
    return max(1, self.devices // self.chip.host_devices)

  def one_host(self) -> 'Target':
    """The machine that one host's devices are, for programs local to it."""
    if self.hosts == 1:
      return self
    chips = self.chips // self.hosts
    return parse(f'{self.family}-{chips * _UNITS[self.family]}')


def names() -> list[str]:
  """All names of targets, ours."""
  found = [
    f'{family}-{chips * _UNITS[family]}'
    for family, sizes in _TORUS.items()
    for chips in sizes
  ]
  return found + [f'h100-{n}' for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]


def parse(name: str) -> Target:
  """The target of a name: ours, gcloud's or the compiler's.

  Raises:
    UserError: an unknown family or size.
  """
  family, separator, size = (
    name.strip().lower().replace(':', '-').partition('-')
  )
  family = _FAMILY_ALIASES.get(family, family)
  if family not in CHIPS or not separator:
    raise UserError(
      f'target {name!r} is unknown; families are {", ".join(CHIPS)}, for '
      'example v5p-128, v5e-16, v6e-256, h100-64'
    )
  if 'x' in size:
    parts = size.split('x')
    if not all(part.isdigit() and int(part) for part in parts):
      raise UserError(f'target {name!r}: {size!r} is no topology like 4x4x4')
    chips = math.prod(map(int, parts))
    if family in _TORUS and _TORUS[family].get(chips) != size:
      known = ', '.join(f'{family}:{t}' for t in _TORUS[family].values())
      raise UserError(f'target {name!r} is not in the table; it has {known}')
  else:
    unit = _UNITS[family]
    if not size.isdigit() or not int(size) or int(size) % unit:
      what = 'TensorCores, two a chip' if unit == 2 else 'chips'
      raise UserError(f'target {name!r}: {family}-N counts {what}')
    chips = int(size) // unit
  if family == 'h100':
    if chips > 8 and chips % 8:
      raise UserError(f'target {name!r}: more than 8 GPUs come in nodes of 8')
    topology = f'{max(1, chips // 8)}x{min(chips, 8)}'
  elif chips in _TORUS[family]:
    topology = f'{family}:{_TORUS[family][chips]}'
  else:
    known = ', '.join(f'{family}-{c * _UNITS[family]}' for c in _TORUS[family])
    raise UserError(f'target {name!r} is not in the table; it has {known}')
  return Target(f'{family}-{chips * _UNITS[family]}', family, chips, topology)
