r"""`launch.train`, saying through a pipe what it is doing.

  WATCH_FD=5 python -m tests.launch.watched FLAGS OF LAUNCH.TRAIN

One line an event, written before the event happens: `phase NAME`,
`status rollout`, `status update`, `status ` (neither), `saving STEP`,
`writing STEP` (in every process of a job, the other two in process 0) and
`saved STEP`. Nothing else differs from `python -m launch.train`, so a killed
run can be continued with that command.

  DIE_AT='writing 2' DIE_COUNT=1 DIE_AFTER=0.001 WATCH_FD=5 python -m ...

dies so many seconds after an event has happened so often: by the kernel's own
timer, whose SIGALRM nobody handles, so no busy machine makes it late.
"""

import collections
import functools
import os
import runpy
import signal

from metastone_jax.checkpoints import integrity, orbax_io
from metastone_jax.telemetry import Progress

count = collections.Counter()  # of the event DIE_AT


def say(text: str) -> None:
  # One write of a short line is atomic, and outlives a kill -9 right after.
  os.write(int(os.environ['WATCH_FD']), f'{text}\n'.encode())
  if text == os.environ.get('DIE_AT'):
    count[text] += 1
    if count[text] == int(os.environ['DIE_COUNT']):
      signal.setitimer(signal.ITIMER_REAL, float(os.environ['DIE_AFTER']))


def watch(owner, name: str, event) -> None:
  """Calls say(event(...)) before owner.name(...)."""
  function = getattr(owner, name)

  @functools.wraps(function)
  def watched(self, *args, **kwargs):
    text = event(*args, **kwargs)
    if text is not None:
      say(text)
    return function(self, *args, **kwargs)

  setattr(owner, name, watched)


if __name__ == '__main__':
  watch(Progress, 'phase', lambda name, *_, **__: f'phase {name}')
  watch(
    Progress,
    'status',
    lambda text: (
      f'status {text}' if text in ('', 'rollout', 'update') else None
    ),
  )
  watch(
    integrity.Records,
    'mark',
    lambda step, state: f'saving {step}' if state == 'saving' else None,
  )
  watch(orbax_io.OrbaxIO, 'start_write', lambda step, *_: f'writing {step}')
  watch(integrity.Records, 'complete', lambda step, *_: f'saved {step}')
  runpy.run_module('launch.train', run_name='__main__', alter_sys=True)
