"""A fake object store behind `gs://`: no append, no rename, no empty folders.

What epath does with such paths lands in a local folder, under the rules of a
bucket: an object appears whole when its writer closes it, nothing is appended,
renamed or changed in place, and a folder exists exactly while an object is in
it. Orbax takes its real path for buckets; only tensorstore's own network
driver, which writes the arrays, is replaced by its file driver.
"""

import contextlib
import io
import os
import pathlib
import shutil
import uuid

from etils.epath import backend as backend_lib
from etils.epath import gpath, stat_utils
from orbax.checkpoint._src.path import gcs_utils


class Refused(OSError):  # noqa: N818 (a state of the store)
  """What a bucket cannot do."""


class _Object(io.BytesIO):
  """A new object: there only once it is closed."""

  def __init__(self, path: pathlib.Path, root: pathlib.Path):
    super().__init__()
    self._path, self._root = path, root

  def close(self):
    if not self.closed:
      self._root.mkdir(parents=True, exist_ok=True)
      whole = self._root / f'.{uuid.uuid4().hex}'
      whole.write_bytes(self.getvalue())
      self._path.parent.mkdir(parents=True, exist_ok=True)
      whole.replace(self._path)
    super().close()

  def __exit__(self, kind, *rest):
    if kind is None:
      self.close()
    else:  # an upload that was given up leaves nothing
      super().close()


class FakeStore(backend_lib.Backend):
  """Objects below a local folder.

  Attributes:
    refused: what was tried and cannot be done.
    written: names of the objects written through epath.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.refused: list[str] = []
    self.written: list[str] = []

  def local(self, path) -> pathlib.Path:
    """Where an object lies."""
    name = os.fspath(path)
    assert name.startswith('gs://'), name
    return self.root / name.removeprefix('gs://')

  def _refuse(self, what: str):
    self.refused.append(what)
    raise Refused(what)

  def open(self, path, mode):
    kind = mode.replace('b', '').replace('t', '')
    if kind not in ('r', 'w'):
      self._refuse(f'open({path}, {mode!r})')
    if kind == 'r':
      if not self.local(path).is_file():
        raise FileNotFoundError(str(path))
      encoding = {} if 'b' in mode else {'encoding': 'utf-8'}
      return open(self.local(path), mode, **encoding)
    self.written.append(os.fspath(path))
    raw = _Object(self.local(path), self.root)
    if 'b' in mode:
      return raw
    return io.TextIOWrapper(raw, encoding='utf-8', write_through=True)

  def _has_objects(self, local: pathlib.Path) -> bool:
    return any(files for _, _, files in os.walk(local))

  def exists(self, path):
    return self.local(path).is_file() or self.isdir(path)

  def isdir(self, path):
    return self._has_objects(self.local(path))

  def listdir(self, path):
    if not self.isdir(path):
      raise FileNotFoundError(str(path))
    return [
      child.name
      for child in self.local(path).iterdir()
      if child.is_file() or self._has_objects(child)
    ]

  def glob(self, path):
    pattern = os.fspath(path).removeprefix('gs://')
    return [
      f'gs://{found.relative_to(self.root).as_posix()}'
      for found in sorted(self.root.glob(pattern))
      if found.is_file() or self._has_objects(found)
    ]

  def walk(self, top, *, top_down=True, on_error=None):
    for folder, folders, files in os.walk(self.local(top), topdown=top_down):
      name = pathlib.Path(folder).relative_to(self.root).as_posix()
      yield f'gs://{name}', folders, files

  def makedirs(self, path, *, exist_ok=False, mode=None):
    pass  # a bucket has no empty folders

  def mkdir(self, path, *, exist_ok=False, mode=None):
    if not exist_ok and self.exists(path):
      raise FileExistsError(str(path))

  def rmtree(self, path):
    if not self.isdir(path):
      raise FileNotFoundError(str(path))
    shutil.rmtree(self.local(path))

  def remove(self, path):
    if not self.local(path).is_file():
      raise FileNotFoundError(str(path))
    self.local(path).unlink()

  def rename(self, path, dst):
    self._refuse(f'rename({path}, {dst})')

  def replace(self, path, dst):
    self._refuse(f'replace({path}, {dst})')

  def copy(self, path, dst, overwrite):
    if self.exists(dst) and not overwrite:
      raise FileExistsError(str(dst))
    with self.open(path, 'rb') as source, self.open(dst, 'wb') as target:
      target.write(source.read())

  def stat(self, path):
    if not self.exists(path):
      raise FileNotFoundError(str(path))
    found = self.local(path).stat()
    return stat_utils.StatResult(
      is_directory=self.isdir(path),
      length=found.st_size,
      mtime=int(found.st_mtime),
    )


@contextlib.contextmanager
def fake_store(monkeypatch, root: pathlib.Path):
  """Inside, `gs://...` is below `root`."""
  store = FakeStore(root)
  with monkeypatch.context() as patch:
    patch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', store)
    patch.setattr(
      gpath, '_GCS_BACKENDS', gpath._GCS_BACKENDS | frozenset({store})
    )
    patch.setattr(
      gcs_utils,
      'get_kvstore_for_gcs',
      lambda path: {'driver': 'file', 'path': str(store.local(path))},
    )
    patch.setattr(
      gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False
    )
    yield store
