r"""Runs a sweep: many small jobs, one table, one page.

  python -m launch.sweep --config=configs/sweeps/scaling_law.py

The points of the sweep are done one after the other; the same command again
goes on after a crash or an interruption. More workers share the points, on this
machine (--workers=2) or on others: start the command wherever the folder can be
seen, or let it be started (--executor=slurm, --executor=gke). A point that is
done stays done. The table (table.csv, table.parquet) and the page are written
at the end; --finish writes them for what is done so far. A point whose input is
bad, or that ends in an error three times, is named at the end (exit status 2);
the others are done. One whose process dies is taken again by the next worker,
however often.

  python -m launch.sweep --table=results.csv

fits the laws to a table of your own (see --compute_column and the flags around
it); --table=published takes the one of the paper.
"""

import os
import shlex
import sys

from absl import flags
from etils import epath
from ml_collections import config_flags

from launch import cli, law_report, sweep_gke, sweep_local, sweep_slurm
from metastone_jax import telemetry
from metastone_jax.errors import UserError
from metastone_jax.scaling import plan as plan_lib
from metastone_jax.scaling import table
from metastone_jax.scaling.runs import runners, worker
from metastone_jax.telemetry import files
from metastone_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Sweep, for example configs/sweeps/scaling_law.py.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the points; default runs/sweeps/NAME.'
)
_EXECUTOR = flags.DEFINE_enum(
  'executor',
  'local',
  ['local', 'slurm', 'gke'],
  'Where the workers run: this machine, a SLURM cluster, a GKE cluster.',
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes that share the points.', lower_bound=1
)
_WORKER = flags.DEFINE_integer(
  'worker', None, 'Be worker I of several and nothing else; for executors.'
)
_FINISH = flags.DEFINE_bool(
  'finish', False, 'Only write table and page of the points that are done.'
)
_PAGE = flags.DEFINE_string(
  'page', None, 'The page; default: as the config says, docs/....md.'
)
_TABLE = flags.DEFINE_string(
  'table',
  None,
  'Fit laws to this file (CSV, JSON lines, Parquet), or to `published`.',
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print the points that are left, and what would be started.'
)


def main() -> None:
  """Parses, plans, works, writes."""
  cli.refuse_several('launch.sweep')
  if _TABLE.value is not None and _CONFIG.value is not None:
    cli.fail(
      '--table fits laws to a table, --config runs a sweep: give one of them'
    )
  if _TABLE.value is not None:
    law_report.run(_TABLE.value, _PAGE.value or 'law_report.md')
    return
  if _CONFIG.value is None:
    cli.fail(
      '--config is missing; for example '
      '--config=configs/sweeps/scaling_law.py (or --table=FILE)'
    )
  config, plan = _checked(_CONFIG.value.to_dict())
  workdir = epath.Path(_WORKDIR.value or f'runs/sweeps/{config["name"]}')
  if not files.is_remote(workdir):
    workdir = workdir.absolute()  # workers may be started elsewhere
  if _DRY_RUN.value:
    if _EXECUTOR.value == 'local':
      _list(plan, workdir)
    else:
      _submit(config, workdir)
    return
  if _FINISH.value:
    _finish(config, workdir)
    return
  if _WORKER.value is None and _EXECUTOR.value != 'local':
    _executor().options()  # refused before anything is written
  page = _page(config, workdir)
  # Now, not after hours of work.
  _check_place(workdir / 'points', '--workdir', 'no point was begun')
  _check_place(page.parent, '--page', 'no point was begun')
  if page.is_dir():
    raise UserError(f'--page={page}: is a folder; give a Markdown file')
  with files.writing(workdir, 'no point was begun; give another --workdir'):
    plan_lib.keep(plan, workdir)
  if _WORKER.value is not None:
    _work(plan, workdir, f'[worker {_WORKER.value}] ')
    # Every point is done or has failed. Here the command that started the
    # worker goes on; elsewhere nobody does, and all write the same.
    if _EXECUTOR.value != 'local':
      _finish(config, workdir)
      _report(plan, workdir)
    return
  runners.check_done(plan, workdir)
  with files.writing(workdir, 'no point was begun; give another --workdir'):
    worker.forget_failures(plan, workdir)
  broken: list[str] = []
  if _EXECUTOR.value != 'local':
    _submit(config, workdir)
    return
  if _WORKERS.value == 1:
    _work(plan, workdir, '')
  else:
    broken = sweep_local.run(_worker_command(workdir), _WORKERS.value)
  _finish(config, workdir)
  _report(plan, workdir, broken)


def _checked(config: dict) -> tuple[dict, plan_lib.Plan]:
  """The config with its plan, refused before anything is done."""
  for key in ('name', 'kind', 'page', 'points'):
    if not config.get(key):
      raise UserError(
        f'--config: {key} is missing; a sweep has name, kind, page and points '
        '(configs/sweeps/scaling_law.py), a recipe of training goes to '
        'launch.train'
      )
    if key != 'points' and not isinstance(config[key], str):
      raise UserError(f'--config: {key}={config[key]!r} must be text')
  runners.check(config['kind'], runners.PAGES)
  plan = plan_lib.Plan.of(config['points'])
  for point in plan.points.values():
    runners.check(point['kind'], runners.RUNNERS)
  runners.check_page(config)
  return config, plan


def _page(config: dict, workdir: epath.Path) -> epath.Path:
  """Where the page goes."""
  page = epath.Path(_PAGE.value or config['page'])
  if _EXECUTOR.value == 'gke' and not _PAGE.value:
    page = workdir / page.name  # a pod's own disk goes with it
  return page


def _check_place(folder: epath.Path, flag: str, what: str) -> None:
  """Refuses a folder that is not there and cannot be made; makes none."""
  if files.is_remote(folder):
    return
  place = os.path.abspath(folder)
  while not os.path.lexists(place):
    place = os.path.dirname(place)
  if not os.path.isdir(place):
    why = f'{place} is no folder'
  elif not os.access(place, os.W_OK | os.X_OK):
    why = f'{place} cannot be written'
  else:
    return
  raise UserError(f'{flag}: {folder} cannot be made ({why}): {what}')


def _work(plan: plan_lib.Plan, workdir: epath.Path, label: str) -> None:
  with telemetry.StopRequest() as stop:

    def check() -> None:
      if stop.requested:
        raise loop.Interrupted(stop.signal_name)

    worker.Worker(plan, workdir, check, label).run()


def _finish(config: dict, workdir: epath.Path) -> None:
  """Table and page of everything that the folder has."""
  everything = plan_lib.kept(workdir)
  rows = table.rows_of(everything, workdir)
  with files.writing(workdir, 'no table; --finish writes it later'):
    paths = table.write(everything, workdir)
  if rows:
    page = _page(config, workdir)
    hidden = ('finish', 'worker', 'workdir', 'page', 'compilation_cache')
    command = shlex.join(['python', '-m', 'launch.sweep', *_argv(*hidden)])
    with files.writing(page, 'no page; --finish --page=PATH writes it later'):
      paths += runners.page(config['kind'])(
        config, workdir, page, rows, command=command
      )
  else:
    print('no point is done yet: there is nothing to put on a page')
  for path in paths:
    print(f'written: {path}')


def _argv(*left_out: str) -> list[str]:
  """The flags of this call but for some."""
  kept, is_value = [], False
  for part in sys.argv[1:]:
    if is_value:  # of `--flag value`
      is_value = False
      continue
    name, equals, _ = part.lstrip('-').partition('=')
    if part.startswith('-') and name in left_out:
      is_value = not equals and not flags.FLAGS[name].boolean
      continue
    kept.append(part)
  return kept


def _report(plan: plan_lib.Plan, workdir: epath.Path, broken=()) -> None:
  """Refuses to call a sweep done that is not."""
  failed = worker.failures(plan, workdir)
  if failed:
    several = '; '.join(f'{name}: {why}' for name, why in failed.items())
    raise UserError(
      f'{len(failed)} of {len(plan.points)} points were not done: {several} '
      '(the same command tries them again)'
    )
  left = [
    name
    for name in plan.points
    if not table.is_done(plan_lib.point_folder(workdir, name))
  ]
  if left:
    why = f' ({"; ".join(broken)})' if broken else ''
    raise UserError(
      f'{len(left)} of {len(plan.points)} points are left, the first is '
      f'{left[0]}{why}; the same command goes on'
    )


def _list(plan: plan_lib.Plan, workdir: epath.Path) -> None:
  for name, point in plan.points.items():
    state = 'left'
    if table.is_done(plan_lib.point_folder(workdir, name)):
      state = 'done'
    needs = f'  needs {", ".join(point["needs"])}' if point['needs'] else ''
    print(f'{state}  {name}  {point["kind"]}{needs}')


def _worker_command(workdir: epath.Path) -> list[str]:
  """This command as a worker's, without its number."""
  return [
    *(sys.executable, '-m', 'launch.sweep'),
    *_argv('workers', 'workdir', 'dry_run', 'slurm', 'gke'),
    f'--workdir={os.fspath(workdir)}',
  ]


def _executor():
  return sweep_slurm if _EXECUTOR.value == 'slurm' else sweep_gke


def _submit(config: dict, workdir: epath.Path) -> None:
  _executor().submit(
    _worker_command(workdir),
    name=config['name'],
    workdir=os.fspath(workdir),
    workers=_WORKERS.value,
    dry_run=_DRY_RUN.value,
  )


if __name__ == '__main__':
  cli.run(main)
