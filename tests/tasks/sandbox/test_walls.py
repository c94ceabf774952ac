"""Each wall by itself, without the filter in front of it."""

import json
import os
import pathlib
import subprocess

import pytest

from metastone_jax.tasks import sandbox
from metastone_jax.tasks.sandbox import box

# What a process tries behind a wall: the name of each error, or what it got.
PROBES = r"""
import errno, json, os, socket, sys, time
sys.path[0] = sys.argv[1]
from inside import walls

def probe(action):
  try:
    return action()
  except OSError as error:
    return errno.errorcode[error.errno]

def write(path):
  with open(path, 'w') as file:
    return file.write('x')

def udp():
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect(('127.0.0.1', 9))

def probes(folder, secret):
  return {
    'write outside': probe(lambda: write(secret)),
    'new file outside': probe(lambda: write('/tmp/made')),
    'write inside': probe(lambda: write(folder + '/x')),
    'read secret': probe(lambda: open(secret).read()),
    'read environment': probe(
      lambda: open(f'/proc/{os.getppid()}/environ').read()),
    'read library': probe(lambda: len(open(os.__file__).read()) > 100),
    'remove library': probe(lambda: os.unlink(os.__file__)),
    'this machine': probe(udp),
    'packages': probe(lambda: os.listdir(
      os.path.dirname(os.__file__) + '/site-packages')),
    'kill': probe(lambda: os.kill(int(sys.argv[3]), 0)),
    'null': probe(lambda: write('/dev/null')),
  }
"""
NAMESPACES = (
  PROBES
  + r"""
walls.enter_namespaces()
if os.fork() == 0:
  walls.build_root(walls.visible_paths(), {})
  walls.fill_box(1 << 20)
  walls.drop_rights(os.geteuid() == 0)
  found = probes('/box', sys.argv[2])
  found['pid'] = os.getpid()
  found['user'] = os.getuid()
  found['above'] = sorted(os.listdir('/..'))
  found['full'] = probe(
    lambda: open('/box/y', 'wb', buffering=0).write(bytes(1 << 22)) < 1 << 21)
  found['capability'] = probe(lambda: os.chroot('/'))
  print(json.dumps(found), flush=True)
  os._exit(0)
os.wait()
"""
)
LANDLOCK = (
  PROBES
  + r"""
folder = sys.argv[4] + '/box'
os.mkdir(folder)
rules = walls.landlock(walls.visible_paths(), folder)
if rules is not None:
  walls.drop_rights(False)
  walls.restrict_files(rules)
print(json.dumps(rules is not None and probes(folder, sys.argv[2])), flush=True)
"""
)


def _probe(program, tmp_path):
  secret = tmp_path / 'secret'
  secret.write_text('do not tell')
  done = subprocess.run(
    [
      *(box._python(), '-s', '-S', '-c', program, box._FOLDER),
      *(str(secret), str(os.getpid()), str(tmp_path)),
    ],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert secret.read_text() == 'do not tell'
  assert not os.path.exists('/tmp/made') and os.path.exists(os.__file__)
  return json.loads(done.stdout)


def test_namespaces(tmp_path):
  found = _probe(NAMESPACES, tmp_path)
  # Nothing above the root: neither the old one.
  assert {'box', 'dev'} <= set(found['above'])
  assert not {'proc', 'sys', 'var', 'boot'} & set(found.pop('above'))
  assert found == {
    'write outside': 'ENOENT',
    'new file outside': 'ENOENT',
    'write inside': 1,
    'read secret': 'ENOENT',
    'read environment': 'ENOENT',
    'read library': True,
    'remove library': 'EROFS',
    'this machine': 'ENETUNREACH',
    'packages': [],
    'kill': 'ESRCH',
    'null': 1,
    'pid': 1,
    'user': 65534,
    'full': True,
    'capability': 'EPERM',
  }


def test_landlock(tmp_path):
  found = _probe(LANDLOCK, tmp_path)
  if not found:
    pytest.skip('this kernel has no Landlock')
  assert isinstance(found.pop('packages'), list)  # names may be seen
  assert found == {
    'write outside': 'EACCES',
    'new file outside': 'EACCES',
    'write inside': 1,
    'read secret': 'EACCES',
    'read environment': 'EACCES',
    'read library': True,
    'remove library': 'EACCES',
    'this machine': None,  # for the filter to refuse
    'kill': None,  # likewise
    'null': 1,
  }


def test_packages_cannot_be_read_behind_landlock(tmp_path):
  library = pathlib.Path(os.__file__).parent
  files = [p for p in library.glob('*-packages/*') if p.is_file()]
  files += list(library.glob('*-packages/*/__init__.py'))
  if not files:
    pytest.skip('no package is installed beside this Python')
  with sandbox.Sandbox(isolation='limits') as made:
    outcome = made.run(f'print(open({str(files[0])!r}).read())')
  assert outcome.failure == 'files'


def test_read_text_of_another_process():
  """Strings that end at the end of what is mapped, and those that do not."""
  program = r"""
import ctypes, mmap, os, sys
sys.path[0] = sys.argv[1]
from inside import walls
m = mmap.mmap(-1, 8192)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
m[:8192] = b'a' * 8192
ctypes.CDLL(None).munmap(ctypes.c_void_p(at + 4096), 4096)
def put(offset, text):
  m[offset:offset + len(text)] = text
put(100, b'/etc/x\0'); put(4090, b'/etc/\0')
pid = os.fork()
if pid == 0:
  import time; time.sleep(60)
try:
  assert walls.read_text(pid, at + 100) == b'/etc/x'
  assert walls.read_text(pid, at + 4090) == b'/etc/'
  assert walls.read_text(pid, at + 200, 50) == b'a' * 50
  put(4090, b'/etc/a')
  assert walls.read_text(pid, 0) == b''
finally:
  os.kill(pid, 9)
print('ok')
os._exit(0)
"""
  done = subprocess.run(
    [box._python(), '-s', '-S', '-c', program, box._FOLDER],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.stdout == 'ok\n', done.stderr
