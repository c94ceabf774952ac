"""The walls around a program: namespaces, a root of its own, Landlock, limits.

Two levels:
- `namespaces`: the supervisor becomes process 1 of new PID, mount, network,
  IPC and host-name namespaces (as root directly, otherwise through a user
  namespace). What the program sees of the file system is a read-only root with
  Python's library and the system's shared libraries, and one small writable
  folder in memory. Packages that are installed beside Python are not there.
- `limits`: no namespaces. The same filter of system calls keeps processes and
  the network away; Landlock, where the kernel has it, the files.

Every function raises `WallError`, which names the step that failed.
"""

import ctypes
import glob
import os
import resource
import struct
import sys

NOBODY = 65534
BOX = '/box'

_NEW = {'mount': 0x20000, 'host name': 0x4000000, 'IPC': 0x8000000}
_NEW |= {'process': 0x20000000, 'network': 0x40000000}
_NEW_USER = 0x10000000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_FROM_DESCRIPTOR = 4

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGKILL = 9

# Numbers that are the same on x86_64 and aarch64.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PIVOT_ROOT, _CAPSET, _SECCOMP = {
  'x86_64': (155, 126, 317),
  'aarch64': (41, 91, 277),
}[os.uname().machine]

# Landlock's rights; the higher ones came with versions 2 (refer), 3 (truncate).
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}

_OPEN_FILES = 64
# Room for the deep recursions of contest programs.
_STACK_BYTES = 64 << 20

_DEVICES = ('/dev/null', '/dev/zero', '/dev/random', '/dev/urandom')

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class WallError(Exception):
  """A step of building the walls failed; says which and why."""


def _checked(what: str, result: int) -> int:
  if result < 0:
    raise WallError(f'{what}: {os.strerror(ctypes.get_errno())}')
  return result


def _syscall(what: str, number: int, *arguments) -> int:
  longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
  return _checked(what, _libc.syscall(ctypes.c_long(number), *longs))


def _mount(source, target, kind, flags, options=None):
  texts = (t and t.encode() for t in (source, target, kind))
  longs = ctypes.c_ulong(flags), options and options.encode()
  _checked(f'mounting {target}', _libc.mount(*texts, *longs))


def _set_mount(descriptor: int, path: str, flags: int, attributes: int):
  _syscall(
    f'mount_setattr of {path}',
    _MOUNT_SETATTR,
    descriptor,
    path.encode(),
    flags,
    struct.pack('<QQQQ', attributes, 0, 0, 0),
    32,
  )


def enter_namespaces() -> None:
  """Leaves the machine's namespaces; the next fork is process 1 of the new.

  As root without a user namespace, so that it also works where those are
  turned off; otherwise with one in which only this user exists, as nobody.
  """
  flags = sum(_NEW.values())
  if os.geteuid() == 0 and _libc.unshare(flags) == 0:
    return
  user, group = os.geteuid(), os.getegid()
  _checked('new namespaces', _libc.unshare(flags | _NEW_USER))
  for name, text in (
    ('setgroups', 'deny'),
    ('uid_map', f'{NOBODY} {user} 1'),
    ('gid_map', f'{NOBODY} {group} 1'),
  ):
    try:
      with open(f'/proc/self/{name}', 'w') as file:
        file.write(text)
    except OSError as error:
      raise WallError(f'writing {name}: {error.strerror}') from error


def visible_paths() -> list[str]:
  """Folders and files that a Python program needs to read."""
  library = os.path.dirname(os.__file__)
  found = ['/lib', '/lib64', '/usr/lib', '/usr/lib64']
  found += [os.path.join(sys.base_prefix, d) for d in ('lib', 'lib64')]
  found += [os.path.dirname(library)]
  found += [p for p in sys.path if p.endswith('lib-dynload')]
  found += ['/etc/ld.so.cache', '/etc/localtime', '/usr/share/zoneinfo']
  kept = []
  for path in sorted(set(found)):
    # Sorted: a folder comes before what lies in it.
    inside = any(path.startswith(k + '/') for k in kept)
    if os.path.exists(path) and not inside:
      kept.append(path)
  return kept


def package_folders(paths: list[str]) -> list[str]:
  """Folders of installed packages below some paths: nobody's business."""
  ends = ('*-packages', 'python3*/*-packages')
  return [f for p in paths for end in ends for f in glob.glob(f'{p}/{end}')]


def build_root(paths: list[str], packages: dict[str, str]) -> None:
  """Makes the new root and moves into it; process 1 calls it once.

  Args:
    paths: what is shown of the machine, see `visible_paths`.
    packages: further things to show: where it is -> where it shall be.
  """
  _mount(None, '/', None, _MS_REC | _MS_PRIVATE)
  # Taken before anything is covered, so it does not matter where they are.
  shown = [(_clone(path), path, os.path.isdir(path)) for path in paths]
  shown += [(_clone(p), at, os.path.isdir(p)) for p, at in packages.items()]
  devices = [_clone(path, read_only=False) for path in _DEVICES]
  hidden = package_folders(paths)
  os.chdir('/proc')
  _mount('root', '/proc', 'tmpfs', _MS_NOSUID | _MS_NODEV, 'mode=755,size=1m')
  os.chdir('/proc')
  for folder in ('box', 'empty', 'dev'):
    os.mkdir(folder)
  for tree, path, is_folder in shown:
    _place(tree, path, is_folder)
  for tree, path in zip(devices, _DEVICES, strict=True):
    _place(tree, path, False)
  empty = _MS_BIND | _MS_NOSUID | _MS_NODEV
  for path in hidden:
    _mount('empty', path.lstrip('/'), None, empty)
    _set_mount(_AT_FDCWD, path.lstrip('/'), 0, _MS_RDONLY)
  _syscall('pivot_root', _PIVOT_ROOT, b'.', b'.')
  _checked('leaving the old root', _libc.umount2(b'.', _MNT_DETACH))
  os.chdir('/')
  _set_mount(_AT_FDCWD, '/', 0, _MS_RDONLY)


def _clone(path: str, read_only: bool = True) -> int:
  """A detached copy of the mounts at a path, read-only throughout."""
  tree = _syscall(
    f'open_tree of {path}',
    _OPEN_TREE,
    _AT_FDCWD,
    path.encode(),
    _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC,
  )
  if read_only:
    attributes = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    _set_mount(tree, '', _AT_EMPTY_PATH | _AT_RECURSIVE, attributes)
  return tree


def _place(tree: int, path: str, is_folder: bool) -> None:
  """Moves a detached tree to a path below the working folder."""
  path = path.lstrip('/')
  if is_folder:
    os.makedirs(path, exist_ok=True)
  else:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, 'x').close()
  _syscall(
    f'move_mount to {path}',
    _MOVE_MOUNT,
    tree,
    b'',
    _AT_FDCWD,
    path.encode(),
    _MOVE_FROM_DESCRIPTOR,
  )
  os.close(tree)


def fill_box(size: int) -> None:
  """Mounts a fresh writable folder in memory of `size` bytes."""
  _mount(
    'box',
    BOX,
    'tmpfs',
    _MS_NOSUID | _MS_NODEV | _MS_NOEXEC,
    f'size={size},nr_inodes=1024,mode=700,uid={NOBODY},gid={NOBODY}',
  )


def empty_box() -> None:
  """Throws the writable folder away with all that is in it."""
  _checked('emptying the folder', _libc.umount2(BOX.encode(), _MNT_DETACH))


def landlock(paths: list[str], box: str) -> int | None:
  """A Landlock rule set: reads of `paths`, anything in `box`, nothing else.

  Installed packages are left out: of a folder that holds some, its other
  entries are allowed one by one.

  Returns:
    Its descriptor, or None where the kernel has no Landlock.
  """
  version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_long(0), 1)
  if version < 1:
    return None
  rights = _ALL_RIGHTS[min(version, max(_ALL_RIGHTS))]
  rules = _syscall(
    'Landlock', _LANDLOCK_CREATE, struct.pack('<Q', rights), 8, 0
  )
  os.set_inheritable(rules, False)
  hidden = package_folders(paths)
  allowed = [p for path in paths for p in _apart_from(path, hidden)]
  for path in filter(os.path.isdir, paths):
    _allow(rules, path, _READ_DIR)
  for path in allowed + list(_DEVICES):
    reads = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
    _allow(rules, path, reads)
  writes = (_READ_FILE | _WRITE_FILE | _TRUNCATE) & rights
  _allow(rules, '/dev/null', writes)
  _allow(rules, box, rights)
  return rules


def _apart_from(path: str, hidden: list[str]) -> list[str]:
  """Paths that make up a folder without the hidden ones."""
  if path in hidden:
    return []
  if not any(h.startswith(path + '/') for h in hidden):
    return [path]
  entries = (os.path.join(path, name) for name in sorted(os.listdir(path)))
  return [p for entry in entries for p in _apart_from(entry, hidden)]


def _allow(rules: int, path: str, rights: int) -> None:
  try:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
  except OSError:
    return  # a dangling link
  rule = struct.pack('<Qi', rights, place)
  _syscall(f'Landlock rule of {path}', _LANDLOCK_ADD, rules, 1, rule, 0)
  os.close(place)


def die_with_parent() -> None:
  """The kernel kills this process when its parent ends."""
  _checked('prctl', _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))


def hide_memory(hidden: bool) -> None:
  """Whether processes of the same user are kept from reading this one."""
  _checked('prctl', _libc.prctl(_PR_SET_DUMPABLE, int(not hidden), 0, 0, 0))


def drop_rights(become_nobody: bool) -> None:
  """Gives up every capability for good, and root for nobody."""
  if become_nobody:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
  _checked('no_new_privs', _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
  # Version 3 of the interface: two words a set.
  header = struct.pack('<Ii', 0x20080522, 0)
  _syscall('capset', _CAPSET, header, bytes(24))


def restrict_files(rules: int) -> None:
  """Puts this process under a Landlock rule set for good."""
  _syscall('Landlock', _LANDLOCK_RESTRICT, rules, 0)


def install_filter(program: bytes) -> int:
  """Puts this process under a filter for good.

  Returns:
    The descriptor on which the supervisor is told of calls.
  """
  steps = ctypes.create_string_buffer(program, len(program))
  # struct sock_fprog: a length and a pointer.
  head = struct.pack('@HP', len(program) // 8, ctypes.addressof(steps))
  number = _SECCOMP
  set_filter, with_listener = 1, 1 << 3
  return _syscall('seccomp', number, set_filter, with_listener, head)


def set_limits(limits: dict) -> None:
  """The kernel's own limits on this process.

  Raises:
    WallError: a hard limit that this process came with is lower.
  """
  wanted = {
    'AS': limits['memory_bytes'],
    'FSIZE': limits['file_bytes'],
    'NOFILE': _OPEN_FILES,
    'CORE': 0,
    'STACK': _STACK_BYTES,
  }
  for name, value in wanted.items():
    kind = getattr(resource, f'RLIMIT_{name}')
    hard = resource.getrlimit(kind)[1]
    if name in ('NOFILE', 'STACK') and hard != resource.RLIM_INFINITY:
      value = min(value, hard)
    try:
      resource.setrlimit(kind, (value, value))
    except (ValueError, OSError) as error:
      raise WallError(
        f'RLIMIT_{name} cannot become {value}: the hard limit that this '
        f'process was started with is {hard}'
      ) from error


def read_text(pid: int, address: int, size: int = 4096) -> bytes:
  """A C string in the memory of a process; empty where it cannot be read."""
  # Page by page: a string may end right before memory that is not there.
  text = b''
  while len(text) < size:
    piece = min(4096 - (address + len(text)) % 4096, size - len(text))
    buffer = ctypes.create_string_buffer(piece)
    here = struct.pack('@PN', ctypes.addressof(buffer), piece)
    there = struct.pack('@PN', address + len(text), piece)
    one = ctypes.c_ulong(1)
    read = _libc.process_vm_readv(pid, here, one, there, one, ctypes.c_ulong(0))
    if read <= 0:
      return b''
    text += buffer.raw[:read]
    if b'\0' in text:
      return text[: text.index(b'\0')]
  return text
