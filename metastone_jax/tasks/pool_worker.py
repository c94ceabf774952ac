"""The other end of `pool.py`: a process that checks one response at a time.

It reads a message, answers it, and reads the next; it ends with the pipe, and
on Linux at once with the thread that started it. Messages in are pickled (they
come from the own program); answers are JSON, so that nothing that a response
has brought a verifier to do can run code in the program itself.

Imports of this file are part of every start: no JAX, nothing heavy.
"""

import ctypes
import json
import os
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from metastone_jax import errors

# First byte of a message.
VERIFIER, CHECK = b'V', b'C'

_PR_SET_PDEATHSIG = 1


def main(fd: int, parent: int, memory_bytes: int) -> None:
  """Serves the pipe until it closes.

  Args:
    fd: of the pipe.
    parent: process id of the program.
    memory_bytes: address space that this process may have; 0 = no limit.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's
  _end_with(parent)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if memory_bytes:
    # The soft limit alone: a sandbox below may set its own.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
  connection = Connection(fd)
  verifiers = []
  while True:
    try:
      message = connection.recv_bytes()
    except (EOFError, OSError):
      return
    connection.send_bytes(json.dumps(_answer(message, verifiers)).encode())


def _answer(message: bytes, verifiers: list) -> dict:
  """What a message comes to; see `pool.Worker.ask`."""
  try:
    content = pickle.loads(message[1:])
    if message[:1] == VERIFIER:
      content.prepare()
      verifiers.append(content)
      return {'ready': True}
    index, problem, text = content
    verdict = verifiers[index].verify(problem, text)
    return {
      'verdict': [
        float(verdict.reward),
        bool(verdict.parsed),
        str(verdict.answer_key),
        str(verdict.failure),
        str(verdict.reason),
      ]
    }
  except MemoryError:
    return {'memory': True}
  except errors.UserError as error:
    return {'refused': str(error)}
  except BaseException as error:  # SystemExit and the like, too
    return {
      'raised': type(error).__name__,
      'trace': traceback.format_exc(limit=-12),
    }


def _end_with(parent: int) -> None:
  """Ends this process when the one that started it does, however it does."""
  if sys.platform == 'linux':
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  if os.getppid() != parent:  # it was quicker
    os._exit(1)
