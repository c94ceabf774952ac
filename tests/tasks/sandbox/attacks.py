"""Programs that mean harm, and the names of what becomes of them."""

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
}
