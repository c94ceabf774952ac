"""TensorFlow Datasets without TensorFlow (extra `tfds`).

Reads what has been prepared in the format array_record, by random access
(`as_data_source`); preparing needs no TensorFlow either for most data sets:

  import tensorflow_datasets as tfds
  tfds.builder('NAME', file_format='array_record').download_and_prepare()

A shard that was cut off still counts as whole in the data set's own
description: shards are counted here.
"""

import re
from typing import Any

from etils import epath

from metastone_jax import errors
from metastone_jax.tasks.sources import array_record, base


class Tfds(base.Source):
  """One split of a prepared data set.

  Args:
    dataset: its name, 'name', 'name/config' or 'name/config:1.0.0'.
    path: instead of a name: the folder of a version, with dataset_info.json.
    split: as TFDS writes it: 'train', 'train[:90%]', 'train+test'.
    data_dir: where data sets lie; '' = TFDS's own default.
    folder: of a relative `path`.
  """

  def __init__(
    self,
    dataset: str = '',
    path: str = '',
    split: str = 'train',
    data_dir: str = '',
    folder: str = '',
  ):
    if bool(dataset) == bool(path):
      raise errors.UserError(
        "a source 'tfds' needs dataset=NAME, or path=FOLDER of a prepared one"
      )
    if path and folder:
      path = str(epath.Path(folder) / path)
    self._dataset, self._path = dataset, path
    self._split, self._data_dir = split, data_dir

  def _open(self):
    what = self._path or self._dataset
    try:
      # Imported here: it is an extra.
      import tensorflow_datasets as tfds
    except ImportError as error:
      raise errors.UserError(
        f'{what} needs the package tensorflow-datasets; '
        'pip install "metastone_jax[tfds]"'
      ) from error
    try:
      if self._path:
        builder = tfds.builder_from_directory(self._path)
      else:
        builder = tfds.builder(self._dataset, data_dir=self._data_dir or None)
    except Exception as error:  # Code of the data set may raise anything.
      raise errors.UserError(
        f'TFDS has no {what} ({errors.first_line(error)}); check the name, or '
        'data_dir'
      ) from error
    if not builder.is_prepared():
      raise errors.UserError(
        f'{what} is not prepared in {builder.data_dir}; run once in Python: '
        'import tensorflow_datasets as tfds; '
        f'tfds.builder({what!r}, file_format="array_record")'
        '.download_and_prepare()'
      )
    shards = self._shards(builder, what)
    try:
      if not builder.info.splits[self._split].num_examples:
        raise errors.UserError(
          f'split {self._split!r} of {what} has no rows; name another'
        )
      rows = builder.as_data_source(split=self._split)
    except errors.UserError:
      raise
    except Exception as error:
      raise errors.UserError(
        f'{what} cannot be read by index ({errors.first_line(error)}); it must '
        'be prepared with file_format="array_record"'
      ) from error
    return rows, shards, what

  def _shards(self, builder, what) -> list[tuple[str, int]]:
    """(file, rows) of the split; none of a part of one or of several."""
    splits = builder.info.splits
    named = [n for n in re.findall(r'[\w.-]+', self._split) if n in splits]
    if not named:
      raise errors.UserError(
        f'{what} has no split {self._split!r}; it has {", ".join(splits)}'
      )
    for name in named:
      shards = zip(
        splits[name].filepaths, splits[name].shard_lengths, strict=True
      )
      for path, rows in shards:
        if '.array_record' not in path.name:
          continue  # as_data_source refuses other formats
        found = len(array_record.ArrayRecordFile(path))
        if found != rows:
          raise errors.UserError(
            f'{path} holds {found} records where dataset_info.json says '
            f'{rows}: it was cut off; prepare the data set again'
          )
    if self._split not in splits:
      return []
    split = splits[self._split]
    return [
      (str(path), rows)
      for path, rows in zip(split.filepaths, split.shard_lengths, strict=True)
    ]

  def __len__(self) -> int:
    return len(self.opened[0])

  def row(self, index: int) -> dict[str, Any]:
    """See `base.Source.row`; text is still bytes."""
    try:
      return self.opened[0][index]
    except (RuntimeError, ValueError) as error:
      raise base.RowError(f'is damaged ({errors.first_line(error)})') from error

  def where(self, index: int) -> str:
    """See `base.Source.where`."""
    _, shards, what = self.opened
    for path, rows in shards:
      if index < rows:
        return f'{path}:{index + 1}'
      index -= rows
    return f'{what} {self._split} row {index + 1}'
