"""Runners and a page for tests of sweeps: no JAX, milliseconds, resumable.

A point adds 1 to a number `pieces` times, a piece a file; its rows come from
that number and from the points it needs. Every try leaves a file in `tries`.
"""

import os
import signal
import time
import uuid

from metastone_jax.errors import UserError


def add(point, job):
  (job.folder / 'tries').mkdir(exist_ok=True)
  (job.folder / 'tries' / uuid.uuid4().hex).write_text(str(os.getpid()))
  for piece in range(point['pieces']):
    job.check_stop()
    path = job.folder / f'piece-{piece}'
    if not path.exists():  # what a killed try has left is kept
      time.sleep(point.get('sleep', 0.0))
      path.write_text('1')
    job.status(f'piece {piece}')
  number = sum(int(p.read_text()) for p in job.folder.glob('piece-*'))
  for need in point['needs']:
    number += int((job.folder_of(need) / 'number').read_text())
  (job.folder / 'number').write_text(str(number))
  return [
    {
      'part': part,
      'number': number,
      'third': number / 3,
      'label': point['name'],
    }
    for part in range(2)
  ]


def check_done(point, folder):
  if (folder / 'stale').exists():
    raise UserError(f'point {point["name"]}: its recipe has changed')


def refuse(point, job):
  raise UserError(f'{point["name"]}: no such\n  file')


def die_once(point, job):
  """The process is gone in the middle of the first try."""
  tries = job.folder / 'tries'
  tries.mkdir(exist_ok=True)
  if not list(tries.iterdir()):
    (tries / '1').write_text('')
    os.kill(os.getpid(), signal.SIGKILL)
  return [{'number': 1}]


def check(config):
  if config['options']['a'] < 0:
    raise UserError(
      f'--config.options.a={config["options"]["a"]}: must be positive'
    )


def page(config, workdir, page, rows, *, command):
  page.parent.mkdir(parents=True, exist_ok=True)
  page.write_text(f'{config["name"]}: {len(rows)} rows\n{command}\n')
  return [page]


def tries(folder) -> int:
  """How often a point was begun."""
  return len(list((folder / 'tries').iterdir()))
