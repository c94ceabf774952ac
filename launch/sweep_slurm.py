"""Workers of a sweep as an array of SLURM jobs, submitted by submitit.

Run on a login node, in this repository, with a `--workdir` that all nodes see.
Before its time limit, or where a more urgent job takes its place, a job tells
its worker to save, and queues again.
"""

import os
import pathlib
import signal
import subprocess
import time

from absl import flags

import launch
from launch.pods import shell
from metastone_jax.errors import UserError

_SLURM = flags.DEFINE_list(
  'slurm',
  [],
  'Of --executor=slurm: KEY=VALUE,... of a worker, as submitit names them: '
  'partition, account, qos, time (minutes; default a day), gpus_per_node, '
  'cpus_per_task, mem, constraint, setup (a line of shell), ...',
)

ROOT = pathlib.Path(launch.__file__).resolve().parents[1]

_DEFAULTS = {'time': 24 * 60, 'signal_delay_s': 120}
_RESTARTS = 100  # after a time limit
_SAVING = 80.0  # seconds that a worker has to save; less than signal_delay_s


class Work:
  """What a job runs; pickled by submitit."""

  def __init__(self, command: list[str], root: str):
    self._command, self._root = command, root
    self._process: subprocess.Popen | None = None

  def __call__(self, number: int) -> None:
    """Is worker `number`.

    Raises:
      RuntimeError: it ended badly; its own message is in the log.
    """
    self._process = subprocess.Popen(
      [*self._command, f'--worker={number}'],
      cwd=self._root,
      # SLURM's signal to this job's processes would end it unsaved.
      start_new_session=True,
    )
    status = self._process.wait()
    if status:
      raise RuntimeError(f'worker {number} ended with status {status}')

  def checkpoint(self, number: int):
    """Stops the worker in order; called from a signal's handler.

    Returns:
      What the job runs when it has its turn again.
    """
    import submitit

    self._process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _SAVING
    # Not `wait`: the handler has interrupted one, which holds a lock.
    seen = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, self._process.pid, seen) is None:
      if time.monotonic() > deadline:
        self._process.kill()  # the point goes on from what it has saved
        break
      time.sleep(0.1)
    again = Work(self._command, self._root)
    return submitit.helpers.DelayedSubmission(again, number)


def submit(
  command: list[str], *, name: str, workdir: str, workers: int, dry_run: bool
) -> None:
  """Submits the workers, or prints what would be.

  Args:
    command: of a worker, without its number.
    name: of the jobs.
    workdir: of the sweep; logs are in its folder `slurm`.
    workers: how many jobs.
    dry_run: only print.

  Raises:
    UserError: no submitit, no SLURM, or options that they refuse.
  """
  given = options()
  folder = f'{workdir}/slurm'
  if '://' in workdir:
    folder = str(ROOT / 'runs' / 'sweeps' / name / 'slurm')
  if dry_run:
    shown = ' '.join(f'{key}={value}' for key, value in given.items())
    print(f'# {workers} jobs named {name} with {shown}; logs: {folder}')
    for number in range(workers):
      print(shell.line([*command, f'--worker={number}']))
    return
  try:
    import submitit
  except ImportError as error:
    raise UserError(
      '--executor=slurm needs submitit: pip install "metastone_jax[slurm]"'
    ) from error
  shell.require('sbatch')
  try:
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_RESTARTS)
    executor.update_parameters(
      job_name=name,
      array_parallelism=workers,
      stderr_to_stdout=True,
      **given,
    )
  except (RuntimeError, ValueError) as error:
    raise UserError(f'--slurm: {str(error).splitlines()[0]}') from error
  try:
    jobs = executor.map_array(Work(command, str(ROOT)), range(workers))
  except (submitit.core.utils.FailedJobError, RuntimeError) as error:
    raise UserError(f'sbatch failed: {shell.last_line(str(error))}') from error
  print(
    f'submitted: {", ".join(job.job_id for job in jobs)}\n'
    f'their state: squeue --name={name}; their logs: {folder}\n'
    'the same command with --executor=local --finish writes table and page of '
    'what is done'
  )


def options() -> dict:
  """--slurm as a dictionary.

  Raises:
    UserError: an item that is no KEY=VALUE.
  """
  found: dict = dict(_DEFAULTS)
  for item in _SLURM.value:
    key, equals, value = item.partition('=')
    if not equals or not key.isidentifier() or not value:
      raise UserError(
        f'--slurm={item}: give KEY=VALUE,... such as partition=gpu,time=240'
      )
    found[key] = int(value) if value.isdigit() else value
    if key == 'setup':
      found[key] = [value]
  return found
