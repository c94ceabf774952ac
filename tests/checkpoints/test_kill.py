"""kill -9 at any moment of a save leaves a restorable checkpoint.

One child process forks a saver for each case (before any of them starts a
backend), so jax is imported once. A saver keeps ONE checkpoint, the hardest
case: it has step 10 and kills itself with SIGKILL in the middle of saving
step 20, either at a chosen line (the functions around it are replaced in the
saver only) or from a timer.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from metastone_jax.checkpoints import CheckpointManager

# What must be restorable after a kill at this point: the old step, the new
# one, or (None) either of them.
POINTS = {
  'before anything': 10,
  'after the saving mark': 10,
  'arrays handed to orbax': 10,
  'half of the files written': 10,
  'committed, no record': 10,
  'record half written': 10,
  'record written': 20,
  'old step marked': 20,
  'old step half removed': 20,
  'old step removed, record left': 20,
}
DELAYS_MS = (5, 30, 60, 100, 150, 210, 280, 360)

SAVER = r"""
import json, os, signal, sys, threading
import jax, jax.numpy as jnp
from metastone_jax.checkpoints import CheckpointManager, integrity, orbax_io
from metastone_jax.telemetry import files

def die(*args, **kwargs):
  os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name):
  function = getattr(owner, name)
  def wrapped(*args, **kwargs):
    function(*args, **kwargs)
    die()
  setattr(owner, name, wrapped)

def mark_then_die(state):
  mark = integrity.Records.mark
  def wrapped(self, step, marked):
    mark(self, step, marked)
    if marked == state:
      die()
  integrity.Records.mark = wrapped

def half_of_the_files(root):
  def wrapped(self, name):
    # Wait for the first bytes of arrays, then die while orbax goes on.
    while not any(
      folder.startswith('20') and names and folder.count('/') > 1
      for folder, names in (
        (os.path.relpath(path, root), names)
        for path, _, names in os.walk(root)
      )
    ):
      pass
    die()
  orbax_io.OrbaxIO.finish_write = wrapped

def half_of_the_record():
  def wrapped(path, obj):
    if obj['state'] == 'complete':
      half = os.path.join(os.path.dirname(path), '.77.json.tmp')
      with open(half, 'w') as stream:
        stream.write('{"format": 1, "state": "comp')
      die()
    files.write_text_atomic(path, json.dumps(obj))
  integrity.files_lib.write_json_atomic = wrapped

def half_removed():
  path_type = type(integrity.epath.Path('/'))
  def wrapped(self):
    folder, _, names = next(
      found for found in os.walk(self) if len(found[2]) > 0
    )
    os.unlink(os.path.join(folder, names[0]))
    die()
  path_type.rmtree = wrapped

def arm(point, root):
  if point == 'before anything':
    integrity.Records.mark = die
  elif point == 'after the saving mark':
    mark_then_die('saving')
  elif point == 'arrays handed to orbax':
    after(orbax_io.OrbaxIO, 'start_write')
  elif point == 'half of the files written':
    half_of_the_files(root)
  elif point == 'committed, no record':
    after(orbax_io.OrbaxIO, 'finish_write')
  elif point == 'record half written':
    half_of_the_record()
  elif point == 'record written':
    after(integrity.Records, 'complete')
  elif point == 'old step marked':
    mark_then_die('deleting')
  elif point == 'old step half removed':
    half_removed()
  elif point == 'old step removed, record left':
    integrity.Records.remove = die
  else:
    raise ValueError(point)

def run(root, point):
  def state(step):
    return {'w': jnp.full((64, 64), step, jnp.float32), 'step': jnp.int32(step)}
  checkpoints = CheckpointManager(root, max_to_keep=1)
  checkpoints.save(10, state(10), {'step': 10})
  if isinstance(point, int):
    threading.Timer(point / 1000, die).start()
    for step in range(20, 1000, 10):
      checkpoints.save(step, state(step), {'step': step}, wait=step % 20 == 0)
  else:
    arm(point, root)
    checkpoints.save(20, state(20), {'step': 20})

for root, point in json.loads(sys.argv[1]):
  child = os.fork()
  if child == 0:
    try:
      run(root, point)
    finally:
      os._exit(1)  # Not killed: the parent sees an ordinary exit.
  _, status = os.waitpid(child, 0)
  print(json.dumps(os.WIFSIGNALED(status) and os.WTERMSIG(status)), flush=True)
"""


@pytest.fixture(scope='module')
def killed(tmp_path_factory, repo_root):
  """Runs all savers; returns the root left behind by each case."""
  folder = tmp_path_factory.mktemp('killed')
  cases = [*POINTS, *DELAYS_MS]
  roots = [str(folder / str(index)) for index in range(len(cases))]
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      SAVER,
      json.dumps(list(zip(roots, cases, strict=True))),
    ],
    cwd=repo_root,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  signals = [json.loads(line) for line in done.stdout.splitlines()]
  assert signals == [9] * len(cases), (signals, done.stderr)
  return dict(zip(cases, roots, strict=True))


def _state_is_of(state, step):
  np.testing.assert_array_equal(state['w'], np.full((64, 64), step, np.float32))
  np.testing.assert_array_equal(state['step'], np.int32(step))


def _check_usable(root, expected):
  # A reader beside it changes nothing and sees the same step.
  with CheckpointManager(root, read_only=True) as checkpoints:
    seen = checkpoints.latest_step()
  with CheckpointManager(root, max_to_keep=1) as checkpoints:
    state, extra, step = checkpoints.restore()
    assert step == seen and extra == {'step': step}
    if expected is not None:
      assert step == expected
    _state_is_of(state, step)
    checkpoints.save(step + 10, state, {'again': True})
    assert checkpoints.good_steps() == [step + 10]
  # Nothing of the killed save is left.
  assert sorted(
    path.name for path in checkpoints.directory.iterdir()
  ) == sorted([str(step + 10), 'integrity'])
  records = (checkpoints.directory / 'integrity').iterdir()
  assert [path.name for path in records] == [f'{step + 10}.json']


@pytest.mark.crash
@pytest.mark.parametrize('point', POINTS)
def test_killed_at_a_line(killed, point):
  _check_usable(killed[point], POINTS[point])


@pytest.mark.crash
@pytest.mark.parametrize('delay_ms', DELAYS_MS)
def test_killed_after_a_while(killed, delay_ms):
  _check_usable(killed[delay_ms], None)
