"""What the kernel tells the supervisor: calls that the filter stopped.

The program waits inside its call until it is answered, so the supervisor can
look at it. What is decided here from memory (a path) another thread of the
program could change afterwards: such a call goes on to meet the read-only
root, or Landlock, as any other. Paths give failures their names; they are no
wall themselves.
"""

import fcntl
import os
import struct

from . import syscalls, walls

# ioctl numbers and structures of linux/seccomp.h.
_RECEIVE, _ANSWER, _IS_WAITING = 0xC0502100, 0xC0182101, 0x80082102
_NOTICE = struct.Struct('=QIIiIQ6Q')
_RESPONSE = struct.Struct('=QqiI')
_GO_ON = 1

_NO_FOLDER = 0xFFFFFFFFFFFFFF9C  # AT_FDCWD, also seen as 32 bits
_WRITABLE_DEVICES = ('/dev/null', '/dev/zero')


class Notices:
  """The stopped calls of one program.

  Args:
    listener: descriptor that the kernel tells on.
    box: the folder that may be written.
    threads: how many threads the program may start in all.
  """

  def __init__(self, listener: int, box: str, threads: int):
    self._listener = listener
    self._box = box
    self._threads_left = threads
    self._names = syscalls.names()

  def handle(self) -> tuple[str, str] | tuple[()] | None:
    """Takes one notice and lets the call go on where it may.

    Returns:
      (failure, detail) of a violation, () where all is well, None where the
      program is gone.
    """
    buffer = bytearray(_NOTICE.size)
    try:
      fcntl.ioctl(self._listener, _RECEIVE, buffer)
    except FileNotFoundError:
      return ()  # its thread has ended in between
    except OSError:
      return None
    identity, pid, _, number, _, _, *arguments = _NOTICE.unpack(buffer)
    name = self._names[number]
    found = self._judge(name, pid, arguments)
    try:
      if not found:
        answer = bytearray(_RESPONSE.pack(identity, 0, 0, _GO_ON))
        fcntl.ioctl(self._listener, _ANSWER, answer)
      elif name in syscalls.PATHS:
        fcntl.ioctl(self._listener, _IS_WAITING, struct.pack('=Q', identity))
    except FileNotFoundError:
      return ()  # ended while it was looked at: no path of its own was read
    return found

  def _judge(self, name, pid, arguments):
    if name == 'clone' and arguments[0] & syscalls.CLONE_THREAD:
      self._threads_left -= 1
      if self._threads_left >= 0:
        return ()
      return 'processes', 'too many threads'
    if name in syscalls.PROCESSES:
      return 'processes', f'tried {name}'
    if name in syscalls.NETWORK:
      return 'network', f'tried {name}'
    if name not in syscalls.PATHS:
      return 'files', f'tried {name}'
    for at, folder_at in syscalls.PATHS[name]:
      path = os.fsdecode(walls.read_text(pid, arguments[at]))
      if not path:
        # Nobody writes to no path; one that is hidden is not inside.
        return 'files', f'tried {name} of a path that is empty or unreadable'
      relative = not os.path.isabs(path)
      if relative and folder_at is not None:
        folder = arguments[folder_at]
        if folder & 0xFFFFFFFF != _NO_FOLDER & 0xFFFFFFFF:
          continue  # below a folder that it could open
      path = os.path.normpath(os.path.join(self._box, path))
      inside = path == self._box or path.startswith(self._box + '/')
      if not inside and path not in _WRITABLE_DEVICES:
        return 'files', f'tried {name} of {path[:200]}'
    return ()
