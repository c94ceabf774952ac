"""Sizes of the TPU kernels' blocks, from shapes and the size of VMEM alone.

The head is read once a block of tokens, so the arithmetic a byte of traffic
grows with the block: 2 n D V operations on V D s bytes are 2 n / s a byte, with
n tokens a block and s bytes a number of the head. A TPU needs 190 (v5p) to 560
(v6e) of them to be busy. Columns come next: fewer than 256 leave half of the
matrix unit of v6e and tpu7x idle.
"""

import dataclasses

LANES = 128
# Most tokens and columns of a block; more gains nothing, and makes the program
# that the compiler unrolls longer.
_TOKENS = 2048
_COLUMNS = (512, 256, 128)
# Most rows and bytes of hidden states that a product takes at a time.
_ROWS = 512
_ROW_BYTES = 4 * 2**20
# Part of the vector memory that is left to the compiler: spilled registers,
# transposes, semaphores. Float32 spills more, as halves of its numbers.
_RESERVED = {2: 1 / 16, 4: 1 / 4}
_PER_TOKEN = 4 * LANES  # bytes of one float32 number a token, spread over lanes


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tokens and columns of the vocabulary that one grid step works on."""

  tokens: int
  columns: int


def ceil_to(x: int, multiple: int) -> int:
  """The least multiple that is not below x."""
  return -(-x // multiple) * multiple


def limit(vmem: int) -> int:
  """Bytes of vector memory that a kernel may ask the compiler for."""
  return vmem - 2**20


def _budget(vmem: int, hidden_bytes: int) -> int:
  """Bytes of it that a kernel's own arrays may take."""
  return int(vmem * (1 - _RESERVED[hidden_bytes]))


def _even(tokens: int, most: int) -> int:
  """Tokens of a block, at most `most`, that divide N without padding it.

  Padding copies the hidden states, so a somewhat smaller block that divides is
  better; only N that has none is padded.
  """
  step = 2 * LANES if min(tokens, most) > LANES else LANES
  pieces = ceil_to(tokens, step) // step
  whole = max(x for x in range(1, most // step + 1) if pieces % x == 0)
  if 2 * whole * step < min(most, pieces * step):
    whole = -(-pieces // -(-pieces * step // most))
  return whole * step


def _choose(tokens, columns, budget, need) -> Blocks:
  """The largest blocks whose `need(n, c)` bytes fit.

  Tokens before columns, but no fewer than 256 columns for the last tokens.
  """
  best = None
  for c in _COLUMNS:
    fits = (n for n in range(_TOKENS, 0, -2 * LANES) if need(n, c) <= budget)
    found = Blocks(_even(tokens, next(fits, LANES)), c)
    if need(found.tokens, c) > budget:
      continue
    if best is None or (found.tokens >= 1.25 * best.tokens and c >= 256):
      best = found
  if best is None:
    raise ValueError(
      f'the least blocks need {need(LANES, LANES):,} of {budget:,} bytes of '
      "vector memory; use kind='xla' for so wide a model"
    )
  return Blocks(best.tokens, min(best.columns, ceil_to(columns, LANES)))


def forward(
  tokens: int,
  width: int,
  columns: int,
  *,
  hidden_bytes: int,
  head_bytes: int,
  vmem: int,
) -> Blocks:
  """Blocks of the forward kernel.

  Args:
    tokens: N.
    width: D.
    columns: V of this device.
    hidden_bytes: of a number of the hidden states.
    head_bytes: of a number of the head.
    vmem: bytes of vector memory of one core.

  Raises:
    ValueError: not even the least blocks fit.
  """

  def need(n, c):
    head = 2 * head_bytes  # two buffers, and a copy where it is cast
    if head_bytes != hidden_bytes:
      head += hidden_bytes
    hidden = n * width * hidden_bytes + _ROW_BYTES  # Spilled.
    return hidden + width * c * head + n * 6 * _PER_TOKEN

  return _choose(tokens, columns, _budget(vmem, hidden_bytes), need)


def backward(
  tokens: int,
  width: int,
  columns: int,
  *,
  hidden_bytes: int,
  head_bytes: int,
  vmem: int,
) -> Blocks:
  """Blocks of the backward kernel; see `forward`."""

  def need(n, c):
    # Hidden states as they are, transposed, and their float32 gradient.
    hidden = 2 * hidden_bytes + 4
    # Two buffers of the head, and two of its gradient on its way.
    head = 2 * head_bytes + 2 * 4
    if head_bytes != hidden_bytes or columns % c:
      head += hidden_bytes  # cast, or cleaned in the last tile
    return (
      n * width * hidden
      + width * c * head
      + n * c * hidden_bytes
      + n * 6 * _PER_TOKEN
    )

  return _choose(tokens, columns, _budget(vmem, hidden_bytes), need)


def rows(hidden_nD) -> int:
  """Rows of a block whose logits are made at a time.

  A wider part of the hidden states than this spills out of the registers into
  vector memory; float32 takes six products of halves of the numbers.
  """
  D, size = hidden_nD.shape[1], hidden_nD.dtype.itemsize
  most = _ROW_BYTES // (D * size * (6 if size > 2 else 1))
  return min(_ROWS, max(LANES, most // LANES * LANES))


def part(size: int, most: int) -> int:
  """The largest divisor of `size` that whole lanes make up, at most `most`.

  A kernel's inner loops work on parts of a block: long enough to fill the
  matrix unit, short enough for the program to stay small.
  """
  return max(
    x for x in range(LANES, max(most, LANES) + 1, LANES) if size % x == 0
  )
