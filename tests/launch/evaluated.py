"""launch.evaluate with a set of six problems, which may stop itself.

`letters` stands for a named evaluation set: finite, from a folder, with
subjects, never a part of a recipe. STOP_AT: after so many responses the process
gets SIGINT, as from Ctrl-C.
"""

import os
import pathlib
import runpy
import signal

from metastone_jax.errors import UserError
from metastone_jax.tasks import base, registry
from metastone_jax.training import loop


class Letters(base.Task):
  """Right is a response whose length a problem's number divides."""

  name = 'letters'
  num_heldout = 6

  def __init__(self, folder: str, seed: int):
    self.seed = seed
    path = pathlib.Path(folder) / 'letters.txt'
    if not path.exists():
      raise UserError(f'there is no {path}')
    self._questions = path.read_text().split()

  def problem(self, index, split):
    del split
    return base.Problem(
      self.name,
      f'letters/{index}',
      self._questions[index],
      str(index),
      {'sub': ('art', 'law')[index % 2]},
    )

  def demonstration(self, problem):
    raise UserError('letters has no demonstrations')

  def verify(self, problem, response_text):
    right = len(response_text) % (int(problem.answer) + 1) == 0
    return base.Verdict(float(right), True, response_text[-6:])


def main():
  registry._TASKS['letters'] = Letters
  # Also where a job in the background hands down that Ctrl-C is ignored.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  stop_at, add = int(os.environ.get('STOP_AT', 0)), loop.KeptResponses.add

  def counting(self, response):
    add(self, response)
    if len(self.found) == stop_at:
      os.kill(os.getpid(), signal.SIGINT)

  loop.KeptResponses.add = counting
  runpy.run_module('launch.evaluate', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
