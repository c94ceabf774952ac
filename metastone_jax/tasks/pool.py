"""Verifiers in processes of their own, each check with a hard deadline.

A check may hang, crash or take all memory: its process is killed and replaced,
and the others and the queue go on. What went wrong is the verdict's `failure`:
'timeout', 'crash' or 'memory', to be counted, never a silent zero. An
exception in a verifier is a crash too, and logged the first time.

Processes are started as they are needed, up to `workers`, and are fresh Python
processes: no fork, which JAX's threads forbid, and no import of the program's
main module. One thread here serves each of them; a watchdog thread kills those
that are late, whatever either end is doing, so that no wait is for ever. On
several hosts each has a pool of its own.
"""

import atexit
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time

from absl import logging

from metastone_jax import errors
from metastone_jax.tasks import base, pool_worker
from metastone_jax.tasks.verifiers.base import Verifier

Future = concurrent.futures.Future

# Seconds within which a process must have started and imported what a verifier
# needs; on a busy machine and a slow disk that takes many of them.
_START_SECONDS = 180.0
# Between two looks at the clock.
_TICK_SECONDS = 0.02

_START = (
  'import json, sys; sys.path[:] = json.loads(sys.argv[1]); '
  'from metastone_jax.tasks import pool_worker; '
  'pool_worker.main(*map(int, sys.argv[2:]))'
)


@dataclasses.dataclass(frozen=True)
class _Job:
  verifier: bytes  # pickled
  name: str
  deadline_s: float
  problem: base.Problem
  text: str
  future: Future


class VerifierPool:
  """Checks responses in processes that can be killed; see the module docstring.

  Also a context manager, which closes it. Its processes never outlive the
  program.

  Args:
    workers: processes at a time, at most; 0 = one a CPU of this host, up to 8.
    deadline_s: seconds that one check may take, unless its verifier says else.
    memory_gb: address space of a process, 1e9 bytes; 0 = no limit.
    recycle_after: checks after which a process is replaced, for what leaks.

  Attributes:
    workers: as given, or found.
    started: processes so far.

  Raises:
    UserError: a number out of range.
  """

  def __init__(
    self,
    workers: int = 0,
    *,
    deadline_s: float = 10.0,
    memory_gb: float = 4.0,
    recycle_after: int = 2000,
  ):
    self.workers = workers or min(8, os.cpu_count() or 1)
    self.deadline_s = deadline_s
    self.memory_gb = memory_gb
    self.recycle_after = recycle_after
    errors.check_fields(
      'verify.',
      self,
      (
        ('workers', self.workers >= 1, 'at least 0 (one a CPU, up to 8)'),
        (
          'deadline_s',
          0 < deadline_s < math.inf,
          'seconds above 0 that a check may take',
        ),
        (
          'memory_gb',
          memory_gb == 0 or 0.5 <= memory_gb < math.inf,
          'at least 0.5 GB, or 0 for no limit',
        ),
        ('recycle_after', recycle_after >= 1, 'at least 1 check'),
      ),
    )
    self.started = 0
    self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    self._threads: list[_Worker] = []
    self._open = 0  # jobs that are not done
    self._closed = threading.Event()
    self._lock = threading.Lock()
    self._seen: set[tuple[str, str]] = set()

  def submit(
    self, verifier: Verifier, problem: base.Problem, text: str
  ) -> 'Future[base.Verdict]':
    """Has one response checked.

    Args:
      verifier: picklable, of a module that can be imported.
      problem: the problem.
      text: the response.

    Returns:
      Its verdict when it is there; ask for it with `result`. UserErrors of the
      verifier, and what keeps it from starting at all, are raised there.

    Raises:
      RuntimeError: the pool is closed.
    """
    job = _Job(
      pickle.dumps(verifier),
      verifier.name,
      verifier.deadline_s or self.deadline_s,
      problem,
      text,
      Future(),
    )
    with self._lock:
      if self._closed.is_set():
        raise RuntimeError('the verifier pool is closed')
      self._open += 1
      if len(self._threads) < min(self.workers, self._open):
        self._add_thread()
      self._jobs.put(job)
    job.future.add_done_callback(self._done)
    return job.future

  def result(self, future: 'Future[base.Verdict]') -> base.Verdict:
    """Waits for a verdict; every check ends by its deadline.

    Args:
      future: from `submit`.

    Raises:
      UserError: the verifier refuses its options or problem.
      RuntimeError: it cannot be started at all, or the pool was closed.
    """
    while True:
      try:
        return future.result(timeout=1.0)
      except concurrent.futures.TimeoutError:
        if not future.done():
          self.check_alive()
      except concurrent.futures.CancelledError:
        raise RuntimeError('the verifier pool was closed') from None

  def check_alive(self) -> None:
    """RuntimeError if no thread is left, so that waiting would be for ever."""
    if not any(thread.is_alive() for thread in self._threads):
      raise RuntimeError('the threads of the verifier pool died')

  def close(self) -> None:
    """Kills the processes; checks that are not done are given up."""
    with self._lock:
      if self._closed.is_set():
        return
      self._closed.set()
      threads = list(self._threads)
    while True:
      try:
        job = self._jobs.get_nowait()
      except queue.Empty:
        break
      job.future.cancel()
    for thread in threads:
      thread.kill()
      self._jobs.put(None)
    for thread in threads:
      thread.join(timeout=5)
    atexit.unregister(self.close)

  def __enter__(self) -> 'VerifierPool':
    return self

  def __exit__(self, *exc) -> None:
    self.close()

  def _add_thread(self) -> None:
    """One more worker; the first one brings the watchdog."""
    if not self._threads:
      atexit.register(self.close)
      threading.Thread(
        target=self._watch, name='verifier-watchdog', daemon=True
      ).start()
    thread = _Worker(self)
    self._threads.append(thread)
    thread.start()

  def _done(self, future: Future) -> None:
    with self._lock:
      self._open -= 1

  def _watch(self) -> None:
    while not self._closed.wait(_TICK_SECONDS):
      now = time.monotonic()
      for thread in tuple(self._threads):
        thread.kill_if_late(now)

  # For the workers.

  def next_job(self) -> _Job | None:
    """The next one; None = the pool is closed."""
    job = self._jobs.get()
    if job is not None and self._closed.is_set():
      job.future.cancel()
      return None
    return job

  @property
  def closed(self) -> bool:
    """Whether it takes no more."""
    return self._closed.is_set()

  def count_start(self) -> None:
    """One more process."""
    with self._lock:
      self.started += 1

  def report(self, name: str, kind: str, trace: str) -> None:
    """Logs an exception of a verifier, the first of its kind."""
    with self._lock:
      seen = (name, kind) in self._seen
      self._seen.add((name, kind))
    if not seen:
      logging.error(
        'verifier %r raised %s; counted as a crash, and later ones of this '
        'kind are only counted:\n%s',
        name,
        kind,
        trace,
      )


class _Lost(Exception):  # noqa: N818 (a state, not an error)
  """The process is gone; the message says why, as in Verdict.failure."""


class _Worker(threading.Thread):
  """Serves one process after another."""

  def __init__(self, pool: VerifierPool):
    super().__init__(name='verifier', daemon=True)
    self._pool = pool
    self._lock = threading.Lock()
    self._process: subprocess.Popen | None = None
    self._connection = None
    self._known: dict[bytes, int] = {}
    self._checks = 0
    self._kill_at: float | None = None
    self._late = False

  def run(self) -> None:
    """Jobs until the pool is closed."""
    try:
      while (job := self._pool.next_job()) is not None:
        if job.future.set_running_or_notify_cancel():
          try:
            job.future.set_result(self._check(job))
          except BaseException as error:  # raised where it is asked for
            job.future.set_exception(error)
    finally:
      self._discard()

  def _check(self, job: _Job) -> base.Verdict:
    if self._gone():
      self._discard()  # it went while nobody asked it for anything
    try:
      if job.verifier not in self._known:
        self._teach(job)
      message = pickle.dumps((self._known[job.verifier], job.problem, job.text))
      answer = self._ask(pool_worker.CHECK + message, job.deadline_s)
    except _Lost as lost:
      if self._pool.closed:
        raise RuntimeError('the verifier pool was closed') from None
      return _failed(str(lost))
    self._checks += 1
    if 'refused' in answer:
      raise errors.UserError(answer['refused'])
    if 'memory' in answer:
      self._discard()  # who knows what state it is in
      return _failed('memory')
    if 'raised' in answer:
      self._pool.report(job.name, answer['raised'], answer['trace'])
      return _failed('crash')
    if self._checks >= self._pool.recycle_after:
      self._discard()
    return base.Verdict(*answer['verdict'])

  def _teach(self, job: _Job) -> None:
    """Has the process know a verifier.

    Raises:
      UserError: the verifier refuses.
      RuntimeError: it cannot be started: no response can be blamed for it.
    """
    if self._process is None:
      self._start()
    what = f'a process for verifier {job.name!r}'
    try:
      answer = self._ask(pool_worker.VERIFIER + job.verifier, _START_SECONDS)
    except _Lost as lost:
      if self._pool.closed:
        raise
      raise RuntimeError(f'{what} ended while it started ({lost})') from None
    if 'refused' in answer:
      raise errors.UserError(answer['refused'])
    if 'memory' in answer:
      self._discard()
      raise errors.UserError(
        f'{what} cannot start within verify.memory_gb='
        f'{self._pool.memory_gb:g}; raise it'
      )
    if 'raised' in answer:
      raise RuntimeError(f'{what} could not start:\n{answer["trace"]}')
    self._known[job.verifier] = len(self._known)

  def _ask(self, message: bytes, seconds: float) -> dict:
    """Sends a message and reads the answer, for so many seconds.

    Raises:
      _Lost: 'timeout' or 'crash'; the process is gone.
    """
    with self._lock:
      self._kill_at, self._late = time.monotonic() + seconds, False
    answer = None
    try:
      self._connection.send_bytes(message)
      answer = json.loads(self._connection.recv_bytes())
    except (EOFError, OSError, ValueError):
      pass
    finally:
      with self._lock:
        self._kill_at = None
        late = self._late
    if answer is None or late:
      self._discard()
    if answer is None:
      raise _Lost('timeout' if late else 'crash')
    return answer

  def _start(self) -> None:
    near, far = multiprocessing.Pipe()
    memory = int(self._pool.memory_gb * 1e9)
    path = [entry or os.getcwd() for entry in sys.path]
    with self._lock:
      self._process = subprocess.Popen(
        [
          sys.executable,
          '-c',
          _START,
          json.dumps(path),
          *map(str, (far.fileno(), os.getpid(), memory)),
        ],
        pass_fds=[far.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # A group of its own: killed with all that a verifier has started.
        start_new_session=True,
        env={
          **os.environ,
          # Threads of BLAS would take address space for nothing.
          'OMP_NUM_THREADS': '1',
          'OPENBLAS_NUM_THREADS': '1',
          'MKL_NUM_THREADS': '1',
        },
      )
    far.close()
    self._connection = near
    self._pool.count_start()

  def _gone(self) -> bool:
    """Whether the process has ended; leaves its id taken, for `_kill`."""
    if self._process is None:
      return False
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, self._process.pid, flags) is not None

  def kill_if_late(self, now: float) -> None:
    """Called by the watchdog."""
    with self._lock:
      if self._kill_at is not None and now >= self._kill_at:
        self._kill_at, self._late = None, True
        self._kill()

  def kill(self) -> None:
    """Ends the process, from any thread."""
    with self._lock:
      self._kill()

  def _kill(self) -> None:
    if self._process is not None:
      try:
        os.killpg(self._process.pid, signal.SIGKILL)
      except ProcessLookupError:
        pass

  def _discard(self) -> None:
    """No process; the next check starts one."""
    self.kill()
    with self._lock:
      process, self._process = self._process, None
    if process is not None:
      process.wait()
      self._connection.close()
    self._known, self._checks = {}, 0


def _failed(why: str) -> base.Verdict:
  return dataclasses.replace(base.UNPARSED, failure=why)
