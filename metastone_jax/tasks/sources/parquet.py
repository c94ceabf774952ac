"""Parquet files, read a row group at a time (extra `parquet`)."""

from typing import Any

import numpy as np
from etils import epath

from metastone_jax import errors
from metastone_jax.tasks.sources import base


class Parquet(base.FileSource):
  """Parquet files; see `base.FileSource`. Reading in order is fast."""

  def _open_file(self, path):
    return _ParquetFile(path)


class _ParquetFile(base.File):
  """One file; holds the row group that was read last."""

  def __init__(self, path: epath.Path):
    try:
      # Imported here: it is an extra.
      import pyarrow
      from pyarrow import parquet
    except ImportError as error:
      raise errors.UserError(
        f'{path} needs the package pyarrow; '
        'pip install "metastone_jax[parquet]"'
      ) from error
    self._path = path
    self._damage = (pyarrow.ArrowException, OSError)
    try:
      self._file = parquet.ParquetFile(path.open('rb'))
    except self._damage as error:
      raise self._unreadable(error) from error
    data = self._file.metadata
    counts = [data.row_group(g).num_rows for g in range(data.num_row_groups)]
    self._starts = np.cumsum([0, *counts])
    self._group, self._rows = -1, None

  def __len__(self) -> int:
    return int(self._starts[-1])

  def row(self, index: int) -> Any:
    group = int(np.searchsorted(self._starts, index, 'right')) - 1
    if group != self._group:
      try:
        self._rows = self._file.read_row_group(group)
      except self._damage as error:
        raise self._unreadable(error) from error
      self._group = group
    place = index - int(self._starts[group])
    try:
      return {
        name: column[place].as_py()
        for name, column in zip(
          self._rows.column_names, self._rows.columns, strict=True
        )
      }
    except UnicodeDecodeError as error:
      raise base.RowError(f'is not UTF-8 ({error.reason})') from error

  def _unreadable(self, error):
    reason = errors.first_line(error)
    return errors.UserError(
      f'{self._path} is no readable Parquet file ({reason}); it may have been '
      'cut off: write it again'
    )
