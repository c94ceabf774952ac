"""The verifier pool: whatever one check does, the others get their verdicts."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from metastone_jax import errors
from metastone_jax.tasks import base
from metastone_jax.tasks.pool import VerifierPool
from tests.tasks.hostile import Hostile

PROBLEM = base.Problem('t', 't/0', 'q', 'a', {})
ROOT = pathlib.Path(__file__).resolve().parents[2]
# What shall end by itself has time to, on a busy machine too; only what shall
# not has little.
PATIENT_S = 20.0
HOSTILE = Hostile()
HURRIED = Hostile(deadline_s=1.0)


@pytest.fixture
def pool():
  with VerifierPool(2, deadline_s=PATIENT_S, memory_gb=2.0) as pool:
    yield pool


def _check(pool, *texts, verifier=HOSTILE):
  futures = [pool.submit(verifier, PROBLEM, text) for text in texts]
  return [pool.result(future) for future in futures]


def _gone(pid):
  """Whether a process has ended, soon."""
  for _ in range(100):
    try:
      state = pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2]
    except FileNotFoundError:
      return True
    if state == 'Z':
      return True
    time.sleep(0.1)
  return False


def test_results_are_those_of_their_text(pool):
  texts = [f'{"right" if i % 3 else "wrong"}:{i}' for i in range(200)]
  for i, verdict in enumerate(_check(pool, *texts)):
    assert verdict == base.Verdict(float(i % 3 > 0), True, str(i))
  assert pool.started <= 2


def test_no_process_before_the_first_check(pool):
  assert pool.started == 0
  (verdict,) = _check(pool, 'modules')
  assert pool.started == 1
  loaded = {name.split('.')[0] for name in verdict.answer_key.split()}
  # Each start would pay for them, and JAX wants to be forked by nobody.
  assert not loaded & {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'sympy'}
  assert 'metastone_jax' in loaded and 'tests' in loaded


@pytest.mark.parametrize(
  ('text', 'failure'),
  [
    ('hang', 'timeout'),
    ('sleep:30', 'timeout'),
    ('stop', 'timeout'),
    ('exit:0', 'crash'),
    ('exit:1', 'crash'),
    ('system_exit', 'crash'),
    ('segfault', 'crash'),
    ('raise:no', 'crash'),
    ('memory', 'memory'),
    ('fail:network', 'network'),
  ],
)
def test_one_bad_check_and_the_others(text, failure):
  with VerifierPool(2, deadline_s=PATIENT_S, memory_gb=0.8) as pool:
    futures = [pool.submit(HOSTILE, PROBLEM, 'right:x') for _ in range(20)]
    verifier = HURRIED if failure == 'timeout' else HOSTILE
    bad_future = pool.submit(verifier, PROBLEM, text)
    futures += [pool.submit(HOSTILE, PROBLEM, 'right:x') for _ in range(20)]
    bad = pool.result(bad_future)
    found = [pool.result(future) for future in futures]
  assert (bad.reward, bad.failure) == (0.0, failure)
  assert found == [base.Verdict(1.0, True, 'x')] * 40


def test_a_batch_of_hanging_ones_ends(pool):
  started = time.monotonic()
  futures = [pool.submit(HURRIED, PROBLEM, 'hang') for _ in range(4)]
  futures.append(pool.submit(HOSTILE, PROBLEM, 'right:x'))
  found = [pool.result(future) for future in futures]
  assert [verdict.failure for verdict in found] == ['timeout'] * 4 + ['']
  assert time.monotonic() - started < 60
  # A timed-out process is not the next one's.
  assert pool.started >= 3


def test_a_verifier_may_have_a_deadline_of_its_own():
  with VerifierPool(1, deadline_s=0.5) as pool:
    found = _check(pool, 'sleep:1', verifier=Hostile(deadline_s=PATIENT_S))
    assert found[0].failure == ''


def test_getting_ready_is_not_on_the_clock(pool):
  verifier = Hostile(prepare='sleep:6', deadline_s=5.0)
  found = _check(pool, 'right:x', verifier=verifier)
  assert found == [base.Verdict(1.0, True, 'x')]


def test_what_keeps_a_verifier_from_starting_is_raised(pool):
  for prepare, error, message in (
    ('raise:broken', RuntimeError, 'broken'),
    ('exit:3', RuntimeError, 'ended while it started'),
    ('refuse:needs a package', errors.UserError, 'needs a package'),
    ('memory', errors.UserError, 'memory_gb=2'),
  ):
    with pytest.raises(error, match=message):
      _check(pool, 'right:x', verifier=Hostile(prepare=prepare))
  with pytest.raises(errors.UserError, match='bad row'):
    _check(pool, 'refuse:bad row')
  assert _check(pool, 'right:x')[0].reward == 1.0


def test_an_exception_is_logged_once(pool, caplog):
  found = _check(pool, 'raise:first', 'raise:second', 'raise:third')
  assert [verdict.failure for verdict in found] == ['crash'] * 3
  (record,) = caplog.records
  assert 'RuntimeError' in record.getMessage()
  assert "'hostile'" in record.getMessage()
  assert 'tests/tasks/hostile.py' in record.getMessage()


def test_processes_are_recycled():
  with VerifierPool(1, recycle_after=3) as pool:
    pids = [verdict.answer_key for verdict in _check(pool, *['pid'] * 9)]
    assert len(set(pids)) == 3 == pool.started
    assert pids == sorted(pids, key=pids.index)
  assert all(_gone(pid) for pid in set(pids))


def test_a_process_that_was_killed_from_outside_is_replaced():
  with VerifierPool(1) as pool:
    (verdict,) = _check(pool, 'pid')
    os.kill(int(verdict.answer_key), signal.SIGKILL)
    time.sleep(0.2)
    assert _check(pool, 'right:x')[0].reward == 1.0


def test_large_texts_travel(pool):
  text = 'right:' + 'x' * 5_000_000
  assert [len(v.answer_key) for v in _check(pool, text, text)] == [
    5_000_000
  ] * 2


def test_what_a_verifier_prints_goes_nowhere(pool, capfd):
  assert _check(pool, 'print')[0].parsed
  assert capfd.readouterr().out == ''


def test_children_die_with_their_process(pool, tmp_path):
  verifier = Hostile(deadline_s=5.0)  # time to start a child
  found = _check(pool, f'child:{tmp_path / "pids"}', verifier=verifier)
  assert found[0].failure == 'timeout'
  assert all(_gone(pid) for pid in (tmp_path / 'pids').read_text().split())


def test_closing_gives_up_what_is_left():
  pool = VerifierPool(1, deadline_s=60)
  futures = [pool.submit(HOSTILE, PROBLEM, 'sleep:60') for _ in range(3)]
  while not pool.started:
    time.sleep(0.05)
  time.sleep(0.5)
  started = time.monotonic()
  pool.close()
  assert time.monotonic() - started < 30
  for future in futures:
    with pytest.raises(RuntimeError, match='closed'):
      pool.result(future)
  with pytest.raises(RuntimeError, match='closed'):
    pool.submit(HOSTILE, PROBLEM, 'right:x')
  pool.close()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(workers=-1), 'workers'),
    (dict(deadline_s=0), 'deadline_s'),
    (dict(memory_gb=0.01), 'memory_gb'),
    (dict(recycle_after=0), 'recycle_after'),
  ],
)
def test_bad_numbers(options, message):
  with pytest.raises(errors.UserError, match=f'verify.{message}'):
    VerifierPool(**options)


def _program(tmp_path, body):
  """A program with a pool whose only process writes its ids and sleeps."""
  pids = tmp_path / 'pids'
  code = f"""
    import os, signal, sys
    from metastone_jax.tasks import base
    from metastone_jax.tasks.pool import VerifierPool
    from tests.tasks.hostile import Hostile
    # Also where a job in the background hands down that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = VerifierPool(1, deadline_s=600)
    future = pool.submit(
        Hostile(), base.Problem('t', 't/0', 'q', 'a', {{}}), 'child:{pids}')
    {body}
  """
  program = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  for _ in range(600):
    if pids.exists() and len(pids.read_text().split()) == 2:
      return program, [int(pid) for pid in pids.read_text().split()]
    time.sleep(0.05)
  program.kill()
  raise AssertionError(program.communicate())


def test_ctrl_c_ends_the_processes(tmp_path):
  program, pids = _program(tmp_path, 'pool.result(future)')
  os.kill(pids[0], signal.SIGINT)  # a worker leaves it to the program
  time.sleep(0.3)
  assert program.poll() is None and not _zombie(pids[0])
  program.send_signal(signal.SIGINT)
  _, error = program.communicate(timeout=20)
  assert program.returncode != 0 and 'KeyboardInterrupt' in error
  assert all(_gone(pid) for pid in pids)


def _zombie(pid):
  return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] == 'Z'


@pytest.mark.skipif(sys.platform != 'linux', reason='parent-death signals')
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_processes_do_not_outlive_the_program(tmp_path, how):
  program, (worker, child) = _program(tmp_path, 'pool.result(future)')
  program.send_signal(how)
  program.wait(timeout=20)
  assert _gone(worker)
  os.kill(child, signal.SIGKILL)  # its own; no verifier of ours leaves one


def test_leaving_the_program_ends_them_all(tmp_path):
  program, pids = _program(
    tmp_path,
    f"""
    import time
    while not os.path.exists({str(tmp_path / 'pids')!r}): time.sleep(0.05)
    time.sleep(1)
    sys.exit(0)
  """.strip(),
  )
  assert program.wait(timeout=20) == 0
  assert all(_gone(pid) for pid in pids)
