"""The filter of system calls: what a program may ask of the kernel.

A filter is a small program that the kernel runs before every system call. It
lets a call pass, refuses it with an error, or stops the caller and tells the
supervisor, who then knows by name what the program tried. Only register
values are decided on here, never memory that the program could still change.

Numbers are those of the kernel's headers (asm/unistd_64.h and
asm-generic/unistd.h); calls that are newer than `_NEWEST` do not exist here.
"""

import functools
import os
import struct

# Each group: name -> (x86_64, aarch64); None where a machine has no such call.
# Told to the supervisor:
_PROCESSES = {
  'clone': (56, 220),
  'fork': (57, None),
  'vfork': (58, None),
  'execve': (59, 221),
  'execveat': (322, 281),
  'kill': (62, 129),
  'tkill': (200, 130),
  'tgkill': (234, 131),
}
_NETWORK = {
  'socket': (41, 198),
}
# Files by path, judged by where they are.
_PLACES = {
  'open': (2, None),
  'creat': (85, None),
  'openat': (257, 56),
  'mkdir': (83, None),
  'mkdirat': (258, 34),
  'rmdir': (84, None),
  'unlink': (87, None),
  'unlinkat': (263, 35),
  'rename': (82, None),
  'renameat': (264, 38),
  'renameat2': (316, 276),
}
# Files, wherever they are.
_FILES = {
  'link': (86, None),
  'linkat': (265, 37),
  'symlink': (88, None),
  'symlinkat': (266, 36),
  'mknod': (133, None),
  'mknodat': (259, 33),
  'truncate': (76, 45),
  'chmod': (90, None),
  'fchmod': (91, 52),
  'fchmodat': (268, 53),
  'chown': (92, None),
  'lchown': (94, None),
  'fchown': (93, 55),
  'fchownat': (260, 54),
  'utime': (132, None),
  'utimes': (235, None),
  'utimensat': (280, 88),
  'futimesat': (261, None),
  'setxattr': (188, 5),
  'lsetxattr': (189, 6),
  'fsetxattr': (190, 7),
  'removexattr': (197, 14),
  'lremovexattr': (198, 15),
  'fremovexattr': (199, 16),
}
# Decided by an argument.
_ARGUMENTS = {
  'prctl': (157, 167),
  'prlimit64': (302, 261),
  'sched_setparam': (142, 118),
  'sched_setscheduler': (144, 119),
  'sched_setaffinity': (203, 122),
  'sched_setattr': (314, 274),
  'fcntl': (72, 25),
  'ioctl': (16, 29),
}
# As if the kernel were older: the C library then takes the older call, whose
# flags are in registers.
_TOO_NEW = {
  'clone3': (435, 435),
  'openat2': (437, 437),
}
_REFUSED = {
  # Memory that no limit counts:
  'memfd_create': (319, 279),
  'memfd_secret': (447, 447),
  'shmget': (29, 194),
  'shmat': (30, 196),
  'shmctl': (31, 195),
  'semget': (64, 190),
  'msgget': (68, 186),
  'mq_open': (240, 180),
  # Other processes:
  'ptrace': (101, 117),
  'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271),
  'process_madvise': (440, 440),
  'process_mrelease': (448, 448),
  'kcmp': (312, 272),
  'pidfd_open': (434, 434),
  'pidfd_getfd': (438, 438),
  'pidfd_send_signal': (424, 424),
  'rt_sigqueueinfo': (129, 138),
  'rt_tgsigqueueinfo': (297, 240),
  'setpriority': (141, 140),
  'ioprio_set': (251, 30),
  'migrate_pages': (256, 238),
  'move_pages': (279, 239),
  # The walls themselves:
  'seccomp': (317, 277),
  'unshare': (272, 97),
  'setns': (308, 268),
  'mount': (165, 40),
  'umount2': (166, 39),
  'pivot_root': (155, 41),
  'chroot': (161, 51),
  'open_tree': (428, 428),
  'move_mount': (429, 429),
  'fsopen': (430, 430),
  'fsconfig': (431, 431),
  'fsmount': (432, 432),
  'fspick': (433, 433),
  'mount_setattr': (442, 442),
  'name_to_handle_at': (303, 264),
  'open_by_handle_at': (304, 265),
  'fanotify_init': (300, 262),
  # Large and rarely used parts of the kernel:
  'bpf': (321, 280),
  'perf_event_open': (298, 241),
  'userfaultfd': (323, 282),
  'io_uring_setup': (425, 425),
  'io_uring_enter': (426, 426),
  'io_uring_register': (427, 427),
  'add_key': (248, 217),
  'request_key': (249, 218),
  'keyctl': (250, 219),
  'personality': (135, 92),
  'modify_ldt': (154, None),
  'iopl': (172, None),
  'ioperm': (173, None),
  'quotactl': (179, 60),
  'quotactl_fd': (443, 443),
  'syslog': (103, 116),
  'acct': (163, 89),
  'swapon': (167, 224),
  'swapoff': (168, 225),
  'reboot': (169, 142),
  'init_module': (175, 105),
  'finit_module': (313, 273),
  'delete_module': (176, 106),
  'kexec_load': (246, 104),
  'kexec_file_load': (320, 294),
  'sethostname': (170, 161),
  'setdomainname': (171, 162),
  'settimeofday': (164, 170),
  'clock_settime': (227, 112),
  'adjtimex': (159, 171),
  'clock_adjtime': (305, 266),
  'vhangup': (153, 58),
}
_NUMBERS = {
  **_PROCESSES,
  **_NETWORK,
  **_PLACES,
  **_FILES,
  **_ARGUMENTS,
  **_TOO_NEW,
  **_REFUSED,
}
_NEWEST = 449

# call -> (arguments that hold a path, each with the argument of the folder
# that a relative path starts from; None: the working folder).
PATHS = {
  'open': ((0, None),),
  'creat': ((0, None),),
  'openat': ((1, 0),),
  'mkdir': ((0, None),),
  'mkdirat': ((1, 0),),
  'rmdir': ((0, None),),
  'unlink': ((0, None),),
  'unlinkat': ((1, 0),),
  'rename': ((0, None), (1, None)),
  'renameat': ((1, 0), (3, 2)),
  'renameat2': ((1, 0), (3, 2)),
}
_FLAGS_AT = {'open': 1, 'openat': 2}
PROCESSES = frozenset(_PROCESSES)
NETWORK = frozenset(_NETWORK)

CLONE_THREAD = 0x10000
_AF_UNIX = 1
_O_TMPFILE = 0o20000000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | _O_TMPFILE
# Options that would undo a wall, the end with the supervisor (1), or that the
# supervisor can read what the calls point at (4, PR_SET_DUMPABLE).
_PRCTL_REFUSED = (1, 4, 22, 35, 36, 0x59616D61)
# Commands by which the kernel would send signals to others in our name
# (F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP), or type at a
# terminal (TIOCSTI).
_FCNTL_REFUSED = (8, 10, 15)
_IOCTL_REFUSED = (0x8901, 0x8902, 0x5412)

# Column of the table, and what the kernel calls the machine.
_COLUMN, _ARCHITECTURE = {
  'x86_64': (0, 0xC000003E),
  'aarch64': (1, 0xC00000B7),
}[os.uname().machine]

# Stands in the filter for the process that it is for.
_OWN_PID = 0x7E57_9A1D

_ALLOW = 0x7FFF0000
_TELL = 0x7FC00000
_KILL = 0x80000000
_EPERM, _EACCES, _ENOSYS = (0x00050000 | code for code in (1, 13, 38))

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def number(name: str) -> int | None:
  """The number of a call on this machine; None where it has none."""
  return _NUMBERS[name][_COLUMN]


def names() -> dict[int, str]:
  """Number -> name, of the calls in the table."""
  return {number(n): n for n in _NUMBERS if number(n) is not None}


def filter_program(pid: int) -> bytes:
  """The filter for a process, as an array of `struct sock_filter`.

  Args:
    pid: of the process it is for, in its own PID namespace: signals may be
      sent to itself alone.
  """
  own = struct.pack('<I', pid)
  return _filter_template().replace(struct.pack('<I', _OWN_PID), own)


@functools.cache
def _filter_template() -> bytes:
  code = [
    _step(_LOAD, 4),
    _step(_EQUAL, _ARCHITECTURE, 1, 0),
    _step(_RETURN, _KILL),
    _step(_LOAD, 0),
    # Also the x32 calls of x86_64, which have bit 30 set.
    _step(_AT_LEAST, _NEWEST + 1, 0, 1),
    _step(_RETURN, _ENOSYS),
  ]
  for name in _NUMBERS:
    if number(name) is not None:
      body = _body(name)
      code += [_step(_EQUAL, number(name), 0, len(body)), *body]
  return b''.join([*code, _step(_RETURN, _ALLOW)])


def _body(name: str) -> list[bytes]:
  """What is done with one call; its last step always returns."""
  if name in ('kill', 'tgkill'):
    return _choose(0, (_OWN_PID,), _ALLOW, _TELL)
  if name == 'socket':
    # The C library asks a local daemon for names and takes no for an answer.
    return _choose(0, (_AF_UNIX,), _EACCES, _TELL)
  if name in _FLAGS_AT:
    return [
      _argument(_FLAGS_AT[name]),
      _step(_ANY_BIT, _WRITES, 0, 1),
      _step(_RETURN, _TELL),
      _step(_RETURN, _ALLOW),
    ]
  if name == 'prctl':
    return _choose(0, _PRCTL_REFUSED, _EPERM, _ALLOW)
  if name == 'fcntl':
    return _choose(1, _FCNTL_REFUSED, _EPERM, _ALLOW)
  if name == 'ioctl':
    return _choose(1, _IOCTL_REFUSED, _EPERM, _ALLOW)
  if name == 'prlimit64' or name.startswith('sched_'):
    return _choose(0, (0, _OWN_PID), _ALLOW, _EPERM)
  if name in _TOO_NEW:
    return [_step(_RETURN, _ENOSYS)]
  return [_step(_RETURN, _EPERM if name in _REFUSED else _TELL)]


def _choose(argument: int, values, then: int, otherwise: int) -> list[bytes]:
  """Returns `then` where the low half of an argument is one of the values."""
  tests = [
    _step(_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)
  ]
  ends = [_step(_RETURN, otherwise), _step(_RETURN, then)]
  return [_argument(argument), *tests, *ends]


def _argument(index: int) -> bytes:
  return _step(_LOAD, 16 + 8 * index)


def _step(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
  return struct.pack('<HBBI', code, true, false, value)
