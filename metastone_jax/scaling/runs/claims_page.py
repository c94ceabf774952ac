"""The page of the claims, docs/claims.md, from what a sweep's workdir holds.

Contract: everything is computed anew from the arms' `judged.npz` and
`about.json` of all points that are done, of both sets, whichever of them the
config names: they share a workdir, which keeps its points. What is not done is
named. Pictures are written beside the page, the page last; notes in
`NAME_notes.md` beside it are appended as they are.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

import metastone_jax
from metastone_jax.errors import UserError
from metastone_jax.scaling import (
  claims,
  claims_list,
  claims_plots,
  claims_report,
  plan,
  table,
)
from metastone_jax.scaling.claims import Arm
from metastone_jax.scaling.judged import About, Judged
from metastone_jax.scaling.runs import head_cost, law
from metastone_jax.telemetry import files

# Arms whose aggregators are drawn, besides the main one.
_AGGREGATED = ('frozen', 'full-spr', 'frozen-spr', 'prm')
# Kind of a point -> what the page calls its work.
_WORK = {'base': 'policies', 'material': 'samples', 'arm': 'heads'}


def check(config: Mapping[str, Any]) -> None:
  """Refuses options of a sweep that `write` cannot use.

  Raises:
    UserError: no k of best-of-k, or a set without the command that runs it.
  """
  options = config.get('options')
  k, commands = (
    options.get(key) if isinstance(options, Mapping) else None
    for key in ('k', 'commands')
  )
  if not isinstance(k, int) or isinstance(k, bool) or k < 1:
    raise UserError(
      f'--config.options.k={k!r}: samples an answer, a whole number of 1 or '
      'more'
    )
  for name in claims_list.SETS:
    command = commands.get(name) if isinstance(commands, Mapping) else None
    if not isinstance(command, str) or not command:
      raise UserError(
        f'--config.options.commands.{name}={command!r}: must be the command '
        'that runs this set'
      )


def write(
  config: Mapping[str, Any],
  workdir: epath.PathLike,
  page: epath.PathLike,
  rows: Sequence[Mapping[str, Any]],
  *,
  command: str,
) -> list[epath.Path]:
  """Writes the page and its pictures.

  Args:
    config: of the sweep: points {name, kind, set, arm, seed}, options {k of
      best-of-k, commands: set -> the command that runs it}.
    workdir: of the sweep.
    page: Markdown file to write; pictures beside it begin with its name.
    rows: the sweep's table, which this page does not need.
    command: that made the page.

  Returns:
    Paths written, the page last.

  Raises:
    UserError: a point that cannot be read, arms that judge different problems.
  """
  del rows
  workdir, page = epath.Path(workdir), epath.Path(page)
  points = _points(config, workdir)
  found = _read(points, workdir)
  written, sets = [], []
  page.parent.mkdir(parents=True, exist_ok=True)
  for name in claims_list.SETS:
    one = _set_report(config, name, points, *found[name])
    if one.arms:
      pictures = _pictures(one, page)
      written += [page.parent / file for _, file in pictures]
      one = dataclasses.replace(one, pictures=pictures)
    sets.append(one)
  notes = page.parent / f'{page.stem}_notes.md'
  text = claims_report.page(
    sets,
    command=command,
    facts=_facts(points, workdir),
    arithmetic=_arithmetic(),
    notes=notes.read_text() if notes.exists() else '',
  )
  files.write_text_atomic(page, text)
  return [*written, page]


def _points(config, workdir: epath.Path) -> list[plan.Point]:
  """Those of the config, and those that other configs gave the workdir."""
  given = {point['name']: point for point in config['points']}
  folder = workdir / 'points'
  kept = plan.kept(workdir).points if folder.exists() else {}
  return list({**given, **kept}.values())


def _read(points, workdir: epath.Path) -> dict[str, tuple[dict, dict]]:
  """Set -> ((arm, seed) -> Arm, kind of work -> seconds) of what is done."""
  found: dict[str, tuple[dict, dict]] = {
    name: ({}, {}) for name in claims_list.SETS
  }
  for point in points:
    folder = plan.point_folder(workdir, point['name'])
    if not table.is_done(folder):
      continue
    arms, spent = found[point['set']]
    if point['kind'] == 'arm':
      key = point['arm'], point['seed']
      if key in arms:
        raise UserError(
          f'{folder}: arm {key[0]} of seed {key[1]} is there twice; remove the '
          'folder of one of the two points'
        )
      judged = Judged.load(folder / 'judged.npz')
      arms[key] = Arm(judged, About.load(folder / 'about.json'))
      seconds = arms[key].about.seconds
    else:
      seconds = _time(folder)['seconds']
    kind = _WORK.get(point['kind'], point['kind'])
    spent[kind] = spent.get(kind, 0.0) + seconds
  return found


def _time(folder: epath.Path) -> dict[str, Any]:
  """When and where a point was done."""
  path = folder / 'times.json'
  try:
    found = json.loads(path.read_text())
    return {'seconds': float(found['seconds']), 'device': found['device']}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path}: does not say how long the point took '
      f'({type(error).__name__}); remove its folder, and the sweep makes it '
      'again'
    ) from error


def _set_report(
  config, name: str, points, arms, seconds
) -> claims_report.SetReport:
  planned: dict[str, list[int]] = {}
  for point in points:
    if point['kind'] == 'arm' and point['set'] == name:
      planned.setdefault(point['arm'], []).append(point['seed'])
  most = min((arm.judged.shape[1] for arm in arms.values()), default=1)
  k = min(config['options']['k'], most)
  return claims_report.SetReport(
    name=name,
    arms=arms,
    findings=claims.findings(arms, name, k),
    planned=planned,
    seconds=seconds,
    k=k,
    ks=[2**i for i in range(most.bit_length()) if 2**i <= most],
    pictures=(),
    command=config['options']['commands'][name],
  )


def _pictures(one, page: epath.Path) -> list[tuple[str, str]]:
  """(caption, file name) of what was drawn beside the page."""
  title = claims_report.capital(claims_list.SETS[one.name])

  def path(what: str) -> epath.Path:
    return page.parent / f'{page.stem}_{one.name}_{what}.png'

  drawn = [
    (
      'Differences with their intervals, by verdict',
      claims_plots.plot_verdicts(one.findings, path('verdicts'), title=title),
    )
  ]
  curves = claims_plots.curves_of(one.arms, one.name, one.ks)
  if curves:
    drawn.append(
      (
        'Accuracy against k',
        claims_plots.plot_against_k(curves, path('k'), title=title),
      )
    )
  names = [claims_list.MAIN[one.name], *_AGGREGATED]
  aggregated = claims_plots.aggregators_of(one.arms, names, one.k)
  if aggregated:
    drawn.append(
      (
        'Aggregators of step scores',
        claims_plots.plot_aggregators(
          aggregated, path('aggregators'), k=one.k, title=title
        ),
      )
    )
  return [(caption, p.name) for caption, p in drawn if p is not None]


def _arithmetic() -> list[str]:
  """What the head saves at the paper's sizes: counted, not measured."""
  traces, rows = head_cost.Traces(), head_cost.head_against_prm()
  least = min(row['saved'] for row in rows)
  said = claims.SUPPORTED if least > 0.99 else claims.NOT_SUPPORTED
  return [
    'Counted, not measured: the score head against a separate reward model of '
    f'the same backbone; FLOPs for {traces.candidates} traces of '
    f'{traces.tokens:,} tokens behind a prompt of {traces.prompt}, a mark '
    f'every {traces.step} tokens. The paper: over 99 % of the parameters are '
    f'saved. Here at least {100 * least:.2f} %: **{said}**.',
    '\n'.join(head_cost.table(rows)),
  ]


def _facts(points, workdir: epath.Path) -> list[str]:
  folders = [plan.point_folder(workdir, point['name']) for point in points]
  devices = {_time(f)['device'] for f in folders if table.is_done(f)} - {''}
  return [
    *law.draws_of(folders),
    'Seeds differ in initial parameters, order, draws and the problems that '
    'heads are fitted on; demonstrations and held-out problems are the same.',
    f'Points were done on: {", ".join(sorted(devices)) or "nothing yet"}.',
    f'Page made on {os.cpu_count()} CPU cores ({platform.machine()}, '
    f'{platform.system()}), metastone_jax {metastone_jax.__version__}.',
  ]
