"""A user's own table of (compute, accuracy): CSV, JSON lines or Parquet.

Contract: the file's kind is its extension. Rows of one group are one curve, in
the order in which groups appear. Accuracies lie in 0..1 (all of them: shares,
turned into per cent) or in 0..100 (per cent). Every refusal is one line that
names the file, the row (counted from 1, the header of a CSV not counted) and
the column.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.errors import UserError, first_line, some_of
from metastone_jax.scaling.curve import Curve

# What a page can show, and fit in a minute or so.
MOST_CURVES, MOST_COMPUTES = 32, 100
_EXTENSIONS = ('.csv', '.jsonl', '.parquet')


@dataclasses.dataclass(frozen=True)
class UserTable:
  """What was read.

  Attributes:
    curves: one a group.
    shares: whether the file has shares, 0..1; `curves` are per cent anyway.
  """

  curves: tuple[Curve, ...]
  shares: bool


def read_table(
  path: epath.PathLike,
  *,
  compute: str = 'compute',
  accuracy: str = 'accuracy',
  group: str = '',
) -> UserTable:
  """Reads the curves of a file.

  Args:
    path: .csv, .jsonl or .parquet.
    compute: name of the column of compute, above 0.
    accuracy: name of the column of accuracy.
    group: name of the column that tells curves apart; '' = one curve.

  Returns:
    UserTable.

  Raises:
    UserError: no such file, another kind of file, no row, a column that is not
      there, a value that is no number in range, or more than a page can show.
  """
  path = epath.Path(path)
  rows = _rows(path)
  if not rows:
    raise UserError(f'{path} has no row; give one (compute, accuracy) a row')
  found: dict[str, list[tuple[float, float]]] = {}
  for number, row in enumerate(rows, 1):
    where = f'{path}, row {number}'
    c = _number(where, row, compute)
    if c <= 0:
      raise UserError(
        f'{where}, column {compute}: compute must be above 0, its logarithm '
        f'is fitted: got {c:g}'
      )
    y = _number(where, row, accuracy)
    if not 0 <= y <= 100:
      raise UserError(
        f'{where}, column {accuracy}: accuracy must lie in 0..100 (per cent) '
        f'or 0..1 (shares): got {y:g}'
      )
    label = path.stem
    if group:
      # A line break in a cell would end a row of the page's tables.
      label = ' '.join(str(_value(where, row, group)).split())
    found.setdefault(label, []).append((c, y))
  _check_size(path, found, group)
  shares = all(y <= 1 for some in found.values() for _, y in some)
  curves = []
  for label, some in found.items():
    compute_n, accuracy_n = np.array(some).T
    curves.append(Curve(label, compute_n, accuracy_n * (100 if shares else 1)))
  return UserTable(tuple(curves), shares)


def _check_size(path: epath.Path, found: Mapping[str, list], group: str):
  if len(found) > MOST_CURVES:
    raise UserError(
      f'{path}: column {group} tells {len(found)} curves apart, a page shows '
      f'up to {MOST_CURVES}; leave some out or name another column by '
      '--group_column'
    )
  for label, some in found.items():
    computes = len({c for c, _ in some})
    if computes > MOST_COMPUTES:
      raise UserError(
        f'{path}: curve {label} has {computes} different computes, up to '
        f'{MOST_COMPUTES} are fitted; average neighbours, or tell curves apart '
        'by --group_column'
      )


def _rows(path: epath.Path) -> list[Mapping[str, Any]]:
  extension = path.suffix.lower()
  if extension not in _EXTENSIONS:
    raise UserError(
      f'--table {path}: the extension {extension or "(none)"} is not known; '
      f'give one of {", ".join(_EXTENSIONS)}, or `published`'
    )
  if not path.exists():
    raise UserError(f'there is no --table {path}')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise UserError(
      f'--table {path} cannot be read: {error.strerror or error}'
    ) from error
  if extension == '.parquet':
    return _parquet(path, content)
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text: {error}') from error
  return _csv(path, text) if extension == '.csv' else _json_lines(path, text)


def _csv(path: epath.Path, text: str) -> list[Mapping[str, Any]]:
  rows = []
  reader = csv.DictReader(io.StringIO(text, newline=''), skipinitialspace=True)
  try:
    for number, row in enumerate(reader, 1):
      if None in row:
        raise UserError(
          f'{path}, row {number}: has more cells than the header has names'
        )
      rows.append(row)
  except csv.Error as error:
    raise UserError(f'{path}, row {len(rows) + 1}: {error}') from error
  return rows


def _json_lines(path: epath.Path, text: str) -> list[Mapping[str, Any]]:
  rows = []
  # Other ends of lines (U+2028 ...) may stand inside a JSON string.
  for line in text.split('\n'):
    if not line.strip():
      continue
    where = f'{path}, row {len(rows) + 1}'
    try:
      row = json.loads(line)
    except ValueError as error:
      raise UserError(f'{where}: no JSON: {error}') from error
    if not isinstance(row, dict):
      raise UserError(f'{where}: no JSON object')
    rows.append(row)
  return rows


def _parquet(path: epath.Path, content: bytes) -> list[Mapping[str, Any]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise UserError(
      f"{path}: Parquet needs pyarrow; pip install 'metastone_jax[parquet]', "
      'or give a CSV file'
    ) from error
  try:
    return parquet.read_table(io.BytesIO(content)).to_pylist()
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(
      f'{path} is no Parquet file: {first_line(error)}'
    ) from error


def _value(where: str, row: Mapping[str, Any], column: str) -> Any:
  if column not in row:
    raise UserError(
      f'{where}: there is no column {column!r}, there are '
      f'{some_of(_names(row))}; name it by --compute_column, '
      '--accuracy_column or --group_column'
    )
  value = row[column]
  if value is None or value == '':
    raise UserError(f'{where}, column {column}: is empty')
  return value


def _names(row: Mapping[str, Any]) -> Sequence[str]:
  return [str(name) for name in row]


def _number(where: str, row: Mapping[str, Any], column: str) -> float:
  value = _value(where, row, column)
  try:
    if isinstance(value, bool):
      raise ValueError
    found = float(value)
  except OverflowError:  # a whole number beyond all floats
    found = math.inf
  except (TypeError, ValueError) as error:
    raise UserError(
      f'{where}, column {column}: must be a number: got {_short(value)}'
    ) from error
  if not math.isfinite(found):
    raise UserError(
      f'{where}, column {column}: must be a finite number: got {_short(value)}'
    )
  return found


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
