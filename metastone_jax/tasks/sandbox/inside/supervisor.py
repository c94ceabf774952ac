"""The process that watches: builds the walls, runs programs, names their ends.

It lives as long as the channel to the framework is open, and takes one request
at a time. Each program is a fork of it. With namespaces it is process 1 of
theirs, so the kernel ends everything inside with it; it ends itself when the
channel closes, whatever became of the other side.

Requests, as frames: `start` (once), `run` a whole program, `load` one and
`call` a function of it any number of times, `drop` it. Each gets one answer.
"""

import contextlib
import fcntl
import gc
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time

from . import child, notices, syscalls, walls, wire

# Loaded before the first fork: what programs of contests import.
_WARM = (
  'array ast bisect collections copy dataclasses datetime decimal fractions '
  'functools hashlib heapq io itertools math operator queue random re '
  'statistics string textwrap typing'
).split()

_STDERR_KEPT = 4000
_READ = 1 << 16
_ENDED_BY_SYSTEM = 'killed by the system, which was out of memory'
# A process that dies of a signal with this share of its memory in use has most
# likely died of that.
_NEAR_LIMIT = 0.8


class Level:
  """What every program of this supervisor has around it.

  Attributes:
    isolated: whether there are namespaces.
    nobody: whether programs must change their user, for this one is root.
    box: the writable folder.
    rules: descriptor of a Landlock rule set, or None.
    path: where programs import from.
  """

  def __init__(self, request: dict):
    self.isolated = request['isolation'] == 'namespaces'
    self.limits = request['limits']
    self.rules = None
    self.path = sys.path[1:]  # without what these files are imported from
    self._folder = None
    shown = walls.visible_paths()
    packages = request['packages']  # name -> where it is
    if self.isolated:
      at = {p: f'/packages/{name}' for name, p in packages.items()}
      walls.build_root(shown, at)
      self.box = walls.BOX
      walls.fill_box(self.limits['file_bytes'])
      self.path.append('/packages')
    else:
      self._folder = request['folder']
      self.box = os.path.join(self._folder, 'box')
      links = os.path.join(self._folder, 'packages')
      os.mkdir(self.box)
      os.mkdir(links)
      for name, path in packages.items():
        os.symlink(path, os.path.join(links, name))
      shown = [*shown, links, *packages.values()]
      self.rules = walls.landlock(shown, self.box)
      self.path.append(links)
    # A user namespace has one user; without one, root becomes nobody.
    self.nobody = self.isolated and os.geteuid() == 0
    walls.hide_memory(True)

  def clean(self) -> None:
    """Nothing that a program left behind meets the next one."""
    if self.isolated:
      with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
      with contextlib.suppress(ChildProcessError):
        while True:
          os.waitpid(-1, 0)
      if os.listdir(self.box):
        walls.empty_box()
        walls.fill_box(self.limits['file_bytes'])
    else:
      for entry in os.scandir(self.box):
        if entry.is_dir(follow_symlinks=False):
          shutil.rmtree(entry.path)
        else:
          os.unlink(entry.path)

  def remove(self) -> None:
    """At the end: the folder on disk, where there is one."""
    if self._folder:
      shutil.rmtree(self._folder, ignore_errors=True)


class Program:
  """One program under watch."""

  def __init__(self, job: dict, level: Level, channel: socket.socket):
    self._limits = job['limits']
    self._level = level
    self._channel = channel
    self._failure = self._detail = ''
    self._stdout, self._stderr = bytearray(), bytearray()
    self._stderr_seen = 0
    self._reports, self._to_send = bytearray(), b''
    self._loaded, self._value = False, None
    self._exit_code = None
    self.alive = True
    self._begin()
    self._fork(job)

  def _fork(self, job) -> None:
    stdin = _stdin_file(job['stdin'])
    ends = {n: os.pipe() for n in ('stdout', 'stderr', 'calls', 'reports')}
    ours, theirs = socket.socketpair()
    self._pid = os.fork()
    if not self._pid:
      descriptors = {n: pair[1] for n, pair in ends.items()}
      descriptors['calls'] = ends['calls'][0]
      descriptors.update(stdin=stdin, listener=theirs.fileno())
      child.become(job, descriptors, self._level)
    theirs.close()
    os.close(stdin)
    self._open = {n: pair[0] for n, pair in ends.items()}
    self._open['calls'] = ends['calls'][1]
    for name, (read, write) in ends.items():
      os.close(read if name == 'calls' else write)
    for descriptor in self._open.values():
      os.set_blocking(descriptor, False)
    self._open['process'] = os.pidfd_open(self._pid)
    listener = wire.take_descriptor(ours)
    ours.close()
    self._poll = select.poll()
    # Nothing is said while a program runs: an event means that the owner went.
    self._poll.register(self._channel, select.POLLRDHUP)
    if listener is None:
      # It has not come as far as the program: whatever it says is our own.
      self._end()
      raise walls.WallError(self._detail or 'a program could not be started')
    self._notices = notices.Notices(
      listener, self._level.box, self._limits['threads']
    )
    self._open['listener'] = listener
    for name, descriptor in self._open.items():
      if name != 'calls':
        self._poll.register(descriptor, select.POLLIN)

  def wait_for_end(self) -> None:
    """Until it has ended, by itself or by a limit."""
    self._pump(lambda: False)

  def wait_until_loaded(self) -> None:
    """Until it can be called."""
    self._pump(lambda: self._loaded)

  def call(self, arguments: str) -> None:
    """Hands it the arguments of a call and waits for the value."""
    self._begin()
    self._value = None
    if not self.alive:
      return
    data = json.dumps({'arguments': arguments}).encode()
    self._to_send = wire.frame(data)
    self._poll.register(self._open['calls'], select.POLLOUT)
    self._pump(lambda: self._value is not None)

  def stop(self) -> None:
    """Ends it without a verdict."""
    if self.alive:
      self._kill()
      self._end()

  def answer(self) -> dict:
    """What is known of it, for the other side."""
    return {
      'failure': self._failure,
      'detail': self._detail,
      'exit_code': self._exit_code,
      'stdout': self._stdout.decode('utf-8', 'replace'),
      'stderr': self._stderr[-_STDERR_KEPT:].decode('utf-8', 'replace'),
      'seconds': time.monotonic() - self._began,
      'cpu_seconds': self._cpu() - self._cpu_began,
      'value': self._value,
    }

  def _begin(self) -> None:
    """Starts the clocks of a run or a call."""
    self._began = time.monotonic()
    self._cpu_began = self._cpu()

  def _cpu(self) -> float:
    """Seconds of processor time that it has used."""
    if not hasattr(self, '_pid'):
      return 0.0
    if not self.alive:
      return self._usage.ru_utime + self._usage.ru_stime
    # The kernel's clock number for the processor time of a process.
    return time.clock_gettime((~self._pid << 3) | 2)

  def _pump(self, done) -> None:
    """Handles events until `done()`, the end of the program or of its time."""
    while self.alive and not done():
      wall = self._limits['wall_seconds'] - (time.monotonic() - self._began)
      cpu = self._limits['cpu_seconds'] - (self._cpu() - self._cpu_began)
      if wall <= 0 or cpu <= 0:
        kind = 'wall' if wall <= 0 else 'processor'
        limit = self._limits['wall_seconds' if wall <= 0 else 'cpu_seconds']
        self._violation('timeout', f'over {limit:g} s of {kind} time')
        return
      # Threads may use up processor time faster than time goes by.
      events = self._poll.poll(1000 * min(wall, max(cpu / 2, 0.002)))
      names = {descriptor: name for name, descriptor in self._open.items()}
      for descriptor, _ in events:
        if not self.alive:
          return
        name = names.get(descriptor, 'owner')
        if name == 'owner':
          self.stop()
        elif name == 'process':
          self._end()
        elif name == 'listener':
          self._handle_notice()
        elif name == 'calls':
          self._write_call()
        else:
          self._read(name)

  def _handle_notice(self) -> None:
    found = self._notices.handle()
    if found is None:
      self._forget('listener')
    elif found:
      self._violation(*found)

  def _write_call(self) -> None:
    try:
      sent = os.write(self._open['calls'], self._to_send)
      self._to_send = self._to_send[sent:]
    except BlockingIOError:
      return
    except BrokenPipeError:
      self._to_send = b''
    if not self._to_send:
      self._poll.unregister(self._open['calls'])

  def _read(self, name: str) -> bool:
    """Takes what is in a pipe; whether there may be more."""
    try:
      data = os.read(self._open[name], _READ)
    except BlockingIOError:
      return False
    if not data:
      self._forget(name)
      return False
    if name == 'stdout':
      self._stdout += data
    elif name == 'stderr':
      self._stderr_seen += len(data)
      self._stderr = (self._stderr + data)[-_STDERR_KEPT:]
    else:
      self._reports += data
      self._parse_reports()
    largest = max(len(self._stdout), self._stderr_seen, len(self._reports))
    if largest > self._limits['output_bytes']:
      self._violation(
        'output', f'over {self._limits["output_bytes"]} bytes of output'
      )
      return False
    return True

  def _parse_reports(self) -> None:
    start = wire.LENGTH_BYTES
    while len(self._reports) >= start:
      end = start + int.from_bytes(self._reports[:start], 'little')
      if len(self._reports) < end:
        return
      kind = self._reports[start : start + 1]
      text = self._reports[start + 1 : end].decode('utf-8', 'replace')
      del self._reports[:end]
      if kind == b'R':
        self._loaded = True
      elif kind == b'V' and self._value is None:
        self._value = text
      elif kind == b'E' and not self._failure:
        name, _, detail = text.partition('\0')
        known = name in ('exception', 'memory', 'files')
        self._failure, self._detail = name if known else 'crash', detail

  def _violation(self, failure: str, detail: str) -> None:
    """Kills it and keeps why."""
    if self.alive and self._failure in ('', 'exception'):
      self._failure, self._detail = failure, detail
    if self.alive:
      self._kill()
      self._end()

  def _kill(self) -> None:
    os.kill(self._pid, signal.SIGKILL)

  def _forget(self, name: str) -> None:
    descriptor = self._open.pop(name)
    with contextlib.suppress(KeyError):
      self._poll.unregister(descriptor)
    os.close(descriptor)

  def _end(self) -> None:
    """Takes leave of a process that has ended or has just been killed."""
    _, status, self._usage = os.wait4(self._pid, 0)
    self.alive = False
    for name in ('stdout', 'stderr', 'reports'):
      while name in self._open and self._read(name):
        pass
    for name in list(self._open):
      self._forget(name)
    self._exit_code = os.waitstatus_to_exitcode(status)
    if not self._failure and self._exit_code:
      self._failure, self._detail = self._name_of_status(self._exit_code)
    self._level.clean()

  def _name_of_status(self, code: int) -> tuple[str, str]:
    if code > 0:
      return 'exception', f'exit status {code}'
    if -code == signal.SIGXFSZ:
      return 'files', f'a file over {self._limits["file_bytes"]} bytes'
    if -code == signal.SIGKILL:
      return 'memory', _ENDED_BY_SYSTEM
    peak = self._usage.ru_maxrss * 1024
    if peak > _NEAR_LIMIT * self._limits['memory_bytes']:
      return 'memory', f'{signal.Signals(-code).name} near the memory limit'
    return 'crash', f'ended by {signal.Signals(-code).name}'


def _stdin_file(text: str) -> int:
  """The text as a file in memory that can be read and nothing else."""
  descriptor = os.memfd_create('stdin', os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
  with open(descriptor, 'wb', closefd=False) as file:
    file.write(text.encode('utf-8', 'surrogateescape'))
  os.lseek(descriptor, 0, os.SEEK_SET)
  add_seals, seals = 1033, 0b1111  # F_ADD_SEALS: seal, shrink, grow, write
  fcntl.fcntl(descriptor, add_seals, seals)
  return descriptor


def main() -> None:
  """Serves the channel until it closes."""
  channel = socket.socket(fileno=int(sys.argv[2]))
  request = wire.receive(channel)
  if request is None:
    return
  try:
    level = _start(channel, request)
  except walls.WallError as error:
    wire.send(channel, {'error': str(error)})
    return
  wire.send(channel, {'landlock': level.rules is not None})
  try:
    _serve(channel, level)
  finally:
    level.remove()


def _start(channel, request) -> Level:
  """Becomes the process behind the walls; the one before them waits for it."""
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
  with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w') as f:
    f.write('1000')  # if the machine runs out of memory: this one first
  for name in _WARM:
    __import__(name)
  sys.dont_write_bytecode = True
  if request['isolation'] == 'namespaces':
    walls.enter_namespaces()
    inner = os.fork()
    if inner:
      channel.close()
      _, status = os.waitpid(inner, 0)
      os._exit(min(abs(os.waitstatus_to_exitcode(status)), 255))
    walls.die_with_parent()
  syscalls.filter_program(0)  # made once, kept
  gc.freeze()
  return Level(request)


def _serve(channel, level: Level) -> None:
  program = None
  while (request := wire.receive(channel)) is not None:
    action = request['do']
    try:
      if action == 'call':
        program.call(request['arguments'])
      else:
        if program is not None:
          program.stop()
        program = None
        if action in ('run', 'load'):
          program = Program(request, level, channel)
          if action == 'run':
            program.wait_for_end()
          else:
            program.wait_until_loaded()
      answer = {} if program is None else program.answer()
    except walls.WallError as error:
      answer = {'error': str(error)}
    try:
      wire.send(channel, answer)
    except BrokenPipeError:
      break
  if program is not None:
    program.stop()
