"""Programs that mean harm, and the names of what becomes of them."""

_CALLS = (
  'import ctypes\n'
  'l = ctypes.CDLL(None, use_errno=True)\n'
  'def refused(error, *a):\n'
  '  assert l.syscall(*a) == -1, a\n'
  '  assert ctypes.get_errno() == error, ctypes.get_errno()\n'
  '  raise SystemExit(3)\n'
)

# name -> (program, failures that are right for it)
ATTACKS = {
  'fork bomb': ('import os\nwhile True: os.fork()', {'processes'}),
  'subprocess': (
    'import subprocess\nsubprocess.run(["/bin/sh", "-c", "id"])',
    {'processes'},
  ),
  'exec': ('import os\nos.execv("/bin/sh", ["sh"])', {'processes'}),
  'daemon': (
    'import os, time\n'
    'if os.fork() == 0:\n'
    '  os.setsid()\n'
    '  if os.fork() == 0:\n'
    '    time.sleep(1000)\n'
    'print("done")',
    {'processes'},
  ),
  'raw fork': (
    'import ctypes\nctypes.CDLL(None).syscall(57 if __import__("os").uname()'
    '.machine == "x86_64" else 220, 17, 0, 0, 0, 0)',
    {'processes'},
  ),
  'thread bomb': (
    'import threading, time\n'
    'threading.stack_size(65536)\n'
    'while True: threading.Thread(target=time.sleep, args=(9,)).start()',
    {'processes'},
  ),
  'kill the parent': (
    'import os, signal\nos.kill(os.getppid(), signal.SIGKILL)',
    {'processes'},
  ),
  'kill everything': ('import os\nos.kill(-1, 9)', {'processes'}),
  'memory bomb': (
    'x = []\nwhile True: x.append(bytearray(1 << 20))',
    {'memory'},
  ),
  'one huge list': ('x = [0] * (1 << 40)', {'memory'}),
  'memory bomb in a thread': (
    'import threading\n'
    't = threading.Thread(target=lambda: bytearray(1 << 40))\n'
    't.start(); t.join()',
    {'memory'},
  ),
  'endless loop': ('while True: pass', {'timeout'}),
  'loop that ignores signals': (
    'import signal\n'
    'for s in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):\n'
    '  signal.signal(s, signal.SIG_IGN)\n'
    'while True:\n'
    '  try:\n'
    '    while True: pass\n'
    '  except BaseException: pass',
    {'timeout'},
  ),
  'sleep': ('import time\ntime.sleep(1000)', {'timeout'}),
  'endless thread': (
    'import threading, time\n'
    'threading.Thread(target=time.sleep, args=(1000,)).start()',
    {'timeout'},
  ),
  'write outside': ('open("/etc/written", "w").write("x")', {'files'}),
  'write where all may': ('open("/tmp/written", "w").write("x")', {'files'}),
  'write above': ('open("../written", "w").write("x")', {'files'}),
  'write to shared memory': ('open("/dev/shm/x", "w").write("x")', {'files'}),
  'make a folder outside': ('import os\nos.mkdir("/tmp/made")', {'files'}),
  'delete': ('import os, sys\nos.unlink(os.__file__)', {'files'}),
  'rename': ('import os\nos.rename("/usr", "/ursa")', {'files'}),
  'symbolic link': ('import os\nos.symlink("/etc", "here")', {'files'}),
  'change modes': ('import os\nos.chmod("/", 0o777)', {'files'}),
  'hide memory from the supervisor': (
    'import ctypes\n'
    'l = ctypes.CDLL(None, use_errno=True)\n'
    'assert l.prctl(4, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1\n'
    'raise SystemExit(3)',
    {'exception'},
  ),
  'hide memory, then write outside': (
    'import ctypes\n'
    'ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n'
    'open("/etc/written", "w").write("x")',
    {'files'},
  ),
  'a path that is nowhere': (
    'import ctypes, os\n'
    'number = 257 if os.uname().machine == "x86_64" else 56\n'
    'ctypes.CDLL(None).syscall(number, -100, None, os.O_WRONLY)',
    {'files'},
  ),
  'a path that is empty': (
    'import os\ntry: os.open("", os.O_WRONLY)\nexcept OSError: pass',
    {'files'},
  ),
  'huge file': (
    'f = open("big", "wb")\nwhile True: f.write(bytes(1 << 20))',
    {'files'},
  ),
  'read a secret': ('print(open("/etc/shadow").read())', {'files'}),
  'read environments': (
    'import os\nprint(open(f"/proc/{os.getppid()}/environ").read())',
    {'files'},
  ),
  'connect': (
    'import socket\nsocket.create_connection(("1.1.1.1", 80), timeout=5)',
    {'network'},
  ),
  'connect to this machine': (
    'import socket\nsocket.socket().connect(("127.0.0.1", 22))',
    {'network'},
  ),
  'look up a name': (
    'import socket\nsocket.getaddrinfo("example.com", 80)',
    {'network'},
  ),
  'urllib': (
    'import urllib.request\nurllib.request.urlopen("http://example.com")',
    {'network'},
  ),
  'flood': ('while True: print("x" * 1000)', {'output'}),
  'flood of errors': (
    'import sys\nwhile True: sys.stderr.write("x" * 1000)',
    {'output'},
  ),
  'flood of reports': (
    'import os\nos.write(4, b"\\xff\\xff\\xff\\x7f")\n'
    'while True: os.write(4, bytes(65536))',
    {'output'},
  ),
  'segmentation fault': ('import ctypes\nctypes.string_at(0)', {'crash'}),
  'abort': ('import os\nos.abort()', {'crash'}),
  'ptrace': (
    'import ctypes, os\n'
    'l = ctypes.CDLL(None, use_errno=True)\n'
    'assert l.ptrace(16, os.getppid(), 0, 0) == -1\n'
    'assert ctypes.get_errno() == 1\nraise SystemExit(3)',
    {'exception'},
  ),
  'x32 calls': (_CALLS + 'refused(38, 0x40000000 | 39)', {'exception'}),
  'calls of another machine': (
    # getpid by the 32-bit entry: mov eax, 20; int 0x80; ret.
    'import ctypes, mmap\n'
    'm = mmap.mmap(-1, 4096, prot=7)\n'
    'm.write(b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3")\n'
    'at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n'
    'ctypes.CFUNCTYPE(ctypes.c_int)(at)()',
    {'crash'},
  ),
  'signals by the kernel': (
    'import errno, fcntl, os\n'
    'r, w = os.pipe()\n'
    'for command, value in ((8, os.getppid()), (10, 9)):\n'
    '  try: fcntl.fcntl(r, command, value)\n'
    '  except PermissionError: pass\n'
    '  else: raise KeyError\n'
    'raise SystemExit(3)',
    {'exception'},
  ),
  'slow others down': (
    'import os\n'
    'for call in (\n'
    '  lambda p: os.setpriority(os.PRIO_PROCESS, p, 19),\n'
    '  lambda p: os.sched_setaffinity(p, {0}),\n'
    '  lambda p: os.sched_setscheduler(p, 5, os.sched_param(0)),\n'
    '):\n'
    '  try: call(os.getppid())\n'
    '  except PermissionError: pass\n'
    '  else: raise KeyError\n'
    'os.sched_setaffinity(0, os.sched_getaffinity(0))\n'
    'raise SystemExit(3)',
    {'exception'},
  ),
  'capabilities': (
    'import ctypes, struct\n'
    'l = ctypes.CDLL(None, use_errno=True)\n'
    'sets = ctypes.create_string_buffer(24)\n'
    'head = struct.pack("<Ii", 0x20080522, 0)\n'
    'number = 125 if __import__("os").uname().machine == "x86_64" else 90\n'
    'assert l.syscall(number, head, sets) == 0\n'
    'assert sets.raw == bytes(24), sets.raw\n'
    'raise SystemExit(3)',
    {'exception'},
  ),
  'new walls': (
    'import ctypes\n'
    'l = ctypes.CDLL(None, use_errno=True)\n'
    'for flags in (0x10000000, 0x20000, 0x40000000):\n'
    '  assert l.unshare(flags) == -1 and ctypes.get_errno() == 1\n'
    'assert l.prctl(22, 2, None) == -1 and ctypes.get_errno() == 1\n'
    'assert l.mount(b"a", b"/", b"tmpfs", 0, None) == -1\n'
    'assert l.memfd_create(b"x", 0) == -1\n'
    'assert l.shmget(0, 4096, 0o1600) == -1\n'
    'raise SystemExit(3)',
    {'exception'},
  ),
}

X86 = ('x32 calls', 'calls of another machine')
