"""ArrayRecord files whose records are JSON objects (extra `array_record`).

The index stands at the end of a file. A file that was cut off opens all the
same and says that it holds 0 records, which `FileSource` refuses by name.
"""

import pathlib
import tempfile
from typing import Any

from etils import epath

from metastone_jax import errors
from metastone_jax.tasks.sources import base, jsonl

# Records read at once: a tenth of the time of reading each alone.
_TOGETHER = 64

_DAMAGE = (RuntimeError, ValueError, IndexError, OSError)


class ArrayRecord(base.FileSource):
  """ArrayRecord files; see `base.FileSource`."""

  def _open_file(self, path):
    return ArrayRecordFile(path)


class ArrayRecordFile(base.File):
  """One file. A remote one is copied first: the reader wants a local file."""

  def __init__(self, path: epath.Path):
    try:
      # Imported here: it is an extra.
      from array_record.python import array_record_module
    except ImportError as error:
      raise errors.UserError(
        f'{path} needs the package array_record; '
        'pip install "metastone_jax[array_record]"'
      ) from error
    self._path = path
    self._copy = None
    self._first, self._records = -1, []
    local = str(path)
    if '://' in local:
      self._copy = tempfile.TemporaryDirectory()
      local = str(pathlib.Path(self._copy.name) / path.name)
      path.copy(local)
    try:
      self._reader = array_record_module.ArrayRecordReader(
        local, 'readahead_buffer_size:0,max_parallelism:0'
      )
      self._count = self._reader.num_records()
    except _DAMAGE as error:
      raise errors.UserError(
        f'{path} is no readable ArrayRecord file '
        f'({errors.first_line(error)}); it may have been cut off: '
        'write it again'
      ) from error

  def __len__(self) -> int:
    return self._count

  def record(self, index: int) -> bytes:
    """The bytes of a record, or RowError."""
    first = index - index % _TOGETHER
    if first != self._first:
      self._first = first
      try:
        end = min(first + _TOGETHER, self._count)
        self._records = self._reader.read(first, end)
      except _DAMAGE:  # of one of them: each is read alone
        self._records = []
    if self._records:
      return self._records[index - first]
    try:
      return self._reader.read([index])[0]
    except _DAMAGE as error:
      reason = errors.first_line(error)
      raise base.RowError(f'is damaged ({reason})') from error

  def row(self, index: int) -> Any:
    """See `base.File.row`."""
    return jsonl.read_json(self.record(index))
