"""Who works on a point: claims that hold on local disks and in buckets.

Contract: at most one live worker holds a folder. Nothing is renamed, appended
or created "exclusively" (a bucket cannot through a plain path), only whole
objects written, listed and deleted:

  claim    write a file of one's own into FOLDER/claims, then list the folder.
           Alone: it is held. Another one there: withdraw and let it be. Of two
           that write at once the later lister sees both, so both never hold it.
  renew    a thread rewrites the own file with a higher count.
  break    a claim whose count has not changed for `patience` seconds ON THE
           WATCHER'S OWN CLOCK counts no more (clocks of machines may differ):
           the watcher writes NAME.void beside it, for good, so that a late
           renewal cannot bring it back. Of a process of this machine it is
           known whether it lives: its claim counts as long as it does, and is
           deleted at once where it is gone.
  lost     a holder that was given up (it slept) finds out at its next renewal
           or when it looks; its result does not count.

The listing of a folder must show what was written before it, as those of disks
and of today's buckets do.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from etils import epath

from metastone_jax.telemetry import files

PATIENCE = 120.0  # seconds
_RENEWALS = 6  # within the patience


@dataclasses.dataclass(frozen=True)
class Worker:
  """Who claims; unique.

  Attributes:
    host: of the machine and its start.
    pid: of the process.
    started: of the process, as the kernel counts; a pid may come again.
  """

  host: str
  pid: int
  started: str

  @classmethod
  def this(cls) -> 'Worker':
    """This process."""
    pid = os.getpid()
    return cls(_host(), pid, _started(pid))

  def sees(self, other: dict) -> bool | None:
    """Whether the process of a claim lives; None = it is of another machine."""
    if other.get('host') != self.host:
      return None
    return _started(other.get('pid', 0)) == other.get('started')


class Lease:
  """A claim that is held, and renewed until `release`."""

  def __init__(self, path: epath.Path, worker: Worker, patience: float):
    self._path, self._worker = path, worker
    self._ended = threading.Event()
    self._lost = threading.Event()
    self._pause = patience / _RENEWALS
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def is_lost(self) -> bool:
    """Whether it was lost, as far as the last renewal knows."""
    return self._lost.is_set()

  def look(self) -> bool:
    """Whether it is lost now."""
    if _void(self._path).exists() or not self._path.exists():
      self._lost.set()
    return self._lost.is_set()

  def release(self) -> None:
    """Lets go."""
    self._ended.set()
    self._thread.join()
    self._path.unlink(missing_ok=True)

  def _renew(self) -> None:
    count = 0
    while not self._ended.wait(self._pause):
      count += 1
      # A bucket may fail for a moment. If it lasts, others give this claim up.
      with contextlib.suppress(Exception):
        if self.look():
          return
        _write(self._path, self._worker, count)


class Leases:
  """The claims of one worker, and what it has seen of others'."""

  def __init__(self, worker: Worker | None = None, patience: float = PATIENCE):
    self.worker = worker or Worker.this()
    self.patience = patience
    # Name of a claim -> (its content, since when on our clock).
    self._seen: dict[str, tuple[str, float]] = {}

  def claim(self, folder: epath.Path) -> Lease | None:
    """Takes a folder, or None where another worker has it."""
    claims = folder / 'claims'
    if self._others(claims):
      return None
    claims.mkdir(parents=True, exist_ok=True)
    # A name for every claim: one that was given up is so for good.
    path = claims / f'{uuid.uuid4().hex}.json'
    _write(path, self.worker, 0)
    if self._others(claims, mine=path.name) or _void(path).exists():
      path.unlink(missing_ok=True)
      return None
    return Lease(path, self.worker, self.patience)

  def _others(self, claims: epath.Path, mine: str = '') -> list[epath.Path]:
    """Claims of others that live; dead ones are removed."""
    paths = files.children(claims)
    names = {path.name for path in paths}
    return [
      path
      for path in paths
      # A name that begins with a dot is a write under way, or cut off.
      if path.suffix == '.json' and not path.name.startswith('.')
      if path.name != mine and _void(path).name not in names
      if self._lives(path)
    ]

  def _lives(self, path: epath.Path) -> bool:
    try:
      text = path.read_text()
    except FileNotFoundError:  # released since the listing
      return False
    seen = self.worker.sees(json.loads(text))
    if seen is not None:  # however long it was silent, stopped by a signal say
      if not seen:
        path.unlink(missing_ok=True)
      return seen
    now = time.monotonic()
    content, since = self._seen.get(path.name, (None, now))
    if content != text:
      self._seen[path.name] = (text, now)
    elif now - since > self.patience:
      files.write_text_atomic(_void(path), '')
      path.unlink(missing_ok=True)
      return False
    return True


def _void(path: epath.Path) -> epath.Path:
  """What says that a claim counts no more."""
  return path.parent / f'{path.stem}.void'


def _write(path: epath.Path, worker: Worker, count: int) -> None:
  files.write_json_atomic(path, {**dataclasses.asdict(worker), 'count': count})


def _host() -> str:
  """This machine, since its start: numbers of processes mean nothing later."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = ''
  try:  # containers of one machine number their processes each for itself
    space = os.readlink('/proc/self/ns/pid')
  except OSError:
    space = ''
  return f'{socket.gethostname()} {boot} {space}'


def _started(pid: int) -> str:
  """When a process started; '' if there is none (a zombie is none)."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  # The name, in brackets, may hold blanks.
  fields = text.rpartition(')')[2].split()
  return '' if fields[0] in 'ZX' else fields[19]
