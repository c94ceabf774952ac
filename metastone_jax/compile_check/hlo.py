"""Collectives of a compiled program: kinds, counts and bytes, from its text.

A loop's body counts as often as the loop runs; the number of turns is the
constant that the loop's condition compares its counter with (loops of scans
and of collective matrix products count up from 0 by 1). A loop without such a
constant (scoring the marks that there are) counts once and is named. Decoding
ends when its rows have ended: how often that loop turns is the caller's to say.

A TPU's compiler may carry a collective through others' fusions, a step in each,
also through whole loops: the operation is named in all of them, and counts
where it starts.

Bytes are those that ONE device sends, for a ring over n devices:

  all-gather, all-to-all    output x (n - 1) / n
  reduce-scatter            input  x (n - 1) / n   (= output x (n - 1))
  all-reduce                size   x 2 (n - 1) / n
  collective-permute        size
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping

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
# An operation that is carried through fusions, and where that starts and ends.
CARRIED = 'frontend_attributes={chain_id='
CARRIED_FROM = 'custom_call_target="AsyncCollectiveStart"'
CARRIED_TO = 'custom_call_target="AsyncCollectiveDone"'
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


def largest_bytes(shapes: str) -> float:
  """Size of the largest array in a shape or tuple of shapes."""
  sizes = [0.0]
  for kind, dims in _SHAPE.findall(shapes):
    size = float(_WIDTH.get(kind, 4))
    for dim in dims.split(','):
      size *= int(dim or 1)
    sizes.append(size)
  return max(sizes)


def all_bytes(shapes: str) -> float:
  """Size of all arrays of a shape or tuple of shapes."""
  return sum(largest_bytes(f'{k}[{d}]') for k, d in _SHAPE.findall(shapes))


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
    return largest_bytes(result)
  if n <= 1:
    return 0.0
  # The result of a start names its operands as well: (operands, outputs).
  if kind == 'all-gather':
    size = all_bytes(result) * (n / (n + 1) if start else 1)
    return size * (n - 1) / n
  if kind == 'reduce-scatter':
    return all_bytes(result) / (n + 1 if start else 1) * (n - 1)
  size = all_bytes(result)
  if kind == 'all-to-all':
    return size * (n - 1) / n
  return size * 2 * (n - 1) / n


class Module:
  """Computations of a compiled module, with the turns of its loops.

  Attributes:
    bodies: computation -> its lines.
    entry: name of the one that runs.
    unknown_loops: bodies of loops whose number of turns is not in the module.
      Known after `total`.
  """

  def __init__(
    self, text: str, unknown_turns: int = 1, main_turns: int | None = None
  ):
    """Reads a module.

    Args:
      text: `compiled.as_text()`.
      unknown_turns: of loops whose number of turns the data decide.
      main_turns: of the loop with the longest body; None = as of any other.
    """
    self._unknown_turns = unknown_turns
    self._main_turns = main_turns
    self.bodies: dict[str, list[str]] = {}
    self.entry = current = None
    self.unknown_loops: set[str] = set()
    for line in text.splitlines():
      if found := _HEADER.match(line):
        current = found[1]
        self.bodies[current] = []
        if line.startswith('ENTRY'):
          self.entry = current
      elif line == '}':
        current = None
      elif current is not None:
        self.bodies[current].append(line)
    loops = {
      found[2]
      for lines in self.bodies.values()
      for line in lines
      if (found := _WHILE.search(line))
    }
    self._main_loop = max(
      loops, key=lambda body: len(self.bodies.get(body, ())), default=None
    )

  def has(self, computation: str, text: str) -> bool:
    """Whether a line of a computation holds a text."""
    return any(text in line for line in self.bodies[computation])

  def _turns(self, line: str, condition: str, body: str) -> int:
    if self._main_turns is not None and body == self._main_loop:
      return self._main_turns
    if found := _KNOWN.search(line):
      return int(found[1])
    constants = [
      int(found[1])
      for text in self.bodies.get(condition, [])
      if (found := _CONSTANT.search(text))
    ]
    if len(constants) == 1:
      return constants[0]
    self.unknown_loops.add(body)
    return self._unknown_turns

  def total(
    self,
    of_line: Callable[[str, str], Mapping[str, float]],
    into: Callable[[str], bool] = lambda line: True,
  ) -> collections.Counter:
    """Sum over all lines that run, each as often as it runs.

    Args:
      of_line: (computation, line) -> numbers by name.
      into: whether what a line calls (other than a loop) is counted as well.
    """
    memo: dict[str, collections.Counter] = {}

    def walk(name: str) -> collections.Counter:
      if name in memo:
        return memo[name]
      memo[name] = collections.Counter()  # no recursion
      total = collections.Counter()

      def add(values: Mapping[str, float], times: int = 1):
        for key, value in values.items():
          total[key] += times * value

      for line in self.bodies.get(name, ()):
        if found := _WHILE.search(line):
          add(walk(found[2]), self._turns(line, found[1], found[2]))
          continue
        add(of_line(name, line))
        if not into(line):
          continue
        called = set(_CALLED.findall(line))
        if branches := _BRANCHES.search(line):
          called |= {part.strip(' %') for part in branches[1].split(',')}
        for other in called & self.bodies.keys():
          add(walk(other))
      memo[name] = total
      return total

    return walk(self.entry) if self.entry else collections.Counter()


def collectives(
  text: str, devices: int, main_turns: int | None = None
) -> Collectives:
  """Reads a compiled module.

  Args:
    text: `compiled.as_text()`.
    devices: of the mesh.
    main_turns: see `Module`.
  """
  module = Module(text, main_turns=main_turns)

  def of_line(computation: str, line: str) -> dict[str, float]:
    found = _OP.search(line)
    if not found:
      return {}
    if CARRIED in line and not module.has(computation, CARRIED_FROM):
      return {}
    result, kind, start = found.groups()
    sent = _sent(kind, bool(start), result, group_size(line, devices))
    return {f'count {kind}': 1, f'sent {kind}': sent}

  found = module.total(of_line)
  return Collectives(
    {kind: int(found[f'count {kind}']) for kind in KINDS},
    {kind: float(found[f'sent {kind}']) for kind in KINDS},
    len(module.unknown_loops),
  )
