"""One worker of a sweep: takes points that can be done, until none is left.

Contract: a point is claimed, done, and marked as done; any number of workers
may share a folder, and any of them may be killed at any moment. Bad input ends
a point (`failed.json` says why) and those that need it, not the others; any
other error is tried again by whoever comes next, `TRIES` times in all. A try
whose process dies is not counted: it may have been killed for any reason. What
a worker finds once another one has its point, rows or error, does not count.
"""

import contextlib
import dataclasses
import json
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import leases as leases_lib
from metastone_jax.scaling import plan as plan_lib
from metastone_jax.scaling import table
from metastone_jax.scaling.job import Job
from metastone_jax.scaling.runs import runners
from metastone_jax.telemetry import files, memory
from metastone_jax.telemetry.progress import format_duration

TRIES = 3
_STATUS = 15.0  # seconds between two lines about one point


class LeaseLost(Exception):  # noqa: N818 (a state, not an error)
  """The point was given to another worker: this one was silent too long."""


@dataclasses.dataclass
class Worker:
  """Does points of a plan in a folder.

  Attributes:
    plan: what is to be done.
    workdir: of the sweep.
    check_stop: raises where the worker is asked to stop.
    label: before every line, where there are several workers.
    patience: seconds of silence after which another worker is given up.
    pause: seconds between two looks at what others do, at least.
  """

  plan: plan_lib.Plan
  workdir: epath.Path
  check_stop: Callable[[], None] = lambda: None
  label: str = ''
  patience: float = leases_lib.PATIENCE
  pause: float = 1.0

  def __post_init__(self):
    self._leases = leases_lib.Leases(patience=self.patience)
    self._cache: dict = {}
    self._known_done: set[str] = set()  # what is done stays done

  def run(self) -> dict[str, str]:
    """Works until every point is done, has failed or waits for one that has.

    Returns:
      Name -> reason, of points that were not done.

    Raises:
      What `check_stop` raises; no claim is left behind.
    """
    waited = False
    while True:
      self.check_stop()
      failed = failures(self.plan, self.workdir)
      left = [
        name
        for name in self.plan.points
        if name not in failed and not self._done(name)
      ]
      if not left:
        return failed
      ready = [
        name
        for name in left
        if all(self._done(need) for need in self.plan.points[name]['needs'])
      ]
      if any(self._try(name) for name in ready):  # the first that is free
        waited = False
        memory.bound_programs()  # every point compiles its own
        continue
      if not waited:
        self._say(f'waiting for other workers: {len(left)} points are left')
        waited = True
      # Not in step with the others.
      time.sleep(self.pause * (1 + random.random()))

  def _done(self, name: str) -> bool:
    if name not in self._known_done and table.is_done(self._folder(name)):
      self._known_done.add(name)
    return name in self._known_done

  def _folder(self, name: str) -> epath.Path:
    return plan_lib.point_folder(self.workdir, name)

  def _try(self, name: str) -> bool:
    """Does a point, if nobody else has it; whether it was claimed."""
    folder = self._folder(name)
    lease = self._leases.claim(folder)
    if lease is None:
      return False
    try:
      # Done or failed by another one since we looked.
      if not self._done(name) and not _failure(folder):
        self._do(name, folder, lease)
    except LeaseLost:
      self._say(f'{name}: another worker has it now')
    finally:
      lease.release()
    return True

  def _do(self, name: str, folder: epath.Path, lease: leases_lib.Lease) -> None:
    point = self.plan.points[name]
    number = list(self.plan.points).index(name) + 1
    self._say(f'{name} ({number} of {len(self.plan.points)}): begins')
    started = last = time.monotonic()

    def check() -> None:
      self.check_stop()
      if lease.is_lost():
        raise LeaseLost(name)

    def status(text: str) -> None:
      nonlocal last
      if time.monotonic() - last > _STATUS:
        last = time.monotonic()
        self._say(f'{name}: {text} | {format_duration(last - started)} gone')

    job = Job(name, self.workdir, self._cache, status, check)
    try:
      rows = runners.runner(point['kind'])(point, job)
      if lease.look():
        raise LeaseLost(name)
      mine = table.finish_point(folder, rows, _times(folder, started))
    except UserError as error:
      if lease.look():  # somebody else's files moved under it, say
        raise LeaseLost(name) from error
      reason = ' '.join(str(error).split())
      _fail(folder, reason, final=True)
      self._say(f'{name}: error: {reason}')
    except LeaseLost:
      raise
    except Exception as error:  # noqa: BLE001
      if _is_stop(error):
        files.write_json_atomic(
          folder / 'spent.json', {'seconds': _spent(folder, started)}
        )
        raise
      if lease.look():
        raise LeaseLost(name) from error
      traceback.print_exc()
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:500]
      tries = _fail(folder, reason, final=False)
      again = '' if tries >= TRIES else '; it will be tried again'
      self._say(f'{name}: {reason}{again}')
    else:
      if not mine:
        raise LeaseLost(name)
      gone = format_duration(time.monotonic() - started)
      self._say(f'{name}: done in {gone}, {len(rows)} rows')

  def _say(self, text: str) -> None:
    print(f'{self.label}{text}', flush=True)


def failures(plan: plan_lib.Plan, workdir: epath.Path) -> dict[str, str]:
  """Name -> reason: points that failed for good, and those that need them."""
  found: dict[str, str] = {}
  for name, point in plan.points.items():
    folder = plan_lib.point_folder(workdir, name)
    if table.is_done(folder):
      continue
    bad = next((need for need in point['needs'] if need in found), None)
    if bad is not None:
      found[name] = f'needs {bad}, which failed'
    elif reason := _failure(folder):
      found[name] = reason
  return found


def forget_failures(plan: plan_lib.Plan, workdir: epath.Path) -> None:
  """A sweep that is started again tries everything again."""
  for name in plan.points:
    path = plan_lib.point_folder(workdir, name) / 'failed.json'
    # A bucket looks first, and somebody else may forget it meanwhile.
    with contextlib.suppress(FileNotFoundError):
      path.unlink(missing_ok=True)


def _failure(folder: epath.Path) -> str | None:
  """Why a point is given up; None = it is not."""
  found = _failed(folder)
  if found['final'] or found['tries'] >= TRIES:
    return found['reason']
  return None


def _failed(folder: epath.Path) -> dict:
  """What tries have left, if any."""
  try:
    return json.loads((folder / 'failed.json').read_text())
  except FileNotFoundError:
    return {'reason': '', 'tries': 0, 'final': False}


def _fail(folder: epath.Path, reason: str, *, final: bool) -> int:
  tries = _failed(folder)['tries'] + 1
  files.write_json_atomic(
    folder / 'failed.json', {'reason': reason, 'tries': tries, 'final': final}
  )
  return tries


def _is_stop(error: Exception) -> bool:
  """Whether an orderly stop, of training say, was asked for in the runner."""
  loop = sys.modules.get('metastone_jax.training.loop')
  return loop is not None and isinstance(error, loop.Interrupted)


def _spent(folder: epath.Path, started: float) -> float:
  """Seconds of this try and of those before it that were stopped in order."""
  path = folder / 'spent.json'
  before = json.loads(path.read_text())['seconds'] if path.exists() else 0.0
  return round(before + time.monotonic() - started, 3)


def _times(folder: epath.Path, started: float) -> dict:
  return {
    'seconds': _spent(folder, started),
    'host': socket.gethostname(),
    'device': _device(),
  }


def _device() -> str:
  """What JAX computes on; '' where no runner brought it."""
  jax = sys.modules.get('jax')
  return '' if jax is None else jax.devices()[0].device_kind
