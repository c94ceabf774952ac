"""Who works on a point: claims that hold on local disks and in buckets.

Contract: at most one live worker holds a folder. Nothing is renamed, appended
or created "exclusively" (a bucket cannot through a plain path), only whole
objects written, listed and deleted:

  claim    write a file of one's own into FOLDER/claims, then list the folder.
           Alone: it is held. Another one there: withdraw and let it be. Of two
           that write at once the later lister sees both, so both never hold it.
  renew    a thread rewrites the own file with a higher count.
  break    a claim whose count has not changed for `patience` seconds ON THE
           WATCHER'S OWN CLOCK is deleted (clocks of machines may differ); one
           of a process of this machine that is gone, at once.
  lost     a holder whose file is gone (it slept, and was given up) finds out
           at the next renewal or when it asks; its result does not count.
"""

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
    name: of its claim files.
    host: of the machine and its start.
    pid: of the process.
    started: of the process, as the kernel counts; a pid may come again.
  """

  name: str
  host: str
  pid: int
  started: str

  @classmethod
  def this(cls) -> 'Worker':
    """This process."""
    pid = os.getpid()
    return cls(uuid.uuid4().hex, _host(), pid, _started(pid))

  def is_gone(self, other: dict) -> bool:
    """Whether a claim is of a process of this machine that has ended."""
    return other.get('host') == self.host and _started(
      other.get('pid', 0)
    ) != other.get('started')


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
    """Whether another worker may have the folder now."""
    if not self._lost.is_set() and not self._path.exists():
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
      if self.is_lost():
        return
      count += 1
      try:
        _write(self._path, self._worker, count)
      except Exception:  # noqa: BLE001 (a bucket may fail for a moment)
        continue


class Leases:
  """The claims of one worker, and what it has seen of others'."""

  def __init__(self, worker: Worker | None = None, patience: float = PATIENCE):
    self.worker = worker or Worker.this()
    self.patience = patience
    # Path of a claim -> (its content, since when on our clock).
    self._seen: dict[str, tuple[str, float]] = {}

  def claim(self, folder: epath.Path) -> Lease | None:
    """Takes a folder, or None where another worker has it."""
    claims = folder / 'claims'
    if self._others(claims):
      return None
    claims.mkdir(parents=True, exist_ok=True)
    path = claims / f'{self.worker.name}.json'
    _write(path, self.worker, 0)
    if self._others(claims):
      path.unlink(missing_ok=True)
      return None
    return Lease(path, self.worker, self.patience)

  def is_claimed(self, folder: epath.Path) -> bool:
    """Whether another worker has a folder."""
    return bool(self._others(folder / 'claims'))

  def _others(self, claims: epath.Path) -> list[epath.Path]:
    """Claims of others that live; dead ones are removed."""
    found = []
    for path in files.children(claims):
      if path.suffix != '.json' or path.stem == self.worker.name:
        continue
      if path.name.startswith('.'):  # a write under way or cut off
        continue
      if self._is_dead(path):
        path.unlink(missing_ok=True)
        self._seen.pop(os.fspath(path), None)
      else:
        found.append(path)
    return found

  def _is_dead(self, path: epath.Path) -> bool:
    try:
      text = path.read_text()
    except FileNotFoundError:  # released between the listing and now
      return True
    try:
      other = json.loads(text)
    except ValueError:
      other = {}
    if self.worker.is_gone(other):
      return True
    now = time.monotonic()
    content, since = self._seen.get(os.fspath(path), (None, now))
    if content != text:
      self._seen[os.fspath(path)] = (text, now)
      return False
    return now - since > self.patience


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
