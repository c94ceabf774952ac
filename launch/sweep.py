r"""Runs a sweep: many small jobs, one table, one page.

  python -m launch.sweep --config=configs/sweeps/scaling_law.py

The points of the sweep are done one after the other; the same command again
goes on after a crash or an interruption. More workers share the points, on this
machine (--workers=2) or on others: start the command wherever the folder can be
seen, or let it be started (--executor=slurm, --executor=gke). A point that is
done stays done. The table (table.csv, table.parquet) and the page are written
at the end; --finish writes them for what is done so far.

  python -m launch.sweep --table=results.csv

fits the laws to a table of your own (see --compute_column and the flags around
it); --table=published takes the one of the paper.
"""

import os
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
  if _TABLE.value is not None:
    law_report.run(_TABLE.value, _PAGE.value or 'law_report.md')
    return
  if _CONFIG.value is None:
    cli.fail(
      '--config is missing; for example '
      '--config=configs/sweeps/scaling_law.py (or --table=FILE)'
    )
  config = _checked(_CONFIG.value.to_dict())
  runners.page(config['kind'])
  plan = plan_lib.Plan.of(config['points'])
  workdir = epath.Path(
    _WORKDIR.value or f'runs/sweeps/{config["name"]}'
  ).absolute()
  if _DRY_RUN.value and _EXECUTOR.value == 'local':
    _list(plan, workdir)
    return
  if _FINISH.value:
    _finish(config, workdir)
    return
  if not _DRY_RUN.value:
    plan_lib.keep(plan, workdir)
  if _WORKER.value is not None:
    _work(plan, workdir, f'[worker {_WORKER.value}] ')
    if _EXECUTOR.value != 'local' and _all_done(plan, workdir):
      _finish(config, workdir)
    return
  if _EXECUTOR.value != 'local':
    _submit(config, workdir)
    return
  worker.forget_failures(plan, workdir)
  if _WORKERS.value == 1:
    _work(plan, workdir, '')
  else:
    sweep_local.run(_worker_command(workdir), _WORKERS.value)
  _finish(config, workdir)
  _report(worker.failures(plan, workdir))


def _checked(config: dict) -> dict:
  for key in ('name', 'kind', 'page', 'points'):
    if not config.get(key):
      raise UserError(
        f'--config: {key} is missing; a sweep has name, kind, page and points '
        '(configs/sweeps/scaling_law.py), a recipe of training goes to '
        'launch.train'
      )
  return config


def _work(plan: plan_lib.Plan, workdir: epath.Path, label: str) -> None:
  with telemetry.StopRequest() as stop:

    def check() -> None:
      if stop.requested:
        raise loop.Interrupted(stop.signal_name)

    worker.Worker(plan, workdir, check, label).run()


def _all_done(plan: plan_lib.Plan, workdir: epath.Path) -> bool:
  return all(
    table.is_done(plan_lib.point_folder(workdir, name)) for name in plan.points
  )


def _finish(config: dict, workdir: epath.Path) -> None:
  """Table and page of everything that the folder has."""
  everything = plan_lib.kept(workdir)
  rows = table.rows_of(everything, workdir)
  paths = table.write(everything, workdir)
  if rows:
    paths += runners.page(config['kind'])(
      config,
      workdir,
      epath.Path(_PAGE.value or config['page']),
      rows,
      command=_shown_command(),
    )
  else:
    print('no point is done yet: there is nothing to put on a page')
  for path in paths:
    print(f'written: {path}')


def _shown_command() -> str:
  """The command that makes the page, as a reader would give it."""
  left_out = ('--finish', '--worker', '--compilation_cache', '--page')
  argv = [
    part
    for part in sys.argv[1:]
    if not part.startswith(left_out) and not part.startswith('--workdir')
  ]
  return ' '.join(['python -m launch.sweep', *argv])


def _report(failed: dict[str, str]) -> None:
  if failed:
    several = '; '.join(f'{name}: {why}' for name, why in failed.items())
    raise UserError(
      f'{len(failed)} points were not done: {several} (the same command tries '
      'them again)'
    )


def _list(plan: plan_lib.Plan, workdir: epath.Path) -> None:
  for name, point in plan.points.items():
    state = 'left'
    if table.is_done(plan_lib.point_folder(workdir, name)):
      state = 'done'
    needs = ', '.join(point['needs'])
    print(
      f'{state}  {name}  {point["kind"]}' + (f'  needs {needs}' * bool(needs))
    )


def _worker_command(workdir: epath.Path) -> list[str]:
  """This command as a worker's, without its number."""
  keep = [
    part
    for part in sys.argv[1:]
    if part.split('=')[0] not in ('--workers', '--workdir', '--dry_run')
  ]
  return [
    *(sys.executable, '-m', 'launch.sweep'),
    *keep,
    f'--workdir={os.fspath(workdir)}',
  ]


def _submit(config: dict, workdir: epath.Path) -> None:
  command = _worker_command(workdir)
  shared = dict(workers=_WORKERS.value, name=config['name'])
  if _EXECUTOR.value == 'slurm':
    sweep_slurm.submit(
      command,
      folder=os.fspath(workdir / 'slurm'),
      options=sweep_slurm.options(),
      dry_run=_DRY_RUN.value,
      **shared,
    )
  else:
    sweep_gke.submit(
      command,
      workdir=os.fspath(workdir),
      options=sweep_gke.options(),
      dry_run=_DRY_RUN.value,
      **shared,
    )


if __name__ == '__main__':
  cli.run(main)
