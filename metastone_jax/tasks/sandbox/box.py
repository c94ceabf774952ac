"""A sandbox: runs programs that nobody has read.

A `Sandbox` is one supervising process (see `inside/`) that runs one program at
a time, each as a fresh process with nothing of the last one. The program sees
Python's own library and one empty folder of its own; it has no network, no
other process, no environment, and no part of this process: what it prints or
returns is compared out here, so nothing that it does to itself, to a test or
to an exit status can make a wrong answer right.

Isolation levels:
- `namespaces`: the walls are the kernel's namespaces (Linux 5.12 or newer, as
  root or where users may make user namespaces).
- `limits`: for machines without them, and only where it is asked for: the
  filter of system calls, Landlock and resource limits (Linux 5.5 or newer).
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import logging

from metastone_jax import errors
from metastone_jax.tasks.sandbox.inside import wire

ISOLATION_LEVELS = ('namespaces', 'limits')

# Why a program did not come to a good end. `exception`: it failed by itself
# (an uncaught exception, an exit status); `crash`: a signal ended it; all
# others: it ran into a wall or a limit.
FAILURES = (
  'exception',
  'crash',
  'timeout',
  'memory',
  'processes',
  'files',
  'network',
  'output',
)

_FOLDER = str(pathlib.Path(__file__).resolve().parent)
_START = (
  'import sys; sys.path[0] = sys.argv[1]; '
  'from inside import supervisor; supervisor.main()'
)
_START_SECONDS = 60.0
# The supervisor keeps the limits; this is for the case that it is lost itself.
_GRACE_SECONDS = 30.0

_ENVIRONMENT = {
  'PATH': '/usr/bin:/bin',
  'LC_ALL': 'C.UTF-8',
  'PYTHONUTF8': '1',
  # The same program prints the same sets everywhere.
  'PYTHONHASHSEED': '0',
  # Libraries that start a thread a core would run into the limits.
  'OPENBLAS_NUM_THREADS': '1',
  'OMP_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
}


class SandboxError(RuntimeError):
  """The sandbox itself failed: nothing is known of the program."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use.

  Attributes:
    cpu_seconds: processor time of a run, of loading, or of one call.
    wall_seconds: time of the same, larger since machines are shared.
    memory_bytes: address space.
    file_bytes: one file, and with namespaces all of its folder.
    output_bytes: each of standard output, standard error and a value.
    threads: threads that it may start in all; processes are never allowed.
  """

  cpu_seconds: float = 6.0
  wall_seconds: float = 12.0
  memory_bytes: int = 1 << 30
  file_bytes: int = 16 << 20
  output_bytes: int = 1 << 20
  threads: int = 64

  def __post_init__(self):
    errors.check_fields(
      'sandbox limit ',
      self,
      [
        (f.name, getattr(self, f.name) > 0, 'a positive number')
        for f in dataclasses.fields(self)
      ],
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run, or a call, ended.

  Attributes:
    failure: one of `FAILURES`, or '' where it came to a good end.
    detail: what exactly failed, for a person.
    exit_code: exit status, negative for a signal; None while it lives.
    stdout: all that it printed.
    stderr: the end of what it printed there.
    seconds: time of the run or call.
    cpu_seconds: processor time of it.
    value: of a call, as plain data.
  """

  failure: str
  detail: str
  exit_code: int | None
  stdout: str
  stderr: str
  seconds: float
  cpu_seconds: float
  value: Any = None


class Sandbox:
  """One supervising process; use as a context manager, from one thread.

  Args:
    limits: of each program.
    isolation: one of `ISOLATION_LEVELS`; there is no falling back.
    packages: installed packages that programs may import, e.g. 'numpy'.

  Raises:
    UserError: the level does not work here (says what to do), or a package is
      not installed.
  """

  def __init__(
    self,
    limits: Limits | None = None,
    isolation: str = 'namespaces',
    packages: Sequence[str] = (),
  ):
    self.limits = limits or Limits()
    self._process = None
    self._folder = ''
    if isolation not in ISOLATION_LEVELS:
      raise errors.UserError(
        f'sandbox isolation {isolation!r} is unknown; use one of '
        f'{", ".join(ISOLATION_LEVELS)}'
      )
    if sys.platform != 'linux' or platform.machine() not in _MACHINES:
      raise errors.UserError(
        'running programs in the sandbox needs Linux on x86_64 or aarch64, '
        f'this is {sys.platform} on {platform.machine()}; verify code tasks '
        'on such a machine'
      )
    self._start(isolation, _package_paths(packages))

  def _start(self, isolation, packages) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
      self._process = subprocess.Popen(
        # Without `site`: no installed package, no .pth file runs in there.
        [_python(), '-s', '-S', '-c', _START, _FOLDER, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=_ENVIRONMENT,
        cwd='/',
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A Ctrl-C at the terminal is for this process to handle.
        start_new_session=True,
      )
    self._channel = ours
    if isolation == 'limits':
      # Both sides remove it: either may be killed.
      self._folder = tempfile.mkdtemp(prefix='program-')
    request = {
      'isolation': isolation,
      'limits': dataclasses.asdict(self.limits),
      'packages': packages,
      'folder': self._folder,
    }
    answer = self._ask(request, _START_SECONDS)
    if 'error' in answer:
      self.close()
      raise errors.UserError(_advice(isolation, answer['error']))
    if isolation == 'limits':
      _warn_limits(answer['landlock'])

  def run(
    self,
    source: str,
    stdin: str = '',
    *,
    output_bytes: int | None = None,
    star_imports: Sequence[str] = (),
  ) -> Outcome:
    """Runs a whole program.

    Args:
      source: Python.
      stdin: what it reads.
      output_bytes: instead of the limit's.
      star_imports: modules of the standard library whose public names, and
        whose own, the program finds defined.

    Raises:
      SandboxError: the sandbox failed; it is closed then.
    """
    job = self._job('run', source, stdin, None, output_bytes, star_imports)
    return _outcome(self._ask(job))

  def load(
    self,
    source: str,
    function: str,
    *,
    output_bytes: int | None = None,
    star_imports: Sequence[str] = (),
  ) -> 'Program':
    """Runs a program up to its end and keeps it, to call a function of it.

    Args:
      source: Python.
      function: a method of its class `Solution`, or a function.
      output_bytes: see `run`.
      star_imports: see `run`.

    Returns:
      The program; check its `outcome` before calling it.
    """
    job = self._job('load', source, '', function, output_bytes, star_imports)
    return Program(self, _outcome(self._ask(job)))

  def _job(self, action, source, stdin, call, output_bytes, star_imports):
    limits = dataclasses.asdict(self.limits)
    if output_bytes is not None:
      limits['output_bytes'] = output_bytes
    return {
      'do': action,
      'source': source,
      'stdin': stdin,
      'call': call,
      'limits': limits,
      'star_imports': list(star_imports),
    }

  def _ask(self, request: dict, seconds: float | None = None) -> dict:
    """Sends a request and waits for its answer."""
    if self._process is None:
      raise SandboxError('the sandbox is closed')
    if seconds is None:
      seconds = self.limits.wall_seconds + _GRACE_SECONDS
    self._channel.settimeout(seconds)
    try:
      wire.send(self._channel, request)
      answer = wire.receive(self._channel)
    except (OSError, ValueError) as error:
      answer, why = None, f'{type(error).__name__}: {error}'
    else:
      why = 'it has ended'
    if answer is None:
      process = self._process
      self.close()
      text = process.stderr.read().decode('utf-8', 'replace').strip()
      raise SandboxError(f'the sandbox is lost: {why} {text[-2000:]}'.strip())
    if 'do' in request and 'error' in answer:
      self.close()
      raise SandboxError(answer['error'])
    return answer

  @property
  def closed(self) -> bool:
    """Whether it can run no more programs."""
    return self._process is None

  def close(self) -> None:
    """Ends the supervisor and everything inside."""
    process, self._process = self._process, None
    if process is not None:
      # With the first process of the namespaces all others end; killing the
      # one outside is what ends that.
      self._channel.close()
      try:
        process.wait(timeout=5.0)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      if self._folder:
        shutil.rmtree(self._folder, ignore_errors=True)

  def abandon(self) -> None:
    """In a forked process: forgets it, for it belongs to the parent."""
    self._process = None
    self._channel.close()

  def __enter__(self) -> 'Sandbox':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def __del__(self):
    self.close()


class Program:
  """A loaded program.

  Attributes:
    outcome: of loading; with a failure it cannot be called.
  """

  def __init__(self, sandbox: Sandbox, outcome: Outcome):
    self._sandbox = sandbox
    self.outcome = outcome

  def call(self, *arguments: Any, **keywords: Any) -> Outcome:
    """Calls the function with plain data; `value` holds what it returned.

    After a failure the program is gone: another call fails too.
    """
    text = wire.encode((arguments, keywords))
    answer = self._sandbox._ask({'do': 'call', 'arguments': text})
    value = answer['value']
    outcome = _outcome({**answer, 'value': None})
    if outcome.failure or value is None:
      # It has ended, with status 0 perhaps, but it has not answered.
      return dataclasses.replace(
        outcome, failure=outcome.failure or 'exception'
      )
    try:
      return dataclasses.replace(outcome, value=wire.decode(value))
    except wire.NotPlainError as error:
      return dataclasses.replace(
        outcome, failure='exception', detail=str(error)
      )

  def __enter__(self) -> 'Program':
    return self

  def __exit__(self, *_) -> None:
    if not self._sandbox.closed:
      self._sandbox._ask({'do': 'drop'})


_MACHINES = ('x86_64', 'aarch64')


def _outcome(answer: dict) -> Outcome:
  return Outcome(**answer)


def _python() -> str:
  """The interpreter itself, not a virtual environment's link to it."""
  if not sys.executable:
    raise errors.UserError(
      'the sandbox needs the path of the Python interpreter, and '
      'sys.executable is empty; start the program with python itself'
    )
  return os.path.realpath(sys.executable)


def _package_paths(packages: Sequence[str]) -> dict[str, str]:
  """Where packages are, with the folder of libraries that wheels bring."""
  paths = {}
  for name in packages:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
      raise errors.UserError(
        f'programs in the sandbox shall be able to import {name!r}, which is '
        'not an installed package; install it or leave it out of `packages`'
      )
    folder = pathlib.Path(list(spec.submodule_search_locations)[0]).resolve()
    paths[name] = str(folder)
    libraries = folder.with_name(f'{folder.name}.libs')
    if libraries.is_dir():
      paths[libraries.name] = str(libraries)
  return paths


def _advice(isolation: str, reason: str) -> str:
  if isolation == 'limits':
    return (
      f"the sandbox level 'limits' does not work here ({reason}); it needs "
      'Linux 5.5 or newer with seccomp and a hard limit of address space '
      'above its memory limit'
    )
  return (
    f"the sandbox level 'namespaces' does not work here ({reason}); run as "
    'root with CAP_SYS_ADMIN (in a container: --privileged), or allow user '
    'namespaces (sysctl user.max_user_namespaces, '
    'kernel.apparmor_restrict_unprivileged_userns=0), or choose the level '
    "'limits', which contains less: data.task_options.NAME.verifier_options="
    "dict(isolation='limits')"
  )


@functools.cache
def _warn_limits(landlock: bool) -> None:
  logging.warning(
    "code runs with isolation='limits': no namespaces; %s",
    'programs may see which files exist, and fill the disk with many files'
    if landlock
    else 'this kernel has no Landlock either: programs can read every file '
    'that this user can read (keys, environments of processes), and write '
    'them by racing a check',
  )
