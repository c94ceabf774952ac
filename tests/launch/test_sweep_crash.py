"""A sweep killed again and again ends with the table of an undisturbed one.

The processes run the whole command; they are forked by one that has imported
it, since importing takes longer than all of their points.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from metastone_jax.scaling import leases
from tests.launch import jobs
from tests.scaling.runs import cheap

pytestmark = pytest.mark.crash

CONFIG = 'tests/launch/sweep_small.py:wide'
POINTS = 24
# So many points are done when a worker is killed: there is work left for the
# one that takes its place, however long its start takes.
KILLS_AT = (1, 3, 6, 9, 12)
KILLS = len(KILLS_AT)

# [arguments, file] -> number of a process; a number -> its exit status.
SERVER = r"""
import json, os, sys, traceback
from launch import cli, sweep

for line in sys.stdin:
  case = json.loads(line)
  if isinstance(case, int):
    print(os.waitstatus_to_exitcode(os.waitpid(case, 0)[1]), flush=True)
    continue
  child = os.fork()
  if child:
    print(child, flush=True)
    continue
  code = 1
  try:
    out = os.open(case[1], os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
      os.dup2(out, descriptor)
    sys.argv = ['sweep', *case[0]]
    try:
      cli.run(sweep.main)
      code = 0
    except SystemExit as error:
      code = error.code or 0
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


class Commands:
  """Starts `launch.sweep` and waits for it."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._count = folder, 0
    self._server = subprocess.Popen(
      [sys.executable, '-c', SERVER],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      cwd=jobs.ROOT,
      env=jobs.environment(),
      text=True,
    )

  def _ask(self, case) -> int:
    self._server.stdin.write(json.dumps(case) + '\n')
    self._server.stdin.flush()
    return int(self._server.stdout.readline())

  def start(self, workdir, *flags: str) -> 'Command':
    self._count += 1
    log = self._folder / f'{self._count}.log'
    argv = [
      f'--config={CONFIG}',
      f'--workdir={workdir}',
      f'--page={workdir}/page.md',
      '--compilation_cache=',
      *flags,
    ]
    return Command(self._ask([argv, str(log)]), log, self._ask)

  def close(self):
    self._server.stdin.close()
    self._server.wait(10)


class Command:
  """A process, and what it has printed."""

  def __init__(self, pid, log, ask):
    self._pid, self._log, self._ask = pid, log, ask

  def send(self, number) -> None:
    os.kill(self._pid, number)

  def end(self) -> int:
    return self._ask(self._pid)

  def printed(self) -> str:
    return self._log.read_text() if self._log.exists() else ''


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
  made = Commands(tmp_path_factory.mktemp('logs'))
  yield made
  made.close()


def _wait(condition, seconds=300.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


def _done(workdir):
  return len(list((workdir / 'points').glob('*/rows.json')))


def test_killed_at_random_moments_by_two_workers_at_once(commands, tmp_path):
  calm = tmp_path / 'undisturbed'
  undisturbed = [commands.start(calm, f'--worker={i}') for i in range(3)]
  chance = random.Random(20261126)
  workdir = tmp_path / 'killed'
  working = [commands.start(workdir, f'--worker={i}') for i in range(2)]
  ended = []
  for done in KILLS_AT:
    place = chance.randrange(2)
    # In a point or between two; nobody knows.
    _wait(lambda done=done: _done(workdir) >= done)
    _wait(lambda place=place: ': begins' in working[place].printed())
    time.sleep(chance.random() * 0.3)
    working[place].send(signal.SIGKILL)
    assert working[place].end() == -signal.SIGKILL
    assert _done(workdir) < POINTS  # it hit a sweep under way
    ended.append(working[place])
    working[place] = commands.start(workdir, f'--worker={place}')
  assert [worker.end() for worker in working] == [0, 0]
  ended += working
  assert [worker.end() for worker in undisturbed] == [0] * 3
  for folder in (workdir, calm):
    assert commands.start(folder, '--finish').end() == 0

  for name in ('table.csv', 'table.parquet'):
    found = (workdir / name).read_bytes()
    assert found == (calm / name).read_bytes()
  assert (workdir / 'table.csv').read_text().count('\n') == 1 + 2 * POINTS
  # Every point was finished once, and begun again only where a worker died.
  printed = ''.join(worker.printed() for worker in ended)
  finished = re.findall(r'^\[worker \d\] (\S+): done in', printed, re.M)
  assert len(finished) == len(set(finished)) >= POINTS - KILLS
  folders = list((workdir / 'points').iterdir())
  tries = sum(cheap.tries(folder) for folder in folders)
  assert len(folders) == POINTS and POINTS < tries <= POINTS + KILLS
  # Both took part, and nobody has a claim. (Who was killed after its last row
  # may have left one, which counts for nothing.)
  assert set(re.findall(r'^\[worker (\d)\] \S+: done in', printed, re.M)) == {
    '0',
    '1',
  }
  for folder in folders:
    lease = leases.Leases().claim(epath.Path(folder))
    assert lease is not None, folder
    lease.release()


def test_a_signal_stops_all_workers(commands, tmp_path):
  """SIGTERM to the command, as a scheduler sends it: exit status 130."""
  workdir = tmp_path / 'work'
  sweep = commands.start(workdir, '--workers=2')
  _wait(lambda: _done(workdir) >= 2)
  sweep.send(signal.SIGTERM)
  assert sweep.end() == 130
  assert 'interrupted by SIGTERM' in sweep.printed()
  assert 'Traceback' not in sweep.printed()
  assert 2 <= _done(workdir) < POINTS
  assert not list(workdir.glob('points/*/claims/*'))  # nobody works on
  assert not list(workdir.glob('points/*/failed.json'))
