"""Training jobs as processes: start, watch, kill, read what they left."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from metastone_jax import evaluation, telemetry
from metastone_jax.checkpoints import CheckpointManager

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = 'tests/launch/small.py'


def environment(devices: int = 1) -> dict[str, str]:
  """CPU devices; compile fast, since the programs run for milliseconds."""
  env = dict(os.environ, JAX_PLATFORMS='cpu')
  env['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={devices} '
    '--xla_backend_optimization_level=0'
  )
  return env


def command(module: str, workdir, cache, *flags: str) -> list[str]:
  return [
    sys.executable,
    '-m',
    module,
    f'--config={CONFIG}',
    f'--workdir={workdir}',
    f'--compilation_cache={cache}',
    *flags,
  ]


def train(workdir, cache, *flags: str) -> subprocess.CompletedProcess:
  """The plain command, to its end."""
  return subprocess.run(
    command('launch.train', workdir, cache, *flags),
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=280,
  )


def interrupted_train(workdir, cache, moment, delay: float, number):
  """Runs until a moment, waits, and sends a signal.

  Args:
    workdir: of the run.
    cache: of compiled programs.
    moment: called with the list of events so far (see `watched`); true once
      the signal shall be sent.
    delay: seconds to wait after that.
    number: the signal.

  Returns:
    (exit code, events including those until the end, stderr).
  """
  read_fd, write_fd = os.pipe()
  with open(f'{workdir}.stderr', 'w+') as stderr:
    process = subprocess.Popen(
      command('tests.launch.watched', workdir, cache),
      cwd=ROOT,
      env=environment() | {'WATCH_FD': str(write_fd)},
      pass_fds=[write_fd],
      stdout=subprocess.DEVNULL,
      stderr=stderr,
    )
    os.close(write_fd)
    events = []
    try:
      with os.fdopen(read_fd) as pipe:
        for line in pipe:
          events.append(line.rstrip('\n'))
          if moment(events):
            time.sleep(delay)
            process.send_signal(number)
            break
        events += [line.rstrip('\n') for line in pipe]
      process.wait(timeout=60)
    finally:
      if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    stderr.seek(0)
    return process.returncode, events, stderr.read()


def phase_of(events: list[str]) -> str:
  """The phase (or evaluation) that the last events belong to."""
  return [e for e in events if e.startswith('phase ')][-1].split(' ', 1)[1]


def final_state(workdir):
  """(arrays by path, extra without seconds, step) of the newest checkpoint."""
  with CheckpointManager(
    workdir / 'checkpoints', read_only=True
  ) as checkpoints:
    state, extra, step = checkpoints.restore()
  del extra['seconds']
  return state, extra, step


def metrics_without_times(workdir) -> list[dict]:
  return [
    {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in telemetry.read_metrics(workdir)
  ]


def evaluations(workdir) -> dict[str, dict[str, np.ndarray]]:
  """Every field of every saved evaluation, by file name."""
  found = {}
  for path in sorted((workdir / 'evaluation').glob('*.npz')):
    samples = evaluation.EvaluationSamples.load(path)
    found[path.name] = {
      'task': samples.task,
      'problem_ids': samples.problem_ids,
      'scores': samples.scores_PN,
      'correct': samples.correct_PN,
      'answers': samples.answers_PN,
      'finished': samples.finished_PN,
      'tokens': samples.tokens_PN,
    }
  return found
