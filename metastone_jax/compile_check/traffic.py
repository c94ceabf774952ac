"""Bytes a compiled program moves through a device's memory, from its text.

Every instruction outside fusions reads its operands and writes its result; a
loop's body counts as often as the loop runs (as the caller says, where the data
decide). What a fusion only slices counts as the slice, what it updates in place
as the update; on a TPU memory holds tiles, and an update of parts of tiles
reads these and writes them back. A collective that is carried through fusions
counts where it starts. Arrays that the compiler keeps on the chip
(TPU memory space 1 and above) count nothing, nor does the scratch memory of
cuBLAS. A kernel counts what its own cost estimate says, which knows the blocks
it reads again, less what of it lies on the chip; without an estimate, every
operand and result once.

A GPU's caches are not modelled: what a later kernel finds in L2 still counts.
"""

import re

from metastone_jax.compile_check import hlo

_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|[^ ]+) ([\w-]+)\((.*?)\)(?:, |$)'
)
_NAME = re.compile(r'%([\w.-]+)')
_ARRAY = re.compile(r'(?:pred|[subf]+\d+|bf16)\[[\d,]*\](?:\{[^}]*\})?')
_LAYOUT = re.compile(r'\[([\d,]*)\]\{([\d,]*):T\((\d+),(\d+)\)')
_DIMS = re.compile(r'\[([\d,]*)\]')
_SCRATCH = re.compile(r', s8\[\d+\]\{0\}\)$')
_ON_CHIP = re.compile(r'S\([1-9]')
_ESTIMATE = re.compile(r'"?bytes_accessed"?\s*[:=]\s*"?(\d+)')
_CALLS = re.compile(r'calls=%?([\w.-]+)')
# These move nothing, or their bodies are counted instead.
_FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'replica-id',
  'opt-barrier',
}
_SLICES = {'dynamic-slice', 'slice', 'gather'}
_ALIASES = {'bitcast', 'reshape', 'transpose', 'copy', 'convert'}


def _bytes(shape: str) -> float:
  """Size of a shape or tuple of shapes, without what is kept on the chip."""
  return sum(
    hlo.all_bytes(array)
    for array in _ARRAY.findall(shape)
    if not _ON_CHIP.search(array)
  )


def _numbers(text: str) -> list[int]:
  return [int(x) for x in text.split(',') if x]


def _updated(target: str, update: str) -> float:
  """Bytes that writing `update` somewhere into `target` moves in its memory."""
  if not target or _ON_CHIP.search(target):
    return 0.0
  size = hlo.all_bytes(update)
  found, dims = _LAYOUT.search(target), _DIMS.search(update)
  if not found or not dims:
    return size
  whole, part = _numbers(found[1]), _numbers(dims[1])
  minor_to_major = _numbers(found[2])
  tile = int(found[4]), int(found[3])
  partial = False
  for axis, width in zip(minor_to_major, tile, strict=False):
    if part[axis] % width and part[axis] < whole[axis]:
      size *= -(-part[axis] // width) * width / part[axis]
      partial = True
  return 2 * size if partial else size


class _Reader:
  """Sizes by name, and what fusions read and write."""

  def __init__(self, module: hlo.Module):
    self._module = module
    # Fusions that carry a step of a collective besides what they compute.
    self._carry = {
      name for name in module.bodies if module.has(name, hlo.CARRIED)
    }
    self.bodies = {
      name: [
        found.groups() + (line,)
        for line in lines
        if (found := _INSTRUCTION.match(line))
      ]
      for name, lines in module.bodies.items()
    }
    self.shapes = {
      name: {result: shape for result, shape, *_ in body}
      for name, body in self.bodies.items()
    }

  def _read(self, fusion: str, name: str, full: float) -> float:
    """Bytes of the value `name` that a fusion reads."""
    # What a fusion hands on as it is, another reads: a nested one of a bitcast.
    read = full if name == self.bodies[fusion][-1][0] else 0.0
    for result, shape, op, operands, line in self.bodies[fusion]:
      names = _NAME.findall(operands)
      if name not in names:
        continue
      if fusion in self._carry and (op == 'tuple' or hlo.CARRIED in line):
        continue  # handed on, or counted where the collective starts
      if op in _SLICES and names[0] == name:
        read += _bytes(shape)
      elif op == 'dynamic-update-slice' and names[0] == name:
        pass  # in place
      elif op in _ALIASES:
        read += self._read(fusion, result, full)
      elif op == 'fusion':
        inner = _CALLS.search(line)[1]
        for place in (i for i, x in enumerate(names) if x == name):
          read += self._read(inner, self._parameter(inner, place), full)
      else:
        return full
    return min(read, full)

  def _parameter(self, fusion: str, place: int) -> str:
    for result, _, op, operands, _ in self.bodies[fusion]:
      if op == 'parameter' and operands == str(place):
        return result
    raise ValueError(f'computation {fusion} has no parameter {place}')

  def _written(self, fusion: str, name: str, full: float) -> float:
    """Bytes that a fusion writes as its value `name`."""
    if not full:
      return 0.0  # kept on the chip
    for result, shape, op, operands, line in self.bodies[fusion]:
      if result != name:
        continue
      names = _NAME.findall(operands)
      if op == 'dynamic-update-slice':
        return _updated(shape, self.shapes[fusion].get(names[1], ''))
      if op in _ALIASES:
        return self._written(fusion, names[0], full)
      if op == 'tuple':
        return sum(
          self._written(fusion, x, _bytes(self.shapes[fusion][x]))
          for x in names
          if not (fusion in self._carry and self._is_carried(fusion, x))
        )
      if op == 'fusion':
        inner = _CALLS.search(line)[1]
        return self._written(inner, self.bodies[inner][-1][0], full)
    return full

  def _is_carried(self, fusion: str, name: str) -> bool:
    return any(
      result == name and (op == 'parameter' or hlo.CARRIED in line)
      for result, _, op, _, line in self.bodies[fusion]
    )

  def moved(self, computation: str, line: str) -> float:
    """Bytes of one instruction of a computation that is no fusion."""
    found = _INSTRUCTION.match(line)
    if not found or found[3] in _FREE or found[3].endswith('-done'):
      return 0.0
    _, shape, op, operands = found.groups()
    shapes = self.shapes[computation]
    names = _NAME.findall(operands)
    sizes = [_bytes(shapes.get(name, '')) for name in names]
    if op == 'custom-call' and (estimate := _ESTIMATE.search(line)):
      arrays = _ARRAY.findall(' '.join([shape, *(shapes[x] for x in names)]))
      here = sum(hlo.all_bytes(x) for x in arrays if _ON_CHIP.search(x))
      return max(0.0, float(estimate[1]) - here)
    if op == 'fusion':
      fusion = _CALLS.search(line)[1]
      if self._module.has(fusion, hlo.CARRIED_TO):
        return 0.0
      if self._module.has(fusion, hlo.CARRIED_FROM):
        return sum(sizes) + sum(
          _bytes(shape)
          for _, shape, _, _, line in self.bodies[fusion]
          if hlo.CARRIED in line
        )
      read = sum(
        self._read(fusion, self._parameter(fusion, place), size)
        for place, size in enumerate(sizes)
        if size
      )
      root = self.bodies[fusion][-1][0]
      return read + self._written(fusion, root, _bytes(shape))
    if op in _SLICES:
      return 2 * _bytes(shape)
    if op == 'dynamic-update-slice':
      return sizes[1] + _updated(shape, shapes.get(names[1], ''))
    if op == 'custom-call' and '"__cublas' in line:
      return sum(sizes) + _bytes(_SCRATCH.sub(')', shape))
    if op.endswith('slice-start'):
      # Names what it slices and the slice, a weight a piece at a time.
      whole, part, *_ = _ARRAY.findall(shape)
      read = 0.0 if _ON_CHIP.search(whole) else hlo.all_bytes(part)
      return read + _bytes(part)
    if op.endswith('-start'):
      return _bytes(shape)  # names its operands and its results
    return sum(sizes) + _bytes(shape)


def memory_traffic(
  text: str, unknown_turns: int = 1, main_turns: int | None = None
) -> float:
  """Bytes read from and written to a device's memory in one run.

  Args:
    text: `compiled.as_text()`.
    unknown_turns: of loops whose number of turns the data decide.
    main_turns: see `hlo.Module`.
  """
  module = hlo.Module(text, unknown_turns, main_turns)
  reader = _Reader(module)
  # Fusions and reductions call computations that move nothing themselves.
  found = module.total(
    lambda *where: {'moved': reader.moved(*where)},
    lambda line: ' call(' in line or ' conditional(' in line,
  )
  return float(found['moved'])
