"""The watched process: behind its walls it becomes the program.

It is a fork of the supervisor, so Python and the usual modules are loaded
already. What it tells the supervisor through its report pipe are frames of one
letter and text: `R` loaded, `V` the value of a call, `E` a failure's name and
what happened. A program may write there too; all it could gain is another name
for its own failure, or a value that it had to know anyway.
"""

import _sitebuiltins
import atexit
import builtins
import errno
import importlib
import io
import json
import os
import signal
import sys
import threading
import traceback
import types

from . import syscalls, walls, wire

CALLS, REPORTS = 3, 4
_LISTENER, _RULES = 5, 6
_RECURSION_LIMIT = 50_000
_MAX_MESSAGE = 1000

# Errors of a file operation that ran into a wall.
_FILE_ERRORS = (errno.EROFS, errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
_OUTSIDE_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOENT)


def become(job: dict, descriptors: dict[str, int], level) -> None:
  """Turns this freshly forked process into the program; never returns.

  Args:
    job: `source`, `limits`, `call` (the name of a function, or None to run a
      whole program) and `star_imports`.
    descriptors: `stdin`, `stdout`, `stderr`, `calls`, `reports`, `listener`:
      what becomes 0 to 5.
    level: the supervisor's `Level`.
  """
  status = 1
  try:
    _enter(job, descriptors, level)
    status = _program(job)
  except walls.WallError as error:
    _report(b'E', f'sandbox\0{error}')
  except BaseException as error:  # of this file: a bug, told as what it is
    _report(b'E', f'sandbox\0{type(error).__name__}: {error}')
  finally:
    os._exit(status)


def _enter(job, descriptors, level) -> None:
  """Descriptors, limits, rights, filter: in this order."""
  names = ('stdin', 'stdout', 'stderr', 'calls', 'reports', 'listener')
  wanted = [descriptors[name] for name in names]
  if level.rules is not None:
    wanted.append(level.rules)
  # Out of the way first: a number may be in use by another that is wanted.
  high = [os.dup2(d, 100 + i) for i, d in enumerate(wanted)]
  for i, descriptor in enumerate(high):
    os.dup2(descriptor, i, inheritable=False)
  os.closerange(len(wanted), 1 << 20)
  for name in (signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT):
    signal.signal(name, signal.SIG_DFL)
  os.chdir(level.box)
  sys.path[:] = level.path
  os.environ['HOME'] = os.environ['TMPDIR'] = level.box
  walls.set_limits(job['limits'])
  walls.drop_rights(level.nobody)
  walls.hide_memory(False)
  walls.die_with_parent()
  if level.rules is not None:
    walls.restrict_files(_RULES)
    os.close(_RULES)
  listener = walls.install_filter(syscalls.filter_program(os.getpid()))
  wire.give_descriptor(_LISTENER, listener)
  os.close(listener)
  os.close(_LISTENER)


def _program(job) -> int:
  """Runs the program; its exit status."""
  _standard_streams()
  threading.excepthook = _thread_failed
  sys.setrecursionlimit(_RECURSION_LIMIT)
  main = types.ModuleType('__main__')
  sys.modules['__main__'] = main
  sys.argv[:] = ['program.py']
  builtins.exit = main.exit = _sitebuiltins.Quitter('exit', 'Ctrl-D')
  builtins.quit = main.quit = _sitebuiltins.Quitter('quit', 'Ctrl-D')
  modules = {n: importlib.import_module(n) for n in job['star_imports']}
  for module in modules.values():
    for item in getattr(module, '__all__', None) or dir(module):
      if not item.startswith('_'):
        main.__dict__[item] = getattr(module, item)
  # The modules last: `datetime` is the module, as after a plain import.
  main.__dict__.update(modules)
  main.__dict__.update(__name__='__main__', __builtins__=builtins)
  status = 0
  try:
    exec(compile(job['source'], 'program.py', 'exec'), main.__dict__)
    if job['call']:
      _serve(_find(main, job['call']))
  except SystemExit as error:
    status = _exit_status(error.code)
    if error.code is not None and not isinstance(error.code, int):
      print(error.code, file=sys.stderr)
  except BaseException as error:
    _failed(error)
    status = 1
  try:
    for thread in threading.enumerate():
      if thread is not threading.current_thread() and not thread.daemon:
        thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
      stream.flush()
  except BaseException as error:
    _failed(error)
    status = 1
  return status


def _standard_streams() -> None:
  def stream(descriptor, mode):
    return open(
      descriptor,
      mode,
      encoding='utf-8',
      errors='surrogateescape',
      closefd=False,
    )

  sys.stdin = sys.__stdin__ = stream(0, 'r')
  sys.stdout = sys.__stdout__ = stream(1, 'w')
  sys.stderr = sys.__stderr__ = io.TextIOWrapper(
    open(2, 'wb', buffering=0, closefd=False),
    encoding='utf-8',
    errors='backslashreplace',
    write_through=True,
  )


def _find(main, name):
  """The function to call: a method of `Solution`, or one of the module."""
  solution = getattr(main, 'Solution', None)
  if isinstance(solution, type) and hasattr(solution, name):
    return getattr(solution(), name)
  return getattr(main, name)


def _serve(function) -> None:
  """Answers calls until there are no more."""
  _report(b'R', '')
  with open(CALLS, 'rb') as calls:
    while length := calls.read(wire.LENGTH_BYTES):
      request = json.loads(calls.read(int.from_bytes(length, 'little')))
      arguments, keywords = wire.decode(request['arguments'])
      _report(b'V', wire.encode(function(*arguments, **keywords)))


def _exit_status(code) -> int:
  if code is None:
    return 0
  return code & 0xFF if isinstance(code, int) else 1


def _thread_failed(details) -> None:
  threading.__excepthook__(details)
  name = _failure_name(details.exc_value)
  if name != 'exception':
    _report(b'E', f'{name}\0{details.exc_type.__name__}')


def _failed(error: BaseException) -> None:
  """Names what ended the program, and prints its traceback as Python does."""
  name = _failure_name(error)
  try:
    text = ''.join(traceback.format_exception_only(error))[-_MAX_MESSAGE:]
  except BaseException:  # its own __str__ may fail
    text = type(error).__name__
  _report(b'E', f'{name}\0{text.strip()}')
  try:
    sys.stdout.flush()
    sys.stderr.write(''.join(traceback.format_exception(error, limit=-5)))
  except BaseException:
    pass  # what was to be said is said


def _failure_name(error) -> str:
  if isinstance(error, MemoryError):
    return 'memory'
  if isinstance(error, OSError):
    path = error.filename
    outside = isinstance(path, str) and os.path.isabs(path)
    outside = outside and not path.startswith(os.environ['HOME'] + '/')
    if error.errno in _FILE_ERRORS:
      return 'files'
    if error.errno in _OUTSIDE_ERRORS and outside:
      return 'files'
  return 'exception'


def _report(kind: bytes, text: str) -> None:
  data = wire.frame(kind + text.encode('utf-8', 'backslashreplace'))
  try:
    while data:
      data = data[os.write(REPORTS, data) :]
  except OSError:
    os._exit(1)  # the program has closed it
