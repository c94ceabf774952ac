"""Sizes of the TPU kernels' blocks, by the shapes alone.

Every kernel holds a block of marks' features in VMEM while the first layer's
weights stream past, so each weight read serves as many marks as a block has.
The memory of the smallest core (64 MiB: v5p, tpu7x) is the limit everywhere:
at these sizes it no longer matters to the arithmetic's speed, and one table
serves every TPU.
"""

import dataclasses

# What a kernel may take of 64 MiB, and what it may plan with: the compiler
# keeps values of its own there.
VMEM_LIMIT = 62 * 2**20
_PLAN = 58 * 2**20
# Places of a device: three vectors of them lie in VMEM, some of them twice.
MAX_PLACES = 2**17
_TABLES = 4 * 4 * MAX_PLACES
_ROWS = 256
# Marks and units in order of preference; tiles of 128 units leave half of a
# matrix unit of v6e and tpu7x idle.
_FORWARD = [(m, 256) for m in (2048, 1024, 512)]
_BACKWARD = [(m, u) for m in (2048, 1024, 512) for u in (512, 256)]
_NARROW = [(m, 128) for m in (2048, 1024, 512)]
# Products with each weight read below which a kernel no longer pays: memory
# would set the pace on the fastest cores.
_PRODUCTS = 2048


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Blocks of one kernel.

  Attributes:
    marks: M, slots whose features are in VMEM together.
    units: hidden units at a time.
    chunk: C, slots gathered during one tile of units.
    rows: slots that are computed together; a multiple of 32 that divides M.
  """

  marks: int
  units: int
  chunk: int
  rows: int = _ROWS

  def vmem(self, width: int, hidden: int, backward: bool) -> int:
    """Bytes the kernel asks for, without the compiler's own."""
    features = 2 * 2 * self.marks * width
    weights = 2 * 2 * width * self.units
    stage = 2 * 2 * 2 * self.chunk * width
    columns = 4 * 128 * self.marks * 4
    vectors = 4 * 8 * (4 * self.units + 2 * hidden)
    total = features + weights + stage + columns + vectors + _TABLES
    if backward:
      total += 4 * self.marks * width
      total += 2 * 4 * (self.marks // 32) * self.units
    return total


def blocks(width: int, hidden: int, backward: bool = False) -> Blocks | None:
  """The largest blocks that fit; None = a block below 512 marks, no use.

  Args:
    width: D, a multiple of 128.
    hidden: E, a multiple of 128.
    backward: for the kernel that also accumulates the features' gradient.
  """
  if width % 128 or hidden % 128:
    return None
  for marks, units in (_BACKWARD if backward else _FORWARD) + _NARROW:
    tiles = hidden // units
    if hidden % units or tiles < 2:
      continue
    # The next block is gathered in all tiles but the last.
    chunk = max(32, 1 << (-(-marks // (tiles - 1)) - 1).bit_length())
    sizes = Blocks(marks, units, chunk)
    if chunk <= marks and sizes.vmem(width, hidden, backward) <= _PLAN:
      return sizes
  return None


def pay(width: int, hidden: int) -> bool:
  """Whether each weight read serves 2,048 products, forward and backward.

  The backward kernel multiplies with a weight twice for each mark.
  """
  forward = blocks(width, hidden)
  backward = blocks(width, hidden, backward=True)
  return (
    forward is not None
    and backward is not None
    and min(forward.marks, 2 * backward.marks) >= _PRODUCTS
  )


@dataclasses.dataclass(frozen=True)
class ProductBlocks:
  """Blocks of the product that gives the first layer's gradient.

  Attributes:
    marks: slots summed at a time.
    width: columns of the features.
    units: hidden units.
  """

  marks: int
  width: int
  units: int


def product_blocks(width: int, hidden: int, marks: int) -> ProductBlocks:
  """Blocks of a (width, hidden) product over blocks of up to `marks` slots."""
  columns = max(k for k in range(128, 1025, 128) if width % k == 0)
  # An even number of tiles: two cores share them.
  units = next((u for u in (1024, 512, 256, 128) if hidden % (2 * u) == 0), 128)
  return ProductBlocks(min(512, marks), columns, units)
