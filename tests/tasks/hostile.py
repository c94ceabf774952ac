"""A verifier that does what a response tells it to, the worst of it."""

import ctypes
import os
import signal
import subprocess
import sys
import time

from metastone_jax import errors
from metastone_jax.tasks import base
from metastone_jax.tasks.verifiers import Verifier


class Hostile(Verifier):
  """Text: WHAT, or WHAT:ARGUMENT."""

  name = 'hostile'
  isolated = True

  def __init__(self, *, prepare: str = '', deadline_s: float | None = None):
    self.at_start = prepare
    self.deadline_s = deadline_s

  def prepare(self) -> None:
    if self.at_start:
      self._do(self.at_start)

  def verify(self, problem, response_text):
    return self._do(response_text)

  def _do(self, text):
    what, _, argument = text.partition(':')
    if what == 'hang':
      while True:
        pass
    if what == 'sleep':
      time.sleep(float(argument))
    if what == 'stop':
      os.kill(os.getpid(), signal.SIGSTOP)
    if what == 'exit':
      os._exit(int(argument))
    if what == 'system_exit':
      sys.exit(0)
    if what == 'segfault':
      ctypes.string_at(0)
    if what == 'raise':
      raise RuntimeError(argument)
    if what == 'refuse':
      raise errors.UserError(argument)
    if what == 'memory':
      held = []
      while True:
        held.append(bytearray(10**7))
    if what == 'child':  # one that outlives a careless kill
      child = subprocess.Popen(['sleep', '300'])
      with open(argument, 'w') as file:
        file.write(f'{os.getpid()} {child.pid}')
      time.sleep(300)
    if what == 'print':
      print('x' * 1000)
    if what == 'fail':
      return base.Verdict(0.0, True, 'x', argument)
    if what == 'wrong_for':
      return base.Verdict(0.0, True, 'y', reason=argument)
    key = {
      'pid': str(os.getpid()),
      'modules': ' '.join(sorted(sys.modules)),
      'interrupt': str(signal.getsignal(signal.SIGINT) == signal.SIG_IGN),
    }.get(what, argument)
    return base.Verdict(float(what == 'right'), True, key)


class Told(Hostile):
  """Does what `said` has for a response: text -> WHAT:ARGUMENT."""

  def __init__(self, said: dict[str, str], **options):
    super().__init__(**options)
    self.said = said

  def verify(self, problem, response_text):
    return self._do(self.said[response_text])
