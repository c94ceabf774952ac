"""JSON lines, one object a line; and JSON files that are one list of objects.

A line that is not JSON in UTF-8, or is blank, is a bad row of its own. A list
can only be read whole, so damage anywhere in such a file is an error.
"""

import json
from typing import Any

import numpy as np
from etils import epath

from metastone_jax import errors
from metastone_jax.tasks.sources import base

_BOM = b'\xef\xbb\xbf'


class JsonLines(base.FileSource):
  """Files of JSON lines; see `base.FileSource`."""

  def _open_file(self, path):
    return _Lines(path)


class JsonList(base.FileSource):
  """Files each of which is one JSON list; see `base.FileSource`."""

  def _open_file(self, path):
    return _List(path)

  def where(self, index: int) -> str:
    """Items have no line of their own: they are counted from 1."""
    which, place = self._locate(index)
    return f'{self.opened[0][which]} item {place + 1}'


class _Lines(base.File):
  """A file of JSON lines, read line by line."""

  def __init__(self, path: epath.Path):
    self._file = path.open('rb')
    starts = [0]
    for line in self._file:
      starts.append(starts[-1] + len(line))
    self._starts = np.array(starts, np.int64)
    self._at = starts[-1]

  def __len__(self) -> int:
    return len(self._starts) - 1

  def row(self, index: int) -> Any:
    start, end = map(int, self._starts[index : index + 2])
    if start != self._at:
      self._file.seek(start)
    data = self._file.read(end - start)
    self._at = end
    if start == 0:
      data = data.removeprefix(_BOM)
    return read_json(data)


class _List(base.File):
  """A file that is one JSON list."""

  def __init__(self, path: epath.Path):
    try:
      self._items = read_json(path.read_bytes().removeprefix(_BOM))
    except base.RowError as error:
      raise errors.UserError(f'{path} {error}; write it again') from error
    if not isinstance(self._items, list):
      raise errors.UserError(
        f'{path} is {base.kind_of(self._items)}, not a list of objects'
      )

  def __len__(self) -> int:
    return len(self._items)

  def row(self, index: int) -> Any:
    return self._items[index]


def read_json(data: bytes) -> Any:
  """What the bytes say.

  Raises:
    RowError: they are blank, not UTF-8, or not JSON.
  """
  if not data.strip():
    raise base.RowError('is empty')
  try:
    return json.loads(data.decode())
  except UnicodeDecodeError as error:
    raise base.RowError(
      f'is not UTF-8 (byte {error.start + 1}: {error.reason})'
    ) from error
  except (ValueError, RecursionError) as error:
    reason = errors.first_line(error)
    raise base.RowError(f'is not JSON ({reason})') from error
