"""Workers of a sweep as an array of SLURM jobs, submitted by submitit.

Run on a login node, with a `--workdir` that all nodes see; the jobs run in the
folder where the command is given. Before its time limit, or where a more urgent
job takes its place, a job tells its worker to save, and queues again. A worker
that refuses its input ends its job.

--slurm takes the options that submitit has of sbatch, under its names; any
other one is refused. What sbatch has beyond them can be given to it in its
variables, such as SBATCH_RESERVATION. A value with a comma is quoted:
'--slurm=partition=gpu,"exclude=n1,n2"'.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import time

from absl import flags

from launch.pods import shell
from metastone_jax.errors import UserError

_SLURM = flags.DEFINE_list(
  'slurm',
  [],
  'Of --executor=slurm: KEY=VALUE,... of a worker, as submitit names them: '
  'partition, account, qos, time (minutes; default a day), gpus_per_node, '
  'cpus_per_task, mem (16GB), constraint, exclusive (true), setup (a line of '
  'shell), ...',
)

_DEFAULTS = {'time': 24 * 60, 'signal_delay_s': 120}
_OURS = ('job_name', 'array_parallelism', 'stderr_to_stdout')
_RESTARTS = 100  # after a time limit
_INTERRUPTED = 130  # of launch.cli: told to stop, everything saved
_PAUSE = 30.0  # seconds before a worker that was told so is started again


@dataclasses.dataclass
class Work:
  """What a job runs; pickled by submitit.

  Attributes:
    command: of a worker, without its number.
    folder: where it runs.
    saving: seconds that the worker has to save when the job must end.
    pause: seconds before it is started again where only it was told to stop.
  """

  command: list[str]
  folder: str
  saving: float
  pause: float
  _process: subprocess.Popen | None = dataclasses.field(
    init=False, default=None, compare=False
  )

  def __call__(self, number: int) -> None:
    """Is worker `number`.

    Raises:
      RuntimeError: it ended badly; its own message is in the log.
    """
    while (status := self._run(number)) == _INTERRUPTED:
      # Some clusters signal the worker too; what the job gets then, the signal
      # to queue again or its end, comes within the pause.
      time.sleep(self.pause)
    if status:
      raise RuntimeError(f'worker {number} ended with status {status}')

  def _run(self, number: int) -> int:
    self._process = subprocess.Popen(
      [*self.command, f'--worker={number}'],
      cwd=self.folder,
      # SLURM's signal to this job's processes would end it unsaved.
      start_new_session=True,
    )
    return self._process.wait()

  def checkpoint(self, number: int):
    """Stops the worker in order; called from a signal's handler.

    Returns:
      What the job runs when it has its turn again.
    """
    import submitit

    if self._process is not None:
      self._process.send_signal(signal.SIGTERM)
      deadline = time.monotonic() + self.saving
      # Not `wait`: the handler has interrupted one, which holds a lock.
      seen = os.WEXITED | os.WNOHANG | os.WNOWAIT
      with contextlib.suppress(ChildProcessError):  # it had ended already
        while os.waitid(os.P_PID, self._process.pid, seen) is None:
          if time.monotonic() > deadline:
            self._process.kill()  # the point goes on from what it has saved
            break
          time.sleep(0.1)
    # A copy without the process, which cannot be pickled.
    again = dataclasses.replace(self)
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
  here = pathlib.Path.cwd()
  folder = f'{workdir}/slurm'
  if '://' in workdir:
    folder = str(here / 'runs' / 'sweeps' / name / 'slurm')
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
      "--executor=slurm needs submitit: pip install 'metastone_jax[slurm]'"
    ) from error
  shell.require('sbatch')
  try:
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_RESTARTS)
    executor.update_parameters(
      job_name=name,
      array_parallelism=workers,
      stderr_to_stdout=True,
      # Where a cluster's jobs are not to be queued again unless they say so.
      additional_parameters={'requeue': True},
      **given,
    )
  except (RuntimeError, ValueError) as error:
    raise UserError(f'--slurm: {_refusal(str(error))}') from error
  work = Work(command, str(here), given['signal_delay_s'] * 2 / 3, _PAUSE)
  try:
    jobs = executor.map_array(work, range(workers))
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
    UserError: an item that is no KEY=VALUE, or that cannot be.
  """
  found: dict = dict(_DEFAULTS)
  for item in _SLURM.value:
    key, equals, value = item.partition('=')
    if not equals or not key.isidentifier() or not value:
      raise UserError(
        f'--slurm={item}: give KEY=VALUE,... such as partition=gpu,time=240'
      )
    if key in _OURS:
      raise UserError(f'--slurm={item}: {key} is set by the sweep itself')
    found[key] = value
    if key in _DEFAULTS:
      # submitit reckons with them when the limit comes.
      if not re.fullmatch(r'[1-9]\d{0,6}', value):
        unit = 'minutes' if key == 'time' else 'seconds'
        raise UserError(f'--slurm={item}: give {key} in whole {unit}')
      found[key] = int(value)
    elif key in ('setup', 'teardown', 'srun_args'):
      found[key] = [value]
    elif value in ('true', 'false'):
      found[key] = value == 'true'
    elif key in ('nodes', 'ntasks_per_node') and value != '1':
      raise UserError(f'--slurm={item}: a worker is one process on one node')
  return found


def _refusal(text: str) -> str:
  """What submitit says of options, on one line."""
  unknown = re.search(r"Unavailable parameter\(s\): \['(\w+)'", text)
  if not unknown:
    return text.splitlines()[0]
  known = [key for key in re.findall(r'- (\w+) \(', text) if key not in _OURS]
  return f'submitit has no {unknown[1]}; it has {", ".join(known)}'
