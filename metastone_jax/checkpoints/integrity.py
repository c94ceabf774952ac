"""Proof that a checkpoint on disk is whole: one record per step.

Orbax reports truncated arrays only when they are read, and a flipped byte not
at all, so every step has a record beside it, `<root>/integrity/<step>.json`:

    {"format": 1, "state": "complete", "step": 40,
     "files": {"state/d/ab12": {"size": 456, "sha256": "..."}, ...},
     "arrays": {"params/head/kernel": {"shape": [96, 2], "dtype": "float32"}}}

`state` is the completion marker, and changes in this order:
- "saving": written before the first byte of the step. A killed save leaves it,
  and the next writer removes the unfinished step.
- "complete": written after orbax has committed the step and its files have
  been read back and hashed. Only such a step counts as a checkpoint.
- "deleting": written before a step is removed, so that a half-removed step is
  never taken for a damaged one.

A record is one atomic object write; nothing here appends or renames.
`cd <root>/<step> && sha256sum <file>` gives the same digests.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any

from etils import epath

from metastone_jax.telemetry import files as files_lib

FORMAT = 1
_CHUNK_BYTES = 1 << 22
_HASH_THREADS = 8  # hashlib releases the interpreter lock.

FileInfo = dict[str, Any]  # {'size': bytes, 'sha256': hex digest}


def list_files(step_dir: epath.Path) -> list[str]:
  """Returns the paths of all files below `step_dir`, relative, sorted."""
  found = []

  def visit(folder: epath.Path, prefix: str) -> None:
    for child in folder.iterdir():
      if child.is_dir():
        visit(child, f'{prefix}{child.name}/')
      else:
        found.append(prefix + child.name)

  visit(step_dir, '')
  return sorted(found)


def hash_file(path: epath.Path) -> FileInfo:
  """Returns size (bytes) and SHA-256 of a file, read in chunks of 4 MiB."""
  digest = hashlib.sha256()
  size = 0
  with path.open('rb') as stream:
    while chunk := stream.read(_CHUNK_BYTES):
      digest.update(chunk)
      size += len(chunk)
  return {'size': size, 'sha256': digest.hexdigest()}


def hash_files(
  step_dir: epath.Path, names: Iterable[str]
) -> dict[str, FileInfo]:
  """Returns `hash_file` of files below `step_dir`, by relative path."""
  names = list(names)
  with futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    infos = pool.map(lambda name: hash_file(step_dir / name), names)
    return dict(zip(names, infos, strict=True))


def find_damage(
  step_dir: epath.Path,
  expected: Mapping[str, FileInfo],
  names: Iterable[str] | None = None,
) -> str | None:
  """Compares files with their recorded size and digest.

  Args:
    step_dir: Directory of the step.
    expected: The record's 'files'.
    names: The part of `expected` to check; all of it by default.

  Returns:
    What is wrong with the first damaged file, such as 'file state/d/ab12 is
    truncated (123 of 456 bytes)', or None if all is well. Sizes are compared
    first: they cost no reading.
  """
  names = sorted(expected if names is None else names)
  for name in names:
    path, size = step_dir / name, expected[name]['size']
    if not path.exists():
      return f'file {name} is missing'
    found = path.stat().length
    if found < size:
      return f'file {name} is truncated ({found} of {size} bytes)'
    if found > size:
      return f'file {name} has {found} bytes where {size} were written'

  def changed(name: str) -> bool:
    return hash_file(step_dir / name)['sha256'] != expected[name]['sha256']

  with futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    for name, is_changed in zip(names, pool.map(changed, names), strict=True):
      if is_changed:
        return f'the content of file {name} has changed (SHA-256 differs)'
  return None


class Records:
  """The records of all steps below one checkpoint root."""

  def __init__(self, root: epath.Path):
    self._root = root
    self._folder = root / 'integrity'

  def path(self, step: int) -> epath.Path:
    """Returns where the record of `step` is."""
    return self._folder / f'{step}.json'

  def read(self, step: int) -> dict[str, Any] | None:
    """Returns the record of `step`; None if there is none.

    A record that cannot be read is returned as state 'unreadable': its step
    was complete once (records are written atomically), so it is damaged.
    """
    path = self.path(step)
    if not path.exists():
      return None
    try:
      record = json.loads(path.read_bytes())
      known = record['format'] == FORMAT
      complete = record['state'] == 'complete'
      if known and (not complete or record['files'].keys()):
        return record
    except (ValueError, KeyError, TypeError, AttributeError):
      pass
    return {'state': 'unreadable', 'step': step}

  def read_all(self) -> dict[int, dict[str, Any]]:
    """Returns every record by step, in order of steps."""
    if not self._folder.exists():
      return {}
    names = (path.name for path in self._folder.iterdir())
    steps = sorted(
      int(name.removesuffix('.json'))
      for name in names
      if name.endswith('.json') and name.removesuffix('.json').isdigit()
    )
    records = {step: self.read(step) for step in steps}
    return {step: record for step, record in records.items() if record}

  def mark(self, step: int, state: str) -> None:
    """Writes a record without content: state 'saving' or 'deleting'."""
    self._write({'format': FORMAT, 'state': state, 'step': step})

  def complete(
    self,
    step: int,
    files: Mapping[str, FileInfo],
    arrays: Mapping[str, Mapping[str, Any]],
  ) -> None:
    """Writes the completion marker of a committed step."""
    self._write(
      {
        'format': FORMAT,
        'state': 'complete',
        'step': step,
        'files': files,
        'arrays': arrays,
      }
    )

  def remove(self, step: int) -> None:
    """Removes the record of `step`, if there is one."""
    self.path(step).unlink(missing_ok=True)

  def remove_temporary(self) -> None:
    """Removes half-written records of killed processes."""
    if self._folder.exists():
      for path in self._folder.iterdir():
        if path.name.endswith('.tmp'):
          path.unlink()

  def _write(self, record: Mapping[str, Any]) -> None:
    files_lib.write_json_atomic(self.path(record['step']), record)
