"""Tables of what compilers said, for a terminal and for docs/pod_fit.md.

Sizes are per device, in GB (1e9 bytes) and GiB (2^30). The file keeps one
section a (recipe, target), which `write` replaces; a check compares the sizes
that it holds with newly compiled ones.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from etils import epath

from metastone_jax.compile_check import hlo
from metastone_jax.compile_check.accounting import Work
from metastone_jax.compile_check.machine import Compiled
from metastone_jax.compile_check.plan import Plan
from metastone_jax.compile_check.program import Program
from metastone_jax.compile_check.targets import GIB, Target
from metastone_jax.telemetry.files import write_bytes_atomic
from metastone_jax.training.loop.row_plan import RowPlan

_KIND = {
  'all-gather': 'AG',
  'all-reduce': 'AR',
  'reduce-scatter': 'RS',
  'all-to-all': 'A2A',
  'collective-permute': 'CP',
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One compiled program of a recipe on a machine."""

  program: Program
  compiled: Compiled

  @property
  def work(self) -> Work:
    """With the bytes between devices, read from the compiled program."""
    return dataclasses.replace(
      self.program.work, sent_bytes=self.compiled.collectives.total_sent
    )

  @property
  def total(self) -> float:
    """Bytes a device needs while it runs, with what waits beside it."""
    return self.compiled.total + self.program.resident

  @property
  def beyond(self) -> float:
    """Bytes a turn of decoding moves beyond weights and full caches once."""
    return self.compiled.turn_moves - self.program.full_turn_bytes

  def fits(self, target: Target) -> bool:
    """Whether a device of the machine has that much memory."""
    return not self.compiled.refused and self.total <= target.chip.memory

  def as_json(self) -> dict:
    """What a later run is compared with, bytes; see `from_json`."""
    compiled = self.compiled
    sent = compiled.collectives.sent
    return {
      'arguments': compiled.arguments,
      'results': compiled.results,
      'temporaries': compiled.temporaries,
      'host': compiled.host,
      'sent': {kind: size for kind, size in sent.items() if size},
      'seconds': round(compiled.seconds),
      'refused': compiled.refused,
      'total': self.total,
    } | ({'turn_moves': compiled.turn_moves} if self.program.turns else {})

  @classmethod
  def from_json(cls, program: Program, facts: Mapping) -> 'Row':
    """The row that was written into the file."""
    return cls(
      program,
      Compiled(
        name=program.name,
        arguments=facts['arguments'],
        results=facts['results'],
        temporaries=facts['temporaries'],
        host=facts['host'],
        collectives=hlo.Collectives({}, facts['sent'], 0),
        seconds=facts['seconds'],
        refused=facts['refused'],
        turn_moves=facts['turn_moves'] if program.turns else 0.0,
      ),
    )


def _gb(size: float) -> str:
  return f'{size / 1e9:.2f}'


def _seconds(value: float) -> str:
  return f'{value:.3g}'


def heading(plan: Plan) -> str:
  """One line: recipe, machine, meshes, lengths."""
  mesh = ' x '.join(f'{k} {v}' for k, v in plan.mesh.items() if v > 1)
  rollout = ' x '.join(
    f'{k} {v}' for k, v in plan.rollout_mesh.items() if v > 1
  )
  data, phase = plan.recipe.data, plan.phase
  pieces = RowPlan(phase, data, multiple=1).num_micro_batches
  return (
    f'{plan.target.devices} devices ({plan.target.topology}, '
    f'{plan.target.hosts} hosts), mesh {mesh or "one device"}; rows of '
    f'{data.max_prompt_length} + {data.max_response_length} tokens; '
    f'{phase.rollouts_per_step} responses a step, {phase.updates_per_rollout} '
    f'updates of {phase.rows_per_update} rows in {pieces} micro-batches; a '
    f'host writes {plan.engine.num_slots} responses at a time on '
    f'{rollout or "one device"}; '
    f'remat {plan.model.remat}'
  )


def table(plan: Plan, rows: Sequence[Row]) -> list[list[str]]:
  """Cells of the table, the header first."""
  limit = plan.target.chip.memory
  cells = [
    [
      'program',
      'attention',
      'arguments',
      'results',
      'temporaries',
      'beside it',
      'total GB (GiB)',
      'headroom GB',
      'sent GB by kind',
      'compute s',
      'memory s',
      'link s',
      'MFU %',
    ]
  ]
  for row in rows:
    compiled, program = row.compiled, row.program
    if compiled.refused:
      cells.append(
        [program.name, program.attention, f'REFUSED: {compiled.refused}']
        + [''] * 10
      )
      continue
    sent = ', '.join(
      f'{_KIND[kind]} {_gb(size)}'
      for kind, size in compiled.collectives.sent.items()
      if size > 5e6
    )
    parts = row.work.parts(plan.target.chip)
    cells.append(
      [
        program.name,
        program.attention,
        _gb(compiled.arguments),
        _gb(compiled.results),
        _gb(compiled.temporaries)
        + (f' (+ {_gb(compiled.host)} host)' if compiled.host else ''),
        _gb(program.resident),
        f'{_gb(row.total)} ({row.total / GIB:.2f})',
        _gb(limit - row.total)
        if row.fits(plan.target)
        else f'DOES NOT FIT: {_gb(limit - row.total)}',
        sent or '-',
        _seconds(parts['compute']),
        _seconds(parts['memory']),
        _seconds(parts['interconnect']),
        f'{100 * row.work.mfu(plan.target.chip):.0f}',
      ]
    )
  return cells


def iteration(plan: Plan, rows: Sequence[Row]) -> str:
  """Seconds of a whole iteration at the roofline, in a sentence."""
  if any(row.compiled.refused for row in rows):
    return 'No time for an iteration: a program was refused.'
  chip = plan.target.chip
  seconds = {
    row.program.name: row.work.seconds(chip) * row.program.times for row in rows
  }
  total = sum(seconds.values())
  parts = ', '.join(
    f'{name} {value:.0f} s ({100 * value / total:.0f} %)'
    for name, value in seconds.items()
  )
  lengths, slots = plan.lengths, plan.engine.num_slots
  turns = lengths.turns(plan.responses_per_host, slots)
  return (
    f'One iteration at the roofline: {total:.0f} s = {parts}. Responses: '
    f'log-normal, median {lengths.median:.0f}, sigma {lengths.sigma:g}, cut '
    f'at {lengths.limit}: mean {lengths.mean:.0f} tokens, the longest of '
    f'{slots} {lengths.expected_longest(slots):.0f}; a host writes '
    f'its {plan.responses_per_host} in {turns:.0f} turns; updates at full '
    'padded length.'
  )


def turn(plan: Plan, rows: Sequence[Row]) -> str:
  """What a turn of decoding moves, in a sentence; '' without that program."""
  found = [row for row in rows if row.compiled.turn_moves]
  if not found:
    return ''
  row = found[0]
  full, beyond = row.program.full_turn_bytes, row.beyond
  least = row.program.work.memory_bytes / row.program.turns
  bandwidth = plan.target.chip.memory_bandwidth
  return (
    f'A turn of decode, one token of every slot, moves '
    f'{_gb(full + beyond)} GB when all caches are full; weights and caches '
    f'once are {_gb(full)} ({100 * full / (full + beyond):.0f} % of it). With '
    f'caches as full as they are on average {_gb(least + beyond)} GB, '
    f'{_gb(least)} once ({100 * least / (least + beyond):.0f} %): '
    f'{1e3 * (least + beyond) / bandwidth:.1f} ms of memory traffic.'
  )


def text(plan: Plan, rows: Sequence[Row]) -> str:
  """The table for a terminal."""
  cells = table(plan, rows)
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  widths[2] = max(len(line[2]) for line in cells if line[3] or line[2] == '')
  lines = [
    '  '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
    for line in cells
  ]
  limit = plan.target.chip.memory
  once = [
    f'{row.program.name}: {row.compiled.collectives.unknown_loops} loop(s) '
    'turn as often as the data say; what they send is counted once'
    for row in rows
    if row.compiled.collectives.unknown_loops
  ]
  return '\n'.join(
    [
      f'{plan.recipe.name} on {plan.target.name}: {heading(plan)}',
      f'per device; its memory is {_gb(limit)} GB ({limit / GIB:.2f} GiB)',
      *(line.rstrip() for line in lines),
      *once,
      iteration(plan, rows),
      *filter(None, [turn(plan, rows)]),
    ]
  )


def key(plan: Plan) -> str:
  """The name of a section."""
  return f'{plan.recipe.name} on {plan.target.name}'


def section(plan: Plan, rows: Sequence[Row], command: str) -> str:
  """The section of docs/pod_fit.md, with what a check needs in a comment."""
  cells = table(plan, rows)
  limit = plan.target.chip.memory
  lines = ['| ' + ' | '.join(line) + ' |' for line in cells]
  lines.insert(1, '| --- ' * len(cells[0]) + '|')
  facts = {row.program.name: row.as_json() for row in rows}
  seconds = sum(row.compiled.seconds for row in rows)
  return '\n'.join(
    [
      f'## {key(plan)}',
      '',
      f'`{command}` ({seconds:.0f} s of compiling)',
      '',
      f'{heading(plan)}. Memory of a device: {_gb(limit)} GB '
      f'({limit / GIB:.2f} GiB).',
      '',
      *lines,
      '',
      iteration(plan, rows),
      *filter(None, [turn(plan, rows)]),
      '',
      f'<!-- sizes {json.dumps(facts, sort_keys=True)} -->',
    ]
  )


def read_sizes(path: epath.PathLike) -> dict[str, Mapping[str, Mapping]]:
  """Section name -> program -> sizes, of a file that `write` wrote."""
  path = epath.Path(path)
  if not path.exists():
    return {}
  found = {}
  for part in path.read_text(encoding='utf-8').split('\n## ')[1:]:
    name = part.split('\n', 1)[0].strip()
    if facts := re.search(r'<!-- sizes (\{.*\}) -->', part):
      found[name] = json.loads(facts[1])
  return found


def write(
  path: epath.PathLike,
  plan: Plan,
  rows: Sequence[Row],
  command: str,
  programs: Sequence[Program],
) -> None:
  """Replaces or adds the section of this recipe and machine.

  Args:
    path: the file.
    plan: recipe and machine.
    rows: what was compiled now.
    command: for the reader.
    programs: of the recipe; those not in `rows` keep their rows of the file.
  """
  path = epath.Path(path)
  kept = read_sizes(path).get(key(plan), {})
  compiled = {row.program.name: row for row in rows}
  rows = [
    compiled.get(program.name) or Row.from_json(program, kept[program.name])
    for program in programs
    if program.name in compiled or program.name in kept
  ]
  old = path.read_text(encoding='utf-8') if path.exists() else ''
  preamble, *parts = old.split('\n## ')
  sections = {part.split('\n', 1)[0].strip(): part.strip() for part in parts}
  new = section(plan, rows, command)
  sections[key(plan)] = new.removeprefix('## ').strip()
  body = '\n\n'.join(f'## {part}' for part in sections.values())
  write_bytes_atomic(path, f'{preamble.strip()}\n\n{body}\n'.encode())


def differences(
  plan: Plan,
  rows: Sequence[Row],
  sizes: Mapping[str, Mapping],
  tolerance: float,
) -> list[str]:
  """What differs from the file by more than a share of its value."""
  old = sizes.get(key(plan))
  if old is None:
    return [f'{key(plan)} is not in the file']
  found = []
  for row in rows:
    was = old.get(row.program.name)
    if was is None:
      found.append(f'{row.program.name} is not in the file')
      continue
    now = row.as_json()
    if bool(was['refused']) != bool(now['refused']):
      found.append(f'{row.program.name}: refused {now["refused"] or "no more"}')
    was, now = (
      {**facts, 'sent': sum(facts['sent'].values())} for facts in (was, now)
    )
    names = ['arguments', 'temporaries', 'total', 'sent']
    for name in names + ['turn_moves'] * bool(row.program.turns):
      # A tenth of nearly nothing is no difference.
      slack = tolerance * max(was[name], 1e8)
      if abs(now[name] - was[name]) > slack:
        found.append(
          f'{row.program.name} {name}: {_gb(now[name])} GB, was '
          f'{_gb(was[name])} GB'
        )
  return found
