"""The names of TPU slices and GPU sets that the launchers accept.

A TPU slice is named by its size as gcloud counts it (v5p-128, v5litepod-16,
tpu7x-8; v5e-16 = v5litepod-16) or by its shape in chips (v5p:4x4x4). gcloud
counts TensorCores for v4, v5p and tpu7x, two a chip, and chips for v5e and v6e.
GPUs are named with their number: h100-64 is 8 nodes of 8.

Sources: Cloud TPU documentation (versions, configurations, runtime versions)
and the node labels that GKE gives its node pools.
"""

import dataclasses
import math
import re

from metastone_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Generation:
  """What all slices of a TPU generation share."""

  gcloud: str  # prefix of --accelerator-type
  units_per_chip: int  # of the number in the name
  dimensions: int  # of the topology
  runtime_version: str  # image of the TPU VMs
  gke: str  # node label cloud.google.com/gke-tpu-accelerator


_TPUS = {
  'v4': _Generation('v4', 2, 3, 'tpu-ubuntu2204-base', 'tpu-v4-podslice'),
  'v5e': _Generation(
    'v5litepod', 1, 2, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice'
  ),
  'v5p': _Generation('v5p', 2, 3, 'v2-alpha-tpuv5', 'tpu-v5p-slice'),
  'v6e': _Generation('v6e', 1, 2, 'v2-alpha-tpuv6e', 'tpu-v6e-slice'),
  'tpu7x': _Generation('tpu7x', 2, 3, 'v2-alpha-tpu7-ubuntu2404', 'tpu7x'),
}
_ALIASES = {'v5litepod': 'v5e', 'v7x': 'tpu7x'}

# The shape a size stands for, by number of chips.
_SHAPES = {
  2: '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16',
  3: '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16',
}

# GPU -> (node label cloud.google.com/gke-accelerator, xpk's --device-type).
_GPUS = {
  'h100': ('nvidia-h100-80gb', 'h100-80gb-8'),
  'h100-mega': ('nvidia-h100-mega-80gb', 'h100-mega-80gb-8'),
  'h200': ('nvidia-h200-141gb', 'h200-141gb-8'),
  'b200': ('nvidia-b200', 'b200-8'),
}
GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One TPU slice or one set of GPU nodes.

  Attributes:
    name: ours, for example v5e-16 or h100-64.
    chips: TPU chips of the slice, or GPUs.
    hosts: machines, one process each.
    gke: value of the GKE node label of the accelerator.
    xpk: value of xpk's --tpu-type or --device-type.
    topology: shape in chips, for example 4x4x4; '' for GPUs.
    gcloud: the flags of `gcloud ... queued-resources create` that ask for it;
      empty for GPUs.
    runtime_version: image of the TPU VMs; '' for GPUs.
  """

  name: str
  chips: int
  hosts: int
  gke: str
  xpk: str
  topology: str = ''
  gcloud: tuple[str, ...] = ()
  runtime_version: str = ''

  @property
  def is_tpu(self) -> bool:
    """Whether it is a TPU slice; else GPUs."""
    return bool(self.topology)

  @property
  def chips_per_host(self) -> int:
    """TPU chips or GPUs of one machine."""
    return self.chips // self.hosts


def _chips(shape: str) -> int:
  return math.prod(int(side) for side in shape.split('x'))


def _tpu(name: str, generation: str, size: str) -> Accelerator:
  """The slice of a generation with a size ('128') or a shape ('4x4x4')."""
  info = _TPUS[generation]
  shapes = {_chips(shape): shape for shape in _SHAPES[info.dimensions].split()}
  if 'x' in size:
    shape, chips = size, _chips(size)
    sides = [int(side) for side in size.split('x')]
    # Above one cube, 3-D slices are made of whole cubes of 4x4x4.
    whole = all(side and side % 4 == 0 for side in sides)
    odd = info.dimensions == 2 or not whole or sides != sorted(sides)
    if len(sides) != info.dimensions or (odd and shape not in shapes.values()):
      raise UserError(
        f'--accelerator={name}: {generation} has no shape {shape}; it has '
        f'{", ".join(shapes.values())}'
        + (' and ascending multiples of 4x4x4' if info.dimensions == 3 else '')
      )
  else:
    chips, rest = divmod(int(size), info.units_per_chip)
    if rest or chips not in shapes:
      sizes = ', '.join(
        f'{generation}-{count * info.units_per_chip}' for count in shapes
      )
      by_shape = (
        f', or a shape such as {generation}:4x8x12'
        if info.dimensions == 3
        else ''
      )
      raise UserError(
        f'--accelerator={name} is no size of {generation}; there are {sizes}'
        f'{by_shape}'
      )
    shape = shapes[chips]
  units = chips * info.units_per_chip
  if shapes.get(chips) == shape:
    gcloud = (f'--accelerator-type={info.gcloud}-{units}',)
    name = f'{generation}-{units}'
    xpk = f'{info.gcloud}-{units}'
  else:
    gcloud = (f'--type={info.gcloud}', f'--topology={shape}')
    name = f'{generation}:{shape}'
    xpk = f'{info.gcloud}-{shape}'
  # Up to 8 chips of a 2-D generation share one machine; else 4 a machine.
  small = info.dimensions == 2 and chips <= 8
  return Accelerator(
    name=name,
    chips=chips,
    hosts=1 if small else chips // 4,
    gke=info.gke,
    xpk=xpk,
    topology=shape,
    gcloud=gcloud,
    runtime_version=info.runtime_version,
  )


def parse(name: str) -> Accelerator:
  """The slice or GPU set of a name.

  Args:
    name: such as v5p-128, v5litepod-16, v5e-16, v5p:4x4x4, tpu7x-8, h100-64.

  Raises:
    UserError: no such name, size or shape.
  """
  found = re.fullmatch(r'([a-z0-9-]+?)[-:](\d+(?:x\d+)*)', name.lower())
  kind = found and _ALIASES.get(found[1], found[1])
  if kind in _TPUS:
    return _tpu(name, kind, found[2])
  if kind in _GPUS and found[2].isdigit():
    count = int(found[2])
    if count == 0 or count % GPUS_PER_NODE:
      raise UserError(
        f'--accelerator={name}: GPUs come in whole nodes of {GPUS_PER_NODE}; '
        f'for example {kind}-{max(1, -(-count // 8)) * 8}'
      )
    gke, xpk = _GPUS[kind]
    return Accelerator(
      f'{kind}-{count}', count, count // GPUS_PER_NODE, gke, xpk
    )
  raise UserError(
    f'--accelerator={name!r} is unknown; TPU slices are named like v5p-128, '
    f'v5e-16 or v5p:4x4x4 ({", ".join(_TPUS)}), GPUs like h100-64 '
    f'({", ".join(_GPUS)})'
  )
