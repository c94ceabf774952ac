"""Sources of rows by name. A new one adds its file and one line here."""

from metastone_jax.tasks.sources.array_record import ArrayRecord
from metastone_jax.tasks.sources.base import (
  FileSource,
  RowError,
  Source,
  plain,
  refuse_or_tell,
)
from metastone_jax.tasks.sources.champ import Champ
from metastone_jax.tasks.sources.jsonl import JsonLines, JsonList
from metastone_jax.tasks.sources.parquet import Parquet
from metastone_jax.tasks.sources.tfds import Tfds

SOURCES: dict[str, type[Source]] = {
  'array_record': ArrayRecord,
  'champ': Champ,
  'json': JsonList,
  'jsonl': JsonLines,
  'parquet': Parquet,
  'tfds': Tfds,
}

__all__ = [
  'SOURCES',
  'FileSource',
  'RowError',
  'Source',
  'plain',
  'refuse_or_tell',
]
