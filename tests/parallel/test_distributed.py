"""Flags, waits with limits, agreement, and the last word of a process."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from metastone_jax.errors import UserError
from metastone_jax.parallel import distributed
from tests.launch.several import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _find(*args, **environment):
  return distributed.find_address(*args, environment=environment)


def test_one_process_is_the_default():
  assert _find('', None, None) is None
  assert _find('host:80', 1, 0) is None


def test_flags_before_environment():
  there = dict(
    METASTONE_COORDINATOR='there:1',
    METASTONE_NUM_PROCESSES='4',
    METASTONE_PROCESS_ID='3',
  )
  address = _find('', None, None, **there)
  assert address == distributed.Address('there:1', 4, 3)
  address = _find('here:2', 2, 0, **there)
  assert address == distributed.Address('here:2', 2, 0)


@pytest.mark.parametrize(
  ('args', 'environment', 'message'),
  [
    (('host', 2, 0), {}, "--coordinator='host' is no HOST:PORT"),
    (('host:80', None, 0), {}, '--coordinator=host:80 needs --num_processes'),
    (('host:80', 2, None), {}, 'needs --process_id too .or METASTONE_PROC'),
    (('host:80', 2, 2), {}, '--process_id=2 with --num_processes=2: processes'),
    (('', 2, None), {}, '--num_processes=2 needs --coordinator=HOST:PORT'),
    (
      ('host:80', None, 0),
      {'METASTONE_NUM_PROCESSES': 'two'},
      "METASTONE_NUM_PROCESSES='two' is no whole number",
    ),
    (('auto', None, None), {}, '--coordinator=auto finds neither'),
  ],
)
def test_what_does_not_go_together(args, environment, message, monkeypatch):
  for name in ('SLURM_JOB_ID', 'KUBERNETES_SERVICE_HOST'):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(UserError, match=message):
    _find(*args, **environment)


def test_auto_on_slurm(monkeypatch):
  for name, value in dict(
    SLURM_JOB_ID='4242',
    SLURM_STEP_NODELIST='node[003-004]',
    SLURM_NTASKS='2',
    SLURM_PROCID='1',
    SLURM_LOCALID='0',
  ).items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv('KUBERNETES_SERVICE_HOST', raising=False)
  address = _find('auto', None, None)
  assert address.coordinator.startswith('node003:')
  assert (address.num_processes, address.process_id) == (2, 1)


# What each of two processes does; `me` is its number.
_SCRIPT = """
import sys, time
import numpy as np
from metastone_jax.parallel import distributed as d

me, port, then = int(sys.argv[1]), sys.argv[2], sys.argv[3]
d.start(
  d.Address(f'127.0.0.1:{port}', 2, me), start_timeout_s=60, peer_timeout_s=6
)
assert d.several() and d.is_primary() == (me == 0)
d.barrier('both', 60)
d.barrier('both', 60)  # the same name again
assert d.gather('numbers', {'me': me}, 60) == [{'me': 0}, {'me': 1}]
for i in range(100):  # more than are kept
  assert d.from_primary('word', [me, i], 60) == [0, i]
assert d.any_wish('stop', None) is None
if me == 1:
  d.any_wish('stop', 'SIGTERM')
  assert d.any_wish('stop', None) == 'SIGTERM'
else:
  answers = []
  while len(answers) < 2:
    if not answers:
      time.sleep(1)  # so that the wish is there
    answers.append(d.any_wish('stop', None))
  assert answers[-1] == 'SIGTERM', answers
found = d.all_gather({'x': np.array([[me + 0.1], [2**60 + me]])})['x']
assert found.dtype == np.float64
np.testing.assert_array_equal(
  found, [[0.1], [2.0**60], [1.1], [2.0**60 + 1]]
)
if then == 'late':
  try:
    if me == 0:
      d.barrier('evening', 1)
    else:
      time.sleep(3)
  except d.HostsMissing as error:
    print(error)
  d.finish()
elif then == 'boom':
  if me == 1:
    d.give_up(2, 'the disk of /x is full')
    import os
    os._exit(2)
  time.sleep(30)
elif then == 'freeze':
  if me == 0:
    time.sleep(60)
  import os, signal
  os.kill(os.getpid(), signal.SIGSTOP)
print('end', me)
"""


def _pair(then):
  """(code, stdout, stderr) of two processes that run the script."""
  port = str(free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(_SCRIPT), str(i), port, then],
      cwd=ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu'),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  found = []
  try:
    for process in processes:
      out, err = process.communicate(timeout=90)
      found.append((process.returncode, out, err))
      if then == 'freeze':
        break
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  return found


@pytest.mark.crash
def test_a_late_process_is_named():
  (code, out, err), (other, *_) = _pair('late')
  assert (code, other) == (0, 0), err
  assert re.search(
    r"barrier 'evening': not there within 1 s: host \S+ \(process 1\); look",
    out,
  )


@pytest.mark.crash
def test_the_last_word_reaches_the_others():
  (code, _, err), (other, *_) = _pair('boom')
  assert (code, other) == (2, 2)
  assert re.search(
    r'error: host \S+ \(process 1\) ended: the disk of /x is full\n$', err
  )


@pytest.mark.crash
def test_a_frozen_process_is_named():
  ((code, _, err),) = _pair('freeze')
  assert code == 75
  assert re.search(
    r'error: host \S+ \(process 1\) has not been heard of for \d+ s; look at '
    r'its log and its machine. Restart the same command on all hosts: it '
    r'resumes from the last checkpoint\n$',
    err,
  )
