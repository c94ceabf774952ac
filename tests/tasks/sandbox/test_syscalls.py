"""The filter, run by an interpreter of ours; its numbers, by the kernel's."""

import os
import pathlib
import re
import struct

import pytest

from metastone_jax.tasks.sandbox.inside import syscalls

ALLOW, TELL, KILL = 0x7FFF0000, 0x7FC00000, 0x80000000
EPERM, EACCES, ENOSYS = 0x50001, 0x5000D, 0x50026
PID = 4321
MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}
HEADERS = {
  'x86_64': '/usr/include/x86_64-linux-gnu/asm/unistd_64.h',
  'aarch64': '/usr/include/asm-generic/unistd.h',
}


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch):
  column, architecture = MACHINES[request.param]
  monkeypatch.setattr(syscalls, '_COLUMN', column)
  monkeypatch.setattr(syscalls, '_ARCHITECTURE', architecture)
  syscalls._filter_template.cache_clear()
  yield request.param
  syscalls._filter_template.cache_clear()


def _decide(machine, number, *arguments, architecture=None):
  """What the filter says of a call: classic BPF, as in the kernel's manual."""
  if architecture is None:
    architecture = MACHINES[machine][1]
  values = (*arguments, *[0] * (6 - len(arguments)))
  data = struct.pack('<IIQ6Q', number, architecture, 0, *values)
  code = list(struct.iter_unpack('<HBBI', syscalls.filter_program(PID)))
  at, loaded = 0, 0
  while True:
    operation, true, false, value = code[at]
    at += 1
    if operation == 0x20:
      (loaded,) = struct.unpack_from('<I', data, value)
    elif operation == 0x06:
      return value
    else:
      test = {0x15: loaded == value, 0x35: loaded >= value}
      test[0x45] = bool(loaded & value)
      at += true if test[operation] else false


def test_numbers_are_the_kernels(machine):
  header = pathlib.Path(HEADERS[machine])
  if not header.exists():
    pytest.skip(f'needs {header}, of the C library')
  lines = re.findall(r'#define __NR(?:3264)?_(\w+)\s+(\d+)', header.read_text())
  numbers = {}
  for name, number in lines:
    numbers.setdefault(name, int(number))
  for name in syscalls._NUMBERS:
    number = syscalls.number(name)
    # Older headers do not know newer calls, which are the same on all machines.
    if name in numbers or (number or 0) < 424:
      assert number == numbers.get(name), name


def test_every_call_has_one_decision(machine):
  told = {'clone', 'execve', 'execveat', 'tkill', 'mkdirat', 'unlinkat'}
  told |= {
    'renameat2',
    'linkat',
    'symlinkat',
    'fchmod',
    'truncate',
    'utimensat',
  }
  refused = {'ptrace', 'unshare', 'mount', 'bpf', 'io_uring_setup', 'setns'}
  refused |= {'memfd_create', 'shmget', 'seccomp', 'process_vm_writev'}
  refused |= {'setpriority', 'pidfd_send_signal', 'open_by_handle_at'}
  for names, decision in ((told, TELL), (refused, EPERM)):
    for name in names:
      assert _decide(machine, syscalls.number(name)) == decision, name
  for name in ('clone3', 'openat2'):
    assert _decide(machine, syscalls.number(name)) == ENOSYS
  known = set(syscalls.names())
  for number in range(600):
    if number not in known:
      decision = _decide(machine, number)
      assert decision == (ALLOW if number <= 449 else ENOSYS), number


@pytest.mark.parametrize(
  'name, arguments, decision',
  [
    ('kill', (PID, 9), ALLOW),
    ('kill', (1, 9), TELL),
    ('kill', (0, 9), TELL),
    ('kill', (2**32 - 1, 9), TELL),
    ('kill', (2**64 - 1, 9), TELL),
    ('tgkill', (PID, PID, 6), ALLOW),
    ('tgkill', (1, 1, 9), TELL),
    ('socket', (1, 1, 0), EACCES),  # AF_UNIX
    ('socket', (2, 1, 0), TELL),
    ('socket', (10, 1, 0), TELL),
    ('socket', (16, 3, 0), TELL),
    ('socket', (40, 1, 0), TELL),  # vsock, which no namespace contains
    ('openat', (3, 0, os.O_RDONLY), ALLOW),
    ('openat', (3, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY), ALLOW),
    ('openat', (3, 0, os.O_WRONLY), TELL),
    ('openat', (3, 0, os.O_RDWR), TELL),
    ('openat', (3, 0, os.O_RDONLY | os.O_CREAT), TELL),
    ('openat', (3, 0, os.O_RDONLY | os.O_TRUNC), TELL),
    ('openat', (3, 0, 0o20000000), TELL),  # O_TMPFILE
    ('prctl', (15,), ALLOW),
    ('prctl', (1,), EPERM),
    ('prctl', (4,), EPERM),  # PR_SET_DUMPABLE
    ('prctl', (22,), EPERM),
    ('prlimit64', (0, 7), ALLOW),
    ('prlimit64', (PID, 7), ALLOW),
    ('prlimit64', (1, 7), EPERM),
    ('sched_setaffinity', (0,), ALLOW),
    ('sched_setaffinity', (1,), EPERM),
    ('fcntl', (3, 4), ALLOW),
    ('fcntl', (3, 8), EPERM),
    ('fcntl', (3, 10), EPERM),
    ('fcntl', (3, 15), EPERM),
    ('ioctl', (3, 0x5401), ALLOW),
    ('ioctl', (3, 0x5412), EPERM),
  ],
)
def test_decisions_by_argument(machine, name, arguments, decision):
  assert _decide(machine, syscalls.number(name), *arguments) == decision


def test_calls_by_path_of_x86(machine):
  if machine != 'x86_64':
    pytest.skip('aarch64 has only the calls with a folder')
  assert _decide(machine, syscalls.number('open'), 0, os.O_RDONLY) == ALLOW
  assert _decide(machine, syscalls.number('open'), 0, os.O_WRONLY) == TELL
  for name in ('creat', 'fork', 'vfork', 'mkdir', 'rename', 'chmod', 'link'):
    assert _decide(machine, syscalls.number(name)) == TELL, name


def test_other_architectures_are_killed(machine):
  assert _decide(machine, 39, architecture=0x40000003) == KILL
  assert _decide(machine, 0x40000000 | 39) == ENOSYS  # x32
