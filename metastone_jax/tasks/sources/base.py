"""What a source of rows is: dicts by index, each with a name for messages.

A source is opened when it is first read, and pickles as what it was made from.
A row that cannot be used raises `RowError`, which says why; whoever reads says
where (`where`). What is wrong with a whole file is a UserError at once.
"""

import abc
import bisect
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from metastone_jax import errors

_SHARD = re.compile(r'(.*)-(\d{5,})-of-(\d{5,})(.*)')


class RowError(ValueError):
  """One row is of no use; the message continues "row x ..."."""


def refuse_or_tell(
  task: str, bad: Sequence[str], total: int, bad_rows: str
) -> None:
  """Says which rows are bad: an error, or a warning if they may be skipped.

  Args:
    task: name of the task.
    bad: "FILE:LINE what is wrong" of each bad row.
    total: rows, bad ones included.
    bad_rows: 'stop' or 'skip'.

  Raises:
    UserError: there are bad rows and they shall not be skipped, or all are.
  """
  if not bad:
    return
  text = (
    f'task {task!r}: {len(bad)} of {total} rows are bad: {errors.some_of(bad)}'
  )
  if bad_rows == 'stop' or len(bad) == total:
    raise errors.UserError(
      f"{text}. Mend them, or leave them out with bad_rows='skip'"
    )
  logging.warning('%s', text)


class Source(abc.ABC):
  """A sequence of rows with random access."""

  _opened: Any = None

  @abc.abstractmethod
  def _open(self) -> Any:
    """Whatever reading needs; kept, but not pickled."""

  @abc.abstractmethod
  def __len__(self) -> int:
    """Rows, bad ones included."""

  @abc.abstractmethod
  def row(self, index: int) -> dict[str, Any]:
    """Row number `index` >= 0.

    Raises:
      RowError: it cannot be read, or is no mapping.
    """

  @abc.abstractmethod
  def where(self, index: int) -> str:
    """The name of a row for people, such as "train.jsonl:17"."""

  @property
  def opened(self) -> Any:
    """What `_open` gives, opened once."""
    if self._opened is None:
      self._opened = self._open()
    return self._opened

  def __getstate__(self):
    return {**self.__dict__, '_opened': None}


class File(abc.ABC):
  """One opened file of rows."""

  @abc.abstractmethod
  def __len__(self) -> int:
    """Rows."""

  @abc.abstractmethod
  def row(self, index: int) -> Any:
    """Row number `index` of the file, or RowError."""


class FileSource(Source):
  """The rows of one or several files, one file after the other.

  Args:
    path: a file, several, or patterns with `*`; see `expand`.
    folder: of relative paths.
  """

  def __init__(self, path: str | Sequence[str], folder: str = ''):
    self._path = path
    self._folder = folder

  @abc.abstractmethod
  def _open_file(self, path: epath.Path) -> File:
    """Opens one file.

    Raises:
      UserError: it is not one of this format, or is damaged.
    """

  def _open(self):
    paths = expand(self._path, self._folder)
    files = [self._open_file(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
      if not len(file):
        raise errors.UserError(
          f'{path} holds no rows: it is empty or was cut off; write it again'
        )
    return paths, files, list(itertools.accumulate(map(len, files)))

  def __len__(self) -> int:
    return self.opened[2][-1]

  def _locate(self, index: int) -> tuple[int, int]:
    ends = self.opened[2]
    which = bisect.bisect_right(ends, index)
    return which, index - (ends[which - 1] if which else 0)

  def row(self, index: int) -> dict[str, Any]:
    """See `Source.row`."""
    which, place = self._locate(index)
    row = self.opened[1][which].row(place)
    if not isinstance(row, dict):
      raise RowError(f'is {kind_of(row)}, not an object of named fields')
    return row

  def where(self, index: int) -> str:
    """See `Source.where`; rows of a file count from 1."""
    which, place = self._locate(index)
    return f'{self.opened[0][which]}:{place + 1}'


def expand(path: str | Sequence[str], folder: str = '') -> list[epath.Path]:
  """The files that are meant, in the order of reading.

  Args:
    path: one or several of: a file, or a pattern in whose last part `*`, `?`
      and `[...]` match; files of one pattern are sorted by name.
    folder: of relative paths.

  Raises:
    UserError: nothing there, a folder, a file named twice, or a missing shard
      (of names such as `x-00000-of-00004`).
  """
  paths = [path] if isinstance(path, str) else path
  if (
    not isinstance(paths, Sequence)
    or not paths
    or not all(isinstance(p, str) and p for p in paths)
  ):
    raise errors.UserError(
      f'path={path!r} must be the path of a file, or a list of them'
    )
  found: list[epath.Path] = []
  for one in paths:
    full = epath.Path(one).expanduser()
    if folder:
      full = epath.Path(folder).expanduser() / full
    if set('*?[') & set(full.name):
      files = sorted(p for p in full.parent.glob(full.name) if p.is_file())
      if not files:
        raise errors.UserError(f'no file matches {full}; check the pattern')
    elif full.is_dir():
      raise errors.UserError(
        f'{full} is a folder; name its files, as in {full}/*'
      )
    elif not full.exists():
      raise errors.UserError(f'{full} does not exist; check the path')
    else:
      files = [full]
    for file in files:
      if file in found:
        raise errors.UserError(f'{file} is named twice; read it once')
      found.append(file)
  _check_shards(found)
  return found


def _check_shards(paths: Sequence[epath.Path]) -> None:
  """Refuses a set of numbered shards with a gap."""
  shards: dict[tuple[str, str, str], set[int]] = {}
  for path in paths:
    if match := _SHARD.fullmatch(str(path)):
      stem, number, total, end = match.groups()
      shards.setdefault((stem, total, end), set()).add(int(number))
  for (stem, total, end), numbers in shards.items():
    missing = sorted(set(range(int(total))) - numbers)
    # One shard alone is a choice; several with a gap are an accident.
    if missing and len(numbers) > 1:
      raise errors.UserError(
        f'{stem}-{missing[0]:0{len(total)}}-of-{total}{end} is missing: '
        f'{len(numbers)} of {int(total)} shards are there'
      )


def plain(value: Any) -> Any:
  """A field as JSON has it: text, numbers, None, lists and dicts.

  Args:
    value: as a source gives it: bytes are text, numpy numbers are numbers.

  Raises:
    RowError: it is none of these, or text that is not UTF-8.
  """
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:
      raise RowError(f'holds half a character ({error.reason})') from error
    return value
  if value is None or isinstance(value, bool | int | float):
    return value
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise RowError(f'is not UTF-8 ({error.reason})') from error
  if isinstance(value, np.generic | np.ndarray):
    return plain(value.tolist())
  if isinstance(value, dict):
    return {plain(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  raise RowError(f'holds {kind_of(value)}, which is neither text nor a number')


def kind_of(value: Any) -> str:
  """A value's type in words."""
  names = {
    type(None): 'null',
    bool: 'a truth value',
    int: 'a number',
    float: 'a number',
    str: 'text',
    list: 'a list',
    dict: 'an object',
  }
  return names.get(type(value), f'a {type(value).__name__}')
