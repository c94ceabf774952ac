"""The same rows written in every format."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from metastone_jax.tasks import base
from metastone_jax.tasks.verifiers.base import Verifier

FORMS = ('jsonl', 'json', 'parquet', 'array_record', 'tfds')


class Boxed(Verifier):
  """Right if the box holds the answer's text."""

  name = 'boxed'

  def verify(self, problem, response_text):
    content = base.boxed_answer(response_text)
    if content is None:
      return base.UNPARSED
    right = content.strip() == problem.answer
    return base.Verdict(float(right), True, content.strip())


def write_lines(path: pathlib.Path, rows: Sequence[Any]) -> str:
  """JSON lines; a row of type bytes is written as it is."""
  lines = [
    row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows
  ]
  path.write_bytes(b''.join(line + b'\n' for line in lines))
  return str(path)


def write_array_record(path: pathlib.Path, rows: Sequence[Any]) -> str:
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for row in rows:
    writer.write(row if isinstance(row, bytes) else json.dumps(row).encode())
  writer.close()
  return str(path)


def write_parquet(path: pathlib.Path, rows: Sequence[dict], group=7) -> str:
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.Table.from_pylist(list(rows))
  parquet.write_table(table, path, row_group_size=group)
  return str(path)


def write_tfds(folder: pathlib.Path, rows: Sequence[dict]) -> str:
  """A TFDS data set of text and integers, shuffled as TFDS does; its folder."""
  import numpy as np
  import tensorflow_datasets as tfds

  kinds = {str: tfds.features.Text, int: lambda: np.int64}
  features = {name: kinds[type(value)]() for name, value in rows[0].items()}

  class Rows(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # each test makes its own
  ):
    """Written for a test."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features_dict = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=features_dict)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows)

  tfds.display_progress_bar(False)
  builder = Rows(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return str(folder / 'rows' / '1.0.0')


def write(folder: pathlib.Path, rows: Sequence[dict], form: str) -> dict:
  """Writes rows; the options of a task that reads them."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'rows.{form}'
  if form == 'json':
    path.write_text(json.dumps(rows))
  elif form == 'tfds':
    return {'source': 'tfds', 'path': write_tfds(folder, rows)}
  else:
    writers = {
      'jsonl': write_lines,
      'parquet': write_parquet,
      'array_record': write_array_record,
    }
    writers[form](path, rows)
  return {'source': form, 'path': str(path)}
