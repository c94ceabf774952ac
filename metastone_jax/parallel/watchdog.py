"""Ends this process, with a reason, when another one of the job is gone.

Left alone, a job whose member dies waits in a collective for ever (TPU, NCCL)
or ends in a stack trace that names nobody. So every process writes a counter
into the shared store and watches those of the others:

- A counter that stands still for `timeout_s` ends this process: one line that
  names the host, exit code LOST.
- A process that ends by itself with an error says so first (`say_ended`), and
  the others repeat its message at once.
- The store lives in process 0. When that goes, jaxlib calls abort() in each
  client within milliseconds; a handler of SIGABRT gives that a last line and
  our exit code. Aborts for other reasons stay what they are.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

from metastone_jax.parallel import coordination, rendezvous

# Exit codes: a host was lost, and the same command goes on (EX_TEMPFAIL); bad
# input, and it does not.
LOST = 75
BAD_INPUT = 2

_RESTART = (
  'Restart the same command on all hosts: it resumes from the last checkpoint'
)


class Watchdog:
  """Watches the other processes of a job; one a process.

  Args:
    address: HOST:PORT of process 0.
    hosts: host names by process number.
    process_id: number of this process.
    timeout_s: seconds after which a silent process counts as gone.
  """

  def __init__(
    self, address: str, hosts: Sequence[str], process_id: int, timeout_s: float
  ):
    self._address = address
    self._hosts = list(hosts)
    self._me = process_id
    self.timeout_s = timeout_s
    self.period_s = min(5.0, timeout_s / 6)
    self._stopped = threading.Event()
    self._ending = threading.Lock()
    now = time.monotonic()
    self._heard = {i: now for i in range(len(hosts))}
    self._counters: dict[str, int] = {}
    self._answered = now  # the store's last answer
    self._looked = now

  def start(self) -> None:
    """Starts watching."""
    self._catch_abort()
    for target in (self._beat, self._judge):
      threading.Thread(target=target, name='watchdog', daemon=True).start()

  def stop(self) -> None:
    """Stops watching: the job ends in good order."""
    self._stopped.set()

  def name(self, process: int) -> str:
    """How messages call a process."""
    role = ', the coordinator' if process == 0 else ''
    return f'host {self._hosts[process]} (process {process}{role})'

  def say_ended(self, code: int, message: str) -> None:
    """Tells the others why this process ends, before it does."""
    self._stopped.set()
    self._announce(code, f'{self.name(self._me)} ended: {message}')

  # Below: private.

  def _announce(self, code: int, message: str) -> None:
    """Writes the last word of this process where the others find it.

    Process 0, with which the store goes, waits until they have.
    """
    deadline = time.monotonic() + 3 * self.period_s + 1
    try:
      coordination.put(f'ended/{self._me}', {'code': code, 'message': message})
      while self._me == 0 and time.monotonic() < deadline:
        if len(coordination.folder('ended')) == len(self._hosts):
          break
        time.sleep(self.period_s / 5)
    except coordination.Failure:
      pass  # nobody is left to be told

  def _end(self, code: int, message: str, *, announce: bool) -> None:
    """Prints `error: message` and ends the process; does not return."""
    with self._ending:  # the first thread to come here has the last word
      if self._stopped.is_set():
        threading.Event().wait()  # the process is ending by itself
      if announce:
        self._announce(code, message)
      sys.stdout.flush()
      advice = '' if code == BAD_INPUT else f'. {_RESTART}'
      os.write(2, f'\nerror: {message}{advice}\n'.encode())
      os._exit(code)

  def _beat(self) -> None:
    """Writes the own counter and reads those of the others."""
    count = 0
    while not self._stopped.wait(self.period_s if count else 0):
      count += 1
      try:
        coordination.put(f'heartbeat/{self._me}', count)
        counters = coordination.folder('heartbeat')
        ended = coordination.folder('ended')
      except coordination.Failure:
        continue  # _judge sees that no answer comes
      now = time.monotonic()
      self._answered = now
      for process, counter in counters.items():
        if self._counters.get(process) != counter:
          self._heard[int(process)] = now
      self._counters = counters
      for process, word in ended.items():
        if int(process) != self._me and not self._stopped.is_set():
          code = BAD_INPUT if word['code'] == BAD_INPUT else LOST
          self._end(code, word['message'], announce=True)

  def _judge(self) -> None:
    while not self._stopped.wait(self.period_s / 2):
      now = time.monotonic()
      if now - self._looked > self.timeout_s / 2:
        # This process itself stood still (a suspended machine): no verdict.
        self._answered = now
        self._heard = dict.fromkeys(self._heard, now)
      self._looked = now
      if now - self._answered > self.timeout_s:
        self._lost(0, now - self._answered)
      for process, heard in self._heard.items():
        if process != self._me and now - heard > self.timeout_s:
          self._lost(process, now - heard)

  def _lost(self, process: int, seconds: float) -> None:
    self._end(
      LOST,
      f'{self.name(process)} has not been heard of for {seconds:.0f} s; look '
      'at its log and its machine',
      announce=process != 0,  # the store is in process 0
    )

  def _coordinator_answers(self) -> bool:
    try:
      where = rendezvous.split_address(self._address)
      socket.create_connection(where, timeout=2).close()
      return True
    except OSError:
      return False

  def _catch_abort(self) -> None:
    """Gives jaxlib's abort() on the loss of process 0 a last line.

    A Python handler would run in the main thread, which abort() does not wait
    for; this one runs in the thread that aborts.
    """
    if self._me == 0:
      return
    libc = ctypes.CDLL(None)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def handler(number: int) -> None:
      del number
      if not self._stopped.is_set() and not self._coordinator_answers():
        self._end(
          LOST,
          f'{self.name(0)} is gone; look at its log and its machine',
          announce=False,
        )

    self._handler = kind(handler)  # must live as long as the process
    libc.signal.argtypes = [ctypes.c_int, kind]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), self._handler)
