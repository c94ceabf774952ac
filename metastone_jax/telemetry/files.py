"""Whole-object file writing that works on local disks and in `gs://` buckets.

Contract:
- A reader sees the old object or the new one, never half of one. On a local
  file system the text goes to a temporary sibling and is renamed over the
  target; in an object store one object write is already atomic.
- Nothing is ever appended and nothing but that temporary file is renamed.
- The temporary name (`.<name>....tmp`) is unique, so that two processes may
  write the same target at once; only a process that is killed leaves one.
"""

import contextlib
import errno
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.errors import UserError


def disk_error(error: OSError, path: epath.PathLike, what: str) -> UserError:
  """What a failed write means to a user; the caller has cleaned up.

  Args:
    error: of the write.
    path: what was being written.
    what: what did not come about, e.g. 'nothing was exported'.
  """
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return UserError(
      f'the disk of {path} is full: {what}; free space or write elsewhere'
    )
  return UserError(
    f'{path} cannot be written ({error.strerror or error}): {what}'
  )


def is_remote(path: epath.PathLike) -> bool:
  """True for object-store paths such as `gs://bucket/run`."""
  return '://' in os.fspath(path)


def children(folder: epath.Path) -> list[epath.Path]:
  """What is in a folder; a bucket has no empty ones, so nothing may be."""
  try:
    return list(folder.iterdir()) if folder.exists() else []
  except FileNotFoundError:  # its last object went between the two looks
    return []


@contextlib.contextmanager
def whole_folder(out: epath.PathLike, nothing: str):
  """A folder that appears whole or not at all; what is at `out` is replaced.

  On a local disk it is made as `.NAME.incomplete` beside its place and renamed.
  An object store has no rename: there the caller writes last the file without
  which the folder counts for nothing.

  Args:
    out: the folder.
    nothing: what did not come about, e.g. 'nothing was exported'.

  Yields:
    The folder to write into.

  Raises:
    UserError: it cannot be written, or the disk is full; nothing is left.
  """
  out = epath.Path(out)
  folder = out if is_remote(out) else out.parent / f'.{out.name}.incomplete'
  try:
    if folder.exists():
      folder.rmtree()  # of a killed process
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if folder != out:
      if out.exists():
        out.rmtree()
      os.replace(folder, out)
  except BaseException as error:
    if folder.exists():
      folder.rmtree()
    if isinstance(error, OSError):
      raise disk_error(error, out, nothing) from error
    raise


@contextlib.contextmanager
def writing(path: epath.PathLike, what: str):
  """Errors of the disk inside become `disk_error`.

  Args:
    path: what is being written.
    what: what does not come about where that fails.

  Raises:
    UserError: likewise.
  """
  try:
    yield
  except OSError as error:
    raise disk_error(error, path, what) from error


def write_bytes_atomic(path: epath.PathLike, content: bytes) -> epath.Path:
  """Writes `content` to `path` as one object; parent folders are created.

  Args:
    path: final name.
    content: all of it.

  Returns:
    The path.
  """
  path = epath.Path(path)
  if is_remote(path):
    # A rename there is a copy.
    path.write_bytes(content)
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  name = f'.{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp'
  temporary = path.parent / name
  try:
    temporary.write_bytes(content)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return path


def write_text_atomic(path: epath.PathLike, text: str) -> None:
  """Writes `text` (UTF-8) to `path` as one object."""
  write_bytes_atomic(path, text.encode())


def write_arrays(
  path: epath.PathLike, arrays: Mapping[str, Any], *, compress: bool = True
) -> epath.Path:
  """Writes named arrays as one .npz, whole or not at all."""
  buffer = io.BytesIO()
  (np.savez_compressed if compress else np.savez)(buffer, **arrays)
  return write_bytes_atomic(path, buffer.getvalue())


@contextlib.contextmanager
def reading_arrays(
  path: epath.PathLike, what: str, fix: str
) -> Iterator[Mapping[str, np.ndarray]]:
  """The arrays of an .npz, without pickles, while the block reads them.

  Args:
    path: the file.
    what: it is, after "not a whole", e.g. 'file of values'.
    fix: what to do about a broken one.

  Raises:
    UserError: it is missing or broken, or lacks what the block asks for.
  """
  path = epath.Path(path)
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
      yield data
  except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
    raise UserError(
      f'{path}: not a whole {what} ({type(error).__name__}); {fix}'
    ) from error


def to_jsonable(value: Any, *, finite: bool = True) -> Any:
  """Turns numpy and jax values, tuples and paths into plain JSON values.

  Args:
    value: Any nest of dicts, lists, tuples, scalars, arrays and paths.
    finite: If true NaN and infinities become None, because JSON has neither;
      if false they are kept (Python's JSON reader and writer accept them).

  Returns:
    The same nest of dict, list, str, int, float, bool and None.

  Raises:
    TypeError: If a value of another type is met.
  """
  if value is None or isinstance(value, bool | int | str):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) or not finite else None
  if hasattr(value, 'dtype'):
    array = np.asarray(value)
    if array.dtype.kind not in 'biufSU':  # bfloat16 and float8 extensions.
      array = array.astype(np.float32)
    return to_jsonable(array.tolist(), finite=finite)
  if hasattr(value, 'items'):
    return {
      str(key): to_jsonable(child, finite=finite)
      for key, child in value.items()
    }
  if isinstance(value, list | tuple | set | frozenset | range):
    items = sorted(value) if isinstance(value, set | frozenset) else value
    return [to_jsonable(child, finite=finite) for child in items]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  raise TypeError(f'{type(value).__name__} cannot be written as JSON: {value}')


def write_json_atomic(path: epath.PathLike, obj: Any) -> None:
  """Writes `obj` as indented JSON; see `to_jsonable` for what is accepted."""
  text = json.dumps(to_jsonable(obj), indent=2, allow_nan=False)
  write_text_atomic(path, text + '\n')
