"""Atomic whole-object writes."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.telemetry import files


def test_a_failed_write_leaves_the_old_object(tmp_path, monkeypatch):
  path = tmp_path / 'a.txt'
  files.write_text_atomic(path, 'old')

  def fail(source, target):
    raise OSError('killed here')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', fail)
    with pytest.raises(OSError):
      files.write_text_atomic(path, 'new')
  assert path.read_text() == 'old'
  files.write_text_atomic(path, 'newer')
  assert path.read_text() == 'newer'
  assert [child.name for child in tmp_path.iterdir()] == ['a.txt']


def test_two_writers_do_not_meet(tmp_path, monkeypatch):
  """Each renames its own temporary file, whoever comes first."""
  path, replace = tmp_path / 'a.txt', os.replace

  def interrupted(source, target):
    monkeypatch.setattr(os, 'replace', replace)
    files.write_text_atomic(path, 'of the other')
    assert path.read_text() == 'of the other'
    replace(source, target)

  monkeypatch.setattr(os, 'replace', interrupted)
  assert files.write_bytes_atomic(path, b'own') == path
  assert path.read_text() == 'own'
  assert [child.name for child in tmp_path.iterdir()] == ['a.txt']


def test_errors_of_a_disk_are_told(tmp_path):
  with pytest.raises(UserError, match='the disk of .*x is full: no report'):
    with files.writing(tmp_path / 'x', 'no report'):
      raise OSError(errno.ENOSPC, 'No space left on device')
  (tmp_path / 'file').write_text('')
  path = tmp_path / 'file' / 'in'
  with pytest.raises(UserError, match='cannot be written .*: no report'):
    with files.writing(path, 'no report'):
      files.write_text_atomic(path, '')


def test_remote_paths_are_written_as_one_object(monkeypatch):
  written = {}

  class Bucket:
    def __init__(self, path):
      self.path = path

    def __fspath__(self):
      return self.path

    def write_bytes(self, content):
      written[self.path] = content

  monkeypatch.setattr(files.epath, 'Path', Bucket)
  files.write_text_atomic('gs://bucket/a', 'text')
  assert written == {'gs://bucket/a': b'text'}


def test_to_jsonable():
  value = {
    1: (np.float32(0.5), np.int64(2), np.array([1.0, np.inf])),
    'set': {3, 1, 2},
    'path': pathlib.PurePosixPath('/a'),
    'nan': float('nan'),
    'true': True,
  }
  expected = {
    '1': [0.5, 2, [1.0, None]],
    'set': [1, 2, 3],
    'path': '/a',
    'nan': None,
    'true': True,
  }
  assert files.to_jsonable(value) == expected
  assert files.to_jsonable(np.inf, finite=False) == np.inf
  json.dumps(files.to_jsonable(value), allow_nan=False)
  with pytest.raises(TypeError, match='object'):
    files.to_jsonable([object()])
