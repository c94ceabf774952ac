"""The scripts of launch/pods, run for real among fake programs."""

import os
import pathlib
import shlex
import signal
import subprocess
import tarfile
import time

import pytest

from launch.pods import startup
from launch.pods.code import Code
from tests.launch import pods_fakes as fakes

RESTART = fakes.ROOT / 'launch' / 'pods' / 'restart.sh'

# Exits with the next status of $STATUSES; `wait` = runs until TERM, saves and
# exits with 130; a second TERM meanwhile kills it, as it does launch.train.
PYTHON = r"""
status=$(head -n 1 "$STATUSES")
sed -i 1d "$STATUSES"
[ "$status" != wait ] || {
  trap 'trap - TERM; echo saved >>"$SAVED"; sleep 0.2; exit 130' TERM
  echo $$ >"$PID"
  while :; do sleep 0.02; done
}
exit "$status"
"""


@pytest.fixture
def programs(tmp_path):
  made = fakes.Programs(tmp_path)
  made.add('python', PYTHON)
  return made


def _env(programs, tmp_path, statuses):
  (tmp_path / 'statuses').write_text('\n'.join(map(str, statuses)) + '\n')
  names = {'STATUSES': 'statuses', 'SAVED': 'saved', 'PID': 'pid'}
  return (
    os.environ
    | programs.env
    | {key: str(tmp_path / name) for key, name in names.items()}
    | {'SLURM_JOB_ID': '77'}
  )


def _start(
  programs, tmp_path, statuses, *options, command=('python', '-m', 'x')
):
  return subprocess.Popen(
    ['bash', str(RESTART), '--wait=0', *options, '--', *command],
    env=_env(programs, tmp_path, statuses),
    stderr=subprocess.PIPE,
    text=True,
  )


def _count(programs, name):
  return sum(call[0] == name for call in programs.calls())


def _wait_for(path: pathlib.Path):
  deadline = time.monotonic() + 10
  while not (path.exists() and path.read_text().strip()):
    assert time.monotonic() < deadline, path
    time.sleep(0.01)


# The restart loop.


@pytest.mark.parametrize(
  ('statuses', 'limit', 'code', 'starts'),
  [
    ([0], 10, 0, 1),
    ([2, 0], 10, 2, 1),  # bad input: never again
    ([130, 130, 130, 0], 0, 0, 4),  # interruptions do not count
    ([1, 130, 139, 0], 2, 0, 4),
    ([1, 130, 2, 0], 10, 2, 3),
    ([1, 1, 1, 1], 2, 3, 3),  # gave up
    ([137, 0], 0, 3, 1),
  ],
)
def test_restarts_by_exit_status(
  programs, tmp_path, statuses, limit, code, starts
):
  loop = _start(programs, tmp_path, statuses, f'--limit={limit}')
  _, errors = loop.communicate(timeout=20)
  assert (loop.returncode, _count(programs, 'python')) == (code, starts), errors


def test_arguments_arrive_as_they_are(programs, tmp_path):
  odd = ["it's", '', '$HOME *', 'a\\b "c"', '--', '--limit=1']
  loop = _start(programs, tmp_path, [0], command=['python', *odd])
  loop.communicate(timeout=20)
  assert programs.calls() == [['python', *odd]]


def test_waits_before_a_new_start(programs, tmp_path):
  begin = time.monotonic()
  loop = _start(programs, tmp_path, [1, 0], '--wait=1')
  loop.communicate(timeout=20)
  assert loop.returncode == 0 and time.monotonic() - begin >= 1


def test_ends_when_another_host_settled_it(programs, tmp_path):
  mark = tmp_path / "it's settled"
  options = [f'--stop_if=test -e {shlex.quote(str(mark))}']
  loop = _start(programs, tmp_path, [1, 0], *options)
  loop.communicate(timeout=20)
  assert loop.returncode == 0  # not settled: started again
  mark.touch()
  loop = _start(programs, tmp_path, [1, 0], *options)
  loop.communicate(timeout=20)
  assert (loop.returncode, _count(programs, 'python')) == (4, 3)


def test_wrong_calls_are_refused(programs, tmp_path):
  for arguments in (['--limt=1', '--', 'python'], ['--limit=1'], []):
    done = subprocess.run(
      ['bash', str(RESTART), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and 'restart: ' in done.stderr
  assert not programs.calls()


@pytest.mark.parametrize('stop', ['child', 'all'])
def test_term_saves_once_and_starts_nothing(programs, tmp_path, stop):
  loop = _start(programs, tmp_path, ['wait', 0], f'--stop={stop}')
  _wait_for(tmp_path / 'pid')
  loop.send_signal(signal.SIGTERM)
  if stop == 'all':  # a host that shuts down tells every process
    time.sleep(0.05)
    assert not (tmp_path / 'saved').exists()
    os.kill(int((tmp_path / 'pid').read_text()), signal.SIGTERM)
  time.sleep(0.05)
  loop.send_signal(signal.SIGTERM)  # passed on, it would cut the save short
  _, errors = loop.communicate(timeout=20)
  assert loop.returncode == 130, errors
  assert 'exit 130' in errors  # the status of the save, not of a kill
  assert (tmp_path / 'saved').read_text() == 'saved\n'
  assert _count(programs, 'python') == 1


def test_term_between_two_starts(programs, tmp_path):
  loop = _start(programs, tmp_path, [1, 0], '--wait=30')
  for line in loop.stderr:
    if 'again in 30 s' in line:
      break
  time.sleep(0.05)
  loop.send_signal(signal.SIGTERM)
  loop.communicate(timeout=10)
  assert (loop.returncode, _count(programs, 'python')) == (130, 1)


# SLURM: srun is the command, here on one node.

SRUN = r"""
while [[ $1 == --* ]]; do shift; done
trap 'echo killed >>"$SAVED"; kill -9 %1' TERM
"$@" &
wait $!
"""
SCANCEL = r"""
[ "$1 $2" = "--signal=TERM 77" ] && kill -TERM "$(cat "$PID")"
"""


@pytest.fixture(scope='module')
def sbatch_script(tmp_path_factory):
  """An sbatch script as the launcher prints it, ready to be run."""
  tmp = tmp_path_factory.mktemp('sbatch')
  launcher = fakes.Launcher('slurm', tmp)
  workdir = tmp / "a run's"
  code, out, _ = launcher(
    '--dry_run',
    '--name=a',
    '--nodes=1',
    f'--workdir={workdir}',
    '--python=python',
    '--max_restarts=2',
    '--',
    '--config=configs/tiny.py',
  )
  launcher.close()
  assert code == 0
  _, texts = fakes.split_heredocs(out)
  (workdir / 'launch').mkdir(parents=True)
  return texts.popitem()[1].replace('--limit=', '--wait=0 --limit=')


def _sbatch(programs, tmp_path, script, statuses):
  for name, body in (('srun', SRUN), ('scancel', SCANCEL), ('scontrol', '')):
    programs.add(name, body)
  return subprocess.Popen(
    ['bash', '-c', script],
    env=_env(programs, tmp_path, statuses),
    stderr=subprocess.PIPE,
    text=True,
  )


def test_slurm_by_exit_status(programs, tmp_path, sbatch_script):
  for statuses, code in (([1, 130, 0], 0), ([2], 2), ([1, 1, 1], 3)):
    before = _count(programs, 'python')
    batch = _sbatch(programs, tmp_path, sbatch_script, statuses)
    _, errors = batch.communicate(timeout=20)
    assert batch.returncode == code, errors
    assert _count(programs, 'python') - before == len(statuses)
  assert not _count(programs, 'scontrol')


def test_slurm_ends_when_one_of_the_hosts_refuses(
  programs, tmp_path, sbatch_script
):
  """srun reports 143 of a task it ended, not the 2 of the one that refused."""
  programs.add('python', PYTHON)
  batch = _sbatch(programs, tmp_path, sbatch_script, [2, 0])
  programs.add('srun', SRUN + 'exit 143')
  _, errors = batch.communicate(timeout=20)
  assert batch.returncode == 4, errors
  assert _count(programs, 'python') == 1


@pytest.mark.parametrize('name', ['USR1', 'TERM'])
def test_slurm_limit_requeues_and_scancel_does_not(
  programs, tmp_path, sbatch_script, name
):
  batch = _sbatch(programs, tmp_path, sbatch_script, ['wait', 0])
  _wait_for(tmp_path / 'pid')
  batch.send_signal(getattr(signal, f'SIG{name}'))
  if name == 'TERM':  # SLURM itself tells the tasks of a cancelled job
    time.sleep(0.05)
    os.kill(int((tmp_path / 'pid').read_text()), signal.SIGTERM)
  _, errors = batch.communicate(timeout=20)
  assert batch.returncode == 130, errors
  # Saved, and srun got no TERM, which would have killed the tasks.
  assert (tmp_path / 'saved').read_text() == 'saved\n'
  requeued = ['scontrol', 'requeue', '77'] in programs.calls()
  assert requeued == (name == 'USR1')


# The start-up script of TPU machines.

CURL = r"""
case "$*" in
  *agent-worker-number*) echo "$WORKER" ;;
  *tpu-env*) printf "ZONE: 'z'\nMEGASCALE_SLICE_ID: '%s'\n" "$SLICE" ;;
  *uv/install.sh*)
    echo 'mkdir -p "$UV_INSTALL_DIR" && cp "$UV" "$UV_INSTALL_DIR"' ;;
esac
"""
UV = r"""
[ "$1" != venv ] || {
  mkdir -p .venv/bin
  {
    printf '#!/bin/bash\n{ pwd; echo "$KEY $A"; } >"$SEEN"\n'
    printf 'exec %s/python "$@"\n' "$(dirname "$UV")"
  } >.venv/bin/python
  chmod +x .venv/bin/python
}
"""
GCLOUD = r"""
case "$*" in
  *'storage ls'*) [ -e "$BUCKET/verdict" ] ;;
  *'storage cat'*) [ ! -e "$BROKEN" ] && cat "$TARBALL" ;;
  *'storage cp -'*) cat >"$BUCKET/verdict" ;;
  *'storage cp'*) cp "$3" "$BUCKET/$(basename "$4")" ;;
  *'secrets versions access latest --secret=my-key'*) echo hunter2 ;;
esac
"""


class Machine:
  """One TPU machine: a folder in place of /, booted as often as wanted."""

  def __init__(self, programs, tmp_path):
    self.programs, self.tmp = programs, tmp_path
    for name, body in (('curl', CURL), ('uv', UV), ('gcloud', GCLOUD)):
      programs.add(name, body)
    programs.add('sleep')
    (tmp_path / 'bucket').mkdir()
    with tarfile.open(tmp_path / 'code.tar.gz', 'w:gz') as archive:
      archive.add(RESTART, 'launch/pods/restart.sh')
    text = startup.script(
      name='a',
      folder='gs://b/w/launch/a',
      code=Code('v1', 'gcloud storage cat gs://b/c.tar.gz | tar -xzf -'),
      extras='tpu',
      command=['python', '-m', 'launch.train', "--note=it's @NAME@ $(id)"],
      environment={'A': 'b  "c"'},
      secrets={'KEY': 'my-key'},
      project='',
      max_restarts=1,
    )
    fakes.check_syntax(text)
    for path in ('/opt/metastone', '/var/log/metastone.log', '/root'):
      text = text.replace(path, f'{tmp_path}{path}')
    (tmp_path / 'var' / 'log').mkdir(parents=True)
    self.script = text

  def boot(self, statuses, *, worker=0, slice_index=0):
    """(exit status, verdict, number of starts of the training)."""
    paths = {'BUCKET': 'bucket', 'TARBALL': 'code.tar.gz', 'SEEN': 'seen'}
    paths |= {'UV': 'bin/uv', 'BROKEN': 'broken'}
    before = _count(self.programs, 'python')
    done = subprocess.run(
      ['bash', '-c', self.script],
      env=_env(self.programs, self.tmp, statuses)
      | {key: str(self.tmp / path) for key, path in paths.items()}
      | {'WORKER': str(worker), 'SLICE': str(slice_index)},
      timeout=20,
    )
    verdict = self.tmp / 'bucket' / 'verdict'
    return (
      done.returncode,
      verdict.read_text() if verdict.exists() else None,
      _count(self.programs, 'python') - before,
    )

  def log(self):
    return (self.tmp / 'var' / 'log' / 'metastone.log').read_text()


@pytest.fixture
def machine(programs, tmp_path):
  return Machine(programs, tmp_path)


def test_start_up_installs_trains_and_gives_the_verdict(machine, tmp_path):
  assert machine.boot([130, 1, 0]) == (0, '0 0-0\n', 3), machine.log()
  call = next(c for c in machine.programs.calls() if c[0] == 'python')
  assert call[1:] == ['-m', 'launch.train', "--note=it's @NAME@ $(id)"]
  folder = tmp_path / 'opt' / 'metastone' / 'a'
  assert (tmp_path / 'seen').read_text() == f'{folder}\nhunter2 b  "c"\n'
  uploaded = (tmp_path / 'bucket' / 'log-0-0.txt').read_text()
  assert 'restart: ' in uploaded and 'hunter2' not in uploaded
  # After the verdict, a boot starts nothing.
  assert machine.boot([0]) == (0, '0 0-0\n', 0)


def test_start_up_resumes_after_a_boot_without_installing(machine):
  """Killed in the middle, as by a reboot: the same script goes on."""
  machine.script = machine.script.replace('\nfinish $?', '\nexit 9')
  assert machine.boot([0])[1:] == (None, 1)
  installs = sum(c[:2] == ['uv', 'pip'] for c in machine.programs.calls())
  assert machine.boot([0])[1:] == (None, 1)
  calls = machine.programs.calls()
  assert sum(c[:2] == ['uv', 'pip'] for c in calls) == installs == 1


@pytest.mark.parametrize(
  ('statuses', 'worker', 'slice_index', 'expected'),
  [
    ([0], 1, 0, (0, None, 1)),  # only the first host knows that all is done
    ([0], 0, 1, (0, None, 1)),
    ([2], 3, 1, (2, '2 1-3\n', 1)),
    ([1, 1], 2, 0, (3, '3 0-2\n', 2)),
  ],
)
def test_start_up_verdicts(machine, statuses, worker, slice_index, expected):
  found = machine.boot(statuses, worker=worker, slice_index=slice_index)
  assert found == expected, machine.log()


def test_start_up_gives_up_without_the_code(machine, tmp_path):
  (tmp_path / 'broken').touch()
  assert machine.boot([0]) == (3, '3 0-0\n', 0)
  assert machine.log().count('installing failed') == 4
