"""What the points of a sweep have found: one tidy table, one row a finding.

Contract: a point is done when `points/NAME/rows.json` is there, written last
and once. The table is a function of these files alone, in the order of the
plan: the same however often the sweep was killed. How long points took is in
`times.csv`, apart from it.
"""

import csv
import io
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan as plan_lib
from metastone_jax.telemetry import files

Row = dict[str, Any]

_VALUES = (str, int, float, bool, type(None))


def finish_point(
  folder: epath.Path, rows: Sequence[Mapping[str, Any]], times: Mapping
) -> bool:
  """Marks a point as done, unless it is.

  Args:
    folder: of the point.
    rows: of the table.
    times: what is in `times.csv` about it.

  Returns:
    Whether these are its rows now: False = another worker was faster.

  Raises:
    UserError: a row with a value that is no cell of a table.
  """
  for row in rows:
    for key, value in row.items():
      if not isinstance(value, _VALUES):
        raise UserError(
          f'point {folder.name}: {key}={value!r} is a '
          f'{type(value).__name__}; a row holds text, numbers and None'
        )
  if is_done(folder):
    return False
  files.write_json_atomic(folder / 'times.json', dict(times))
  text = json.dumps([dict(row) for row in rows], indent=1) + '\n'
  return _write_once(folder / 'rows.json', text)


def is_done(folder: epath.Path) -> bool:
  """Whether a point is done."""
  return (folder / 'rows.json').exists()


def rows_of(plan: plan_lib.Plan, workdir: epath.Path) -> list[Row]:
  """All rows of the points that are done; each names its point and kind."""
  found = []
  for name, point in plan.points.items():
    folder = plan_lib.point_folder(workdir, name)
    if is_done(folder):
      found += [
        {'point': name, 'kind': point['kind'], **row}
        for row in json.loads((folder / 'rows.json').read_text())
      ]
  return found


def times_of(plan: plan_lib.Plan, workdir: epath.Path) -> list[Row]:
  """How long each point that is done took, and where."""
  found = []
  for name in plan.points:
    path = plan_lib.point_folder(workdir, name) / 'times.json'
    if path.exists():
      found.append({'point': name, **json.loads(path.read_text())})
  return found


def write(plan: plan_lib.Plan, workdir: epath.Path) -> list[epath.Path]:
  """Writes table.csv, times.csv and, where pyarrow is there, table.parquet."""
  rows = rows_of(plan, workdir)
  paths = [workdir / 'table.csv', workdir / 'times.csv']
  files.write_text_atomic(paths[0], _csv(rows))
  files.write_text_atomic(paths[1], _csv(times_of(plan, workdir)))
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:  # the extra `parquet`; the CSV has it all
    return paths
  buffer = io.BytesIO()
  columns = {
    key: _column([row.get(key) for row in rows]) for key in _columns(rows)
  }
  parquet.write_table(pyarrow.table(columns), buffer)
  paths.append(workdir / 'table.parquet')
  files.write_bytes_atomic(paths[-1], buffer.getvalue())
  return paths


def _write_once(path: epath.Path, text: str) -> bool:
  """Writes a file that must not be there; whether it was not.

  On a disk exactly: a link is made or refused. A bucket (and a disk without
  links) offers no such thing; there the claim of the point holds others off.
  """
  if files.is_remote(path):
    files.write_text_atomic(path, text)
    return True
  whole = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp'
  try:
    whole.write_text(text)
    os.link(whole, path)
  except FileExistsError:
    return False
  except OSError:  # a disk without links
    files.write_text_atomic(path, text)
  finally:
    whole.unlink(missing_ok=True)
  return True


def _columns(rows: Sequence[Row]) -> list[str]:
  return list(dict.fromkeys(key for row in rows for key in row))


def _column(values: list) -> list:
  """Of one type: whole numbers beside others are numbers, the rest is text."""
  kinds = {type(value) for value in values if value is not None}
  if kinds == {int, float}:
    return [None if value is None else float(value) for value in values]
  if len(kinds) > 1:
    return [None if value is None else str(value) for value in values]
  return values


def _csv(rows: Sequence[Row]) -> str:
  out = io.StringIO()
  writer = csv.DictWriter(out, _columns(rows), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()
