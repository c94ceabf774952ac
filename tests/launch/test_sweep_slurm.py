"""Workers of a sweep as SLURM jobs: scripts and jobs of submitit, for real.

The programs of SLURM are fakes: sbatch keeps the script that it is given, srun
runs its command, scontrol records. The tests run the script as SLURM would.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from absl.testing import flagsaver

from launch import sweep_slurm
from metastone_jax.errors import UserError
from tests.launch import pods_fakes as fakes

with pytest.MonkeyPatch.context() as patch:
  # Else it sets up logging anew, which closes all handlers there are; absl's
  # then closes the stream that pytest captures stderr with.
  patch.setenv('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  import submitit  # noqa: F401

LIMIT = 90.0  # seconds for what takes one
SBATCH = 'cp "$1" "$SCRIPT"; echo Submitted batch job 7'
# SLURM signals what srun runs, not the script.
SRUN = f"""
while [ "$1" != {sys.executable} ]; do shift; done
echo $$ >"$TASK"
exec "$@"
"""

# Leaves a line for every start; told to stop, it saves and ends with 130.
WORKER = """
import os, pathlib, signal, sys, time
mode, number = sys.argv[1], sys.argv[-1].removeprefix('--worker=')
log = pathlib.Path('log-' + number)
old = log.read_text() if log.exists() else ''
def stop(*_):
  log.write_text(log.read_text() + 'saved ')
  sys.exit(130)
signal.signal(signal.SIGTERM, stop)
log.write_text(old + 'begun ')
if mode == 'long' and not old:
  time.sleep(300)
if mode == 'once' and not old:
  sys.exit(130)
if mode == 'bad':
  print('error: bad input', file=sys.stderr)
  sys.exit(2)
log.write_text(log.read_text() + 'done ')
"""


class Cluster:
  """A folder for everything, the fakes, and jobs of the script they got."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.script = folder, folder / 'script'
    self.programs = fakes.Programs(folder)
    for name, body in (('sbatch', SBATCH), ('srun', SRUN), ('scontrol', '')):
      self.programs.add(name, body)
    (folder / 'worker.py').write_text(WORKER)
    self.started: list[subprocess.Popen] = []

  def command(self, mode: str) -> list[str]:
    return [sys.executable, str(self.folder / 'worker.py'), mode]

  def options(self) -> dict[str, str | bool]:
    """What the script asks SLURM for."""
    found = {}
    for line in self.script.read_text().splitlines():
      if line.startswith('#SBATCH --'):
        key, equals, value = line.removeprefix('#SBATCH --').partition('=')
        found[key] = value.strip("'") if equals else True
    return found

  def start(self, number: int | None) -> subprocess.Popen:
    """A job of the array; None = the job of a script without one."""
    env = dict(os.environ, SLURM_JOB_ID='7', SLURM_NTASKS='1')
    env['PYTHONPATH'] = str(fakes.ROOT)  # not installed where this runs
    env['TASK'] = str(self.folder / 'task')
    if number is not None:
      env |= {
        'SLURM_ARRAY_JOB_ID': '7',
        'SLURM_ARRAY_TASK_ID': str(number),
      }
    with open(self.folder / 'out', 'a') as out:
      self.started.append(
        subprocess.Popen(
          ['bash', str(self.script)],
          env=env,
          stdout=out,
          stderr=out,
          start_new_session=True,
        )
      )
    return self.started[-1]

  def run(self, number: int | None) -> int:
    return self.start(number).wait(LIMIT)

  def signal(self, *signals: signal.Signals) -> None:
    """Sends signals to the job that was started last, and sees it end."""
    for number in signals:
      os.kill(int((self.folder / 'task').read_text()), number)
    assert self.started[-1].wait(LIMIT)

  def log(self, number: int) -> str:
    path = self.folder / f'log-{number}'
    return path.read_text() if path.exists() else ''

  def wait_for(self, number: int, word: str) -> None:
    deadline = time.monotonic() + LIMIT
    while word not in self.log(number):
      assert time.monotonic() < deadline, (self.folder / 'out').read_text()
      time.sleep(0.02)

  def requeued(self) -> list[list[str]]:
    return [c for c in self.programs.calls() if c[0] == 'scontrol']


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  made = Cluster(tmp_path)
  for key, value in made.programs.env.items():
    monkeypatch.setenv(key, value)
  monkeypatch.setenv('SCRIPT', str(made.script))
  monkeypatch.chdir(tmp_path)
  yield made
  for process in made.started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _submit(cluster, *items, mode='short', workers=2, dry_run=False):
  with flagsaver.as_parsed(slurm=','.join(items)):
    sweep_slurm.submit(
      cluster.command(mode),
      name='a_sweep',
      workdir=str(cluster.folder / 'work'),
      workers=workers,
      dry_run=dry_run,
    )


def test_array(cluster, capsys):
  _submit(
    cluster,
    *('partition=gpu', 'time=600', 'gpus_per_node=1', 'cpus_per_task=8'),
    *('mem=16GB', 'account=0123', 'exclusive=true', 'setup=export FROM=setup'),
    workers=3,
  )
  options = cluster.options()
  wanted = {
    'job-name': 'a_sweep',
    'array': '0-2%3',
    'partition': 'gpu',
    'time': '600',
    'gpus-per-node': '1',
    'cpus-per-task': '8',
    'mem': '16GB',
    'account': '0123',
    'exclusive': True,
    'requeue': True,
    'open-mode': 'append',
    'signal': 'USR2@120',
  }
  assert {key: options.get(key) for key in wanted} == wanted
  assert options['output'].startswith(str(cluster.folder / 'work' / 'slurm'))
  assert '\nexport FROM=setup\n' in cluster.script.read_text()
  shown = capsys.readouterr().out
  assert '7_0, 7_1, 7_2' in shown
  assert 'squeue --name=a_sweep' in shown and '--finish' in shown
  # Every job is the worker of its own number, where the command was given.
  assert [cluster.run(number) for number in (2, 0)] == [0, 0]
  assert [cluster.log(number) for number in range(3)] == [
    'begun done ',
    '',
    'begun done ',
  ]


def test_one_worker(cluster, capsys):
  _submit(cluster, workers=1)
  assert 'array' not in cluster.options()
  assert cluster.options()['time'] == '1440'
  assert 'submitted: 7\n' in capsys.readouterr().out
  assert cluster.run(None) == 0
  assert cluster.log(0) == 'begun done '


def test_preempted_job_saves_and_queues_again(cluster):
  _submit(cluster, mode='long')
  cluster.start(1)
  cluster.wait_for(1, 'begun')
  # TERM comes first, and means nothing yet.
  cluster.signal(signal.SIGTERM, signal.SIGUSR2)
  assert cluster.log(1) == 'begun saved '
  assert cluster.requeued() == [['scontrol', 'requeue', '7_1']]
  # Its turn again.
  assert cluster.run(1) == 0
  assert cluster.log(1) == 'begun saved begun done '
  assert len(cluster.requeued()) == 1


def test_stopped_worker_is_started_again(cluster, monkeypatch):
  monkeypatch.setattr(sweep_slurm, '_PAUSE', 0.0)
  _submit(cluster, mode='once')
  assert cluster.run(0) == 0
  assert cluster.log(0) == 'begun begun done '


def test_signal_after_the_worker_stopped(cluster):
  _submit(cluster, mode='once')
  cluster.start(0)
  cluster.wait_for(0, 'begun')
  time.sleep(0.5)  # in the pause that follows
  cluster.signal(signal.SIGUSR2)
  assert cluster.requeued() == [['scontrol', 'requeue', '7_0']]
  assert cluster.run(0) == 0
  assert cluster.log(0).endswith('begun done ')


def test_bad_input_ends_the_job(cluster):
  _submit(cluster, mode='bad')
  assert cluster.run(0)
  assert cluster.log(0) == 'begun ' and not cluster.requeued()
  assert 'error: bad input' in (cluster.folder / 'out').read_text()


def test_worker_that_does_not_stop_is_killed(tmp_path):
  deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN);'
  deaf += 'print(flush=True); time.sleep(60)'
  work = sweep_slurm.Work(
    [sys.executable, '-c', deaf], str(tmp_path), saving=0.2, pause=0
  )
  work._process = subprocess.Popen(work.command, stdout=subprocess.PIPE)
  work._process.stdout.readline()
  again = work.checkpoint(4)
  assert work._process.wait(LIMIT) == -signal.SIGKILL
  assert again.function == work and again.args == (4,)
  assert again.function._process is None


def test_dry_run_touches_nothing(cluster, capsys):
  _submit(cluster, 'partition=gpu', dry_run=True)
  shown = capsys.readouterr().out
  assert 'partition=gpu' in shown
  assert shown.count(' short --worker=') == 2 and ' short --worker=1\n' in shown
  assert not cluster.programs.calls()
  assert not (cluster.folder / 'work').exists()


@pytest.mark.parametrize(
  ('item', 'parts'),
  [
    ('gpu', ['--slurm=gpu', 'KEY=VALUE']),
    ('partition=', ['--slurm=partition=', 'KEY=VALUE']),
    ('time=24:00:00', ['time=24:00:00', 'minutes']),
    ('time=0', ['time=0', 'minutes']),
    ('signal_delay_s=soon', ['signal_delay_s=soon', 'seconds']),
    ('partiton=gpu', ['partiton', 'partition']),
    ('job_name=x', ['job_name', 'itself']),
    ('nodes=2', ['nodes=2', 'one node']),
  ],
)
def test_refused(cluster, item, parts):
  with pytest.raises(UserError) as caught:
    _submit(cluster, item)
  message = str(caught.value)
  assert '\n' not in message and all(part in message for part in parts)
  assert not cluster.programs.calls()


def test_without_submitit(cluster, monkeypatch):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(UserError, match=r'pip install .metastone_jax\[slurm\]'):
    _submit(cluster)


def test_without_slurm(cluster):
  (cluster.programs.folder / 'sbatch').unlink()
  with pytest.raises(UserError, match=r'sbatch is not on PATH.*login node'):
    _submit(cluster)


def test_what_sbatch_refuses(cluster):
  cluster.programs.add('sbatch', 'echo "sbatch: error: bad qos" >&2; exit 1')
  with pytest.raises(UserError, match='sbatch: error: bad qos'):
    _submit(cluster)
