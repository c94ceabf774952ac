"""Collectives of a compiled program: kinds, counts and bytes, from its text.

A loop's body counts as often as the loop runs; the number of turns is the
constant that the loop's condition compares its counter with (loops of scans
and of collective matrix products count up from 0 by 1). A loop without such a
constant (decoding, which ends when all rows have ended) counts once and is
named.

Bytes are those that ONE device sends, for a ring over n devices:

  all-gather, all-to-all    output x (n - 1) / n
  reduce-scatter            input  x (n - 1) / n   (= output x (n - 1))
  all-reduce                size   x 2 (n - 1) / n
  collective-permute        size
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)

_WIDTH = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  'bf16': 2,
  'f16': 2,
  's16': 2,
  'u16': 2,
  'f32': 4,
  's32': 4,
  'u32': 4,
  'f64': 8,
  's64': 8,
  'u64': 8,
}
_HEADER = re.compile(r'^(?:ENTRY )?%?([\w.-]+) \(.*\{$')
_SHAPE = re.compile(r'\b(pred|[subf]+\d+|bf16)\[([\d,]*)\]')
_OP = re.compile(
  r'= (.*?) (' + '|'.join(KINDS) + r')(-start)?\(.*?\), ',
)
_WHILE = re.compile(r' while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)')
_CALLED = re.compile(
  r'(?:to_apply|calls|body|condition|true_computation|false_computation)='
  r'%?([\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_CONSTANT = re.compile(r'[su]\d+\[\][^ ]* constant\((\d+)\)')
_KNOWN = re.compile(r'known_trip_count"?:\{"n":"(\d+)"\}')
_GROUPS_LIST = re.compile(r'replica_groups=\{\{([\d,]+)\}')
_GROUPS_IOTA = re.compile(r'replica_groups=\[(\d+),(\d+)\]')
_GROUPS_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Collectives:
  """Totals of one run of the program.

  Attributes:
    count: kind -> number of operations.
    sent: kind -> bytes that one device sends.
    unknown_loops: loops whose number of turns is not in the program.
  """

  count: Mapping[str, int]
  sent: Mapping[str, float]
  unknown_loops: int

  @property
  def total_sent(self) -> float:
    """Bytes that one device sends, all kinds."""
    return sum(self.sent.values())


def _bytes(shapes: str) -> float:
  """Size of the largest array in a shape or tuple of shapes."""
  sizes = [0.0]
  for kind, dims in _SHAPE.findall(shapes):
    size = float(_WIDTH.get(kind, 4))
    for dim in dims.split(','):
      size *= int(dim or 1)
    sizes.append(size)
  return max(sizes)


def _all_bytes(shapes: str) -> float:
  """Size of all arrays of a shape or tuple of shapes."""
  return sum(_bytes(f'{k}[{d}]') for k, d in _SHAPE.findall(shapes))


def group_size(line: str, devices: int) -> int:
  """Devices of one group of a collective.

  Args:
    line: the operation's line.
    devices: all devices, for a collective without groups.
  """
  if found := _GROUPS_LIST.search(line):
    return found[1].count(',') + 1
  if found := _GROUPS_IOTA.search(line):
    return int(found[2])
  if found := _GROUPS_MESH.search(line):
    sizes = dict(
      part.replace("'", '').split('=') for part in found[1].split(',')
    )
    size = 1
    for axis in found[2].replace("'", '').split(','):
      size *= int(sizes[axis.split(':')[0]])
    return size
  return devices


def _sent(kind: str, start: bool, result: str, n: int) -> float:
  if kind == 'collective-permute':
    return _bytes(result)
  if n <= 1:
    return 0.0
  # The result of a start names its operands as well: (operands, outputs).
  if kind == 'all-gather':
    size = _all_bytes(result) * (n / (n + 1) if start else 1)
    return size * (n - 1) / n
  if kind == 'reduce-scatter':
    return _all_bytes(result) / (n + 1 if start else 1) * (n - 1)
  size = _all_bytes(result)
  if kind == 'all-to-all':
    return size * (n - 1) / n
  return size * 2 * (n - 1) / n


def collectives(text: str, devices: int) -> Collectives:
  """Reads a compiled module.

  Args:
    text: `compiled.as_text()`.
    devices: of the mesh.
  """
  bodies: dict[str, list[str]] = {}
  entry = current = None
  for line in text.splitlines():
    if found := _HEADER.match(line):
      current = found[1]
      bodies[current] = []
      if line.startswith('ENTRY'):
        entry = current
    elif line == '}':
      current = None
    elif current is not None:
      bodies[current].append(line)
  unknown = set()

  def turns(line: str, condition: str, body: str) -> int:
    if found := _KNOWN.search(line):
      return int(found[1])
    lines = bodies.get(condition, [])
    constants = [
      int(found[1]) for text in lines if (found := _CONSTANT.search(text))
    ]
    if len(constants) == 1:
      return constants[0]
    unknown.add(body)
    return 1

  memo: dict[str, tuple[collections.Counter, collections.Counter]] = {}

  def walk(name: str):
    if name in memo:
      return memo[name]
    memo[name] = collections.Counter(), collections.Counter()  # no recursion
    count, sent = collections.Counter(), collections.Counter()

    def add(other: str, times: int = 1):
      other_count, other_sent = walk(other)
      for kind in KINDS:
        count[kind] += times * other_count[kind]
        sent[kind] += times * other_sent[kind]

    for line in bodies.get(name, ()):
      if found := _WHILE.search(line):
        add(found[2], turns(line, found[1], found[2]))
        continue
      if found := _OP.search(line):
        result, kind, start = found.groups()
        count[kind] += 1
        size = group_size(line, devices)
        sent[kind] += _sent(kind, bool(start), result, size)
      called = set(_CALLED.findall(line))
      if branches := _BRANCHES.search(line):
        called |= {part.strip(' %') for part in branches[1].split(',')}
      for other in called & bodies.keys():
        add(other)
    memo[name] = count, sent
    return memo[name]

  count, sent = walk(entry) if entry else ({}, {})
  return Collectives(
    {kind: int(count[kind]) for kind in KINDS},
    {kind: float(sent[kind]) for kind in KINDS},
    len(unknown),
  )
