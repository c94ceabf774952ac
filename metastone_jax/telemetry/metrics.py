"""Metrics of a run: JSONL segments are the truth.

Contract:
- A row is `{'step': int, 'phase': str, <metric>: number or string, ...}`; NaN
  and infinities are written as null under their name. Rows are numbered 0, 1,
  2, ... over the whole run.
- Objects in a bucket cannot be appended, so rows are buffered and `flush()`
  writes them as ONE new object `metrics/segment-<first row>.jsonl`. The loop
  calls `state()` (which flushes) for every checkpoint and stores the result
  in the checkpoint.
- Between flushes the buffered rows are in `metrics/open.jsonl`, rewritten as
  a whole at most every `refresh_seconds`, for people who watch. The first
  row is there at once.
- On resume `restore(state)` drops everything after the checkpoint, so the
  metrics of an interrupted and resumed run equal those of an undisturbed one.
- Segments are named by row, not by step: several rows may share a step.
- Only the primary process touches files; the others count rows, so that
  `state()` is the same everywhere.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import numpy as np
from absl import logging
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.telemetry import files
from metastone_jax.telemetry import sinks as sinks_lib

_SEGMENT = re.compile(r'segment-(\d{9,})\.jsonl')
_OPEN = 'open.jsonl'


def _scalar(name: str, value: Any) -> int | float | str | None:
  """Returns `value` as a JSON scalar; raises ValueError with its name."""
  if value is None or isinstance(value, bool | int | str):
    return value
  if np.ndim(value) != 0:
    raise ValueError(
      f'metric {name!r} must be a scalar, got shape {np.shape(value)}'
    )
  plain = files.to_jsonable(value, finite=False)
  if isinstance(plain, float) and not math.isfinite(plain):
    return None
  return plain


def _dump(rows: Iterable[Mapping[str, Any]]) -> str:
  return ''.join(json.dumps(row, allow_nan=False) + '\n' for row in rows)


def _load(path: epath.Path) -> list[dict[str, Any]]:
  rows = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise UserError(
        f'metrics file {path} is damaged at line {number}: repair or remove it'
      ) from error
  return rows


def _segments(folder: epath.Path) -> list[tuple[int, epath.Path]]:
  """Returns (first row, path) of each segment, by first row."""
  if not folder.exists():
    return []
  matches = [(_SEGMENT.fullmatch(path.name), path) for path in folder.iterdir()]
  return sorted((int(match[1]), path) for match, path in matches if match)


def read_metrics(directory: epath.PathLike) -> list[dict[str, Any]]:
  """Returns all rows of the run in `directory`, in the order written.

  Args:
    directory: The run's directory (the one given to `MetricWriter`).

  Returns:
    Rows as dicts; null metrics come back as None. Empty without metrics.

  Raises:
    UserError: If a line is not JSON; names the file and the line.
  """
  folder = epath.Path(directory) / 'metrics'
  rows = []
  for _, path in _segments(folder):
    rows += _load(path)
  if (folder / _OPEN).exists():
    rows += _load(folder / _OPEN)
  return rows


class MetricWriter:
  """Writes metric rows; see the module docstring for the files.

  A new writer continues after the segments it finds and ignores a left-over
  `open.jsonl`. A run that starts (not resumes) in a used directory calls
  `restore(None)` first.

  Args:
    directory: The run's directory; files go to its `metrics/` folder.
    refresh_seconds: Smallest time between two writes of `open.jsonl`.
    sinks: Mirrors to open: 'tensorboard', 'wandb'.
    config: The run's config, recorded in the mirrors.
    primary: Whether this process writes (`jax.process_index() == 0`).
    clock: Returns seconds; monotonic. Replaceable in tests.

  Raises:
    UserError: For an unknown or missing sink.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    refresh_seconds: float = 5.0,
    sinks: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
    primary: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ):
    directory = epath.Path(directory)
    self._folder = directory / 'metrics'
    self._refresh_seconds = refresh_seconds
    self._primary = primary
    self._clock = clock
    self._buffer: list[dict[str, Any]] = []
    self._last_refresh = -math.inf
    segments = _segments(self._folder)
    self._flushed = 0
    if segments:
      first_row, path = segments[-1]
      self._flushed = first_row + len(_load(path))
    self._sinks = sinks_lib.make_sinks(
      list(sinks) if primary else [], directory, config
    )

  @property
  def num_rows(self) -> int:
    """Rows of the run so far, buffered ones included."""
    return self._flushed + len(self._buffer)

  def write(self, step: int, phase: str, metrics: Mapping[str, Any]) -> None:
    """Adds one row.

    Args:
      step: Update number the row speaks of.
      phase: Name of the phase, such as 'joint'.
      metrics: Scalars by name: Python, numpy or jax numbers, or strings.

    Raises:
      ValueError: If a metric is no scalar or is called 'step' or 'phase'.
    """
    for reserved in ('step', 'phase'):
      if reserved in metrics:
        raise ValueError(f'{reserved!r} is a reserved metric name')
    row = {'step': int(step), 'phase': phase}
    row.update((name, _scalar(name, value)) for name, value in metrics.items())
    for sink in self._sinks:
      sink.write(self.num_rows, row)
    self._buffer.append(row)
    now = self._clock()
    if self._primary and now - self._last_refresh >= self._refresh_seconds:
      files.write_text_atomic(self._folder / _OPEN, _dump(self._buffer))
      self._last_refresh = now

  def flush(self) -> None:
    """Writes the buffered rows as one segment; nothing without rows."""
    if not self._buffer:
      return
    if self._primary:
      # The open rows go first: a kill between the two lines then loses rows
      # after the last checkpoint, which a resumed run writes again; the other
      # order could show rows twice.
      (self._folder / _OPEN).unlink(missing_ok=True)
      name = f'segment-{self._flushed:09d}.jsonl'
      files.write_text_atomic(self._folder / name, _dump(self._buffer))
    self._flushed += len(self._buffer)
    self._buffer = []
    self._last_refresh = -math.inf

  def state(self) -> dict[str, int]:
    """Flushes, and returns what a checkpoint must remember: {'rows': int}."""
    self.flush()
    return {'rows': self._flushed}

  def restore(self, state: Mapping[str, int] | None) -> None:
    """Returns to a checkpoint's `state()`; None empties the metrics."""
    self.truncate_after(0 if state is None else int(state['rows']))

  def truncate_after(self, num_rows: int) -> None:
    """Keeps the first `num_rows` rows of the run and drops all others."""
    self._buffer = []
    self._flushed = num_rows
    self._last_refresh = -math.inf
    if not self._primary:
      return
    (self._folder / _OPEN).unlink(missing_ok=True)
    kept = 0
    for first_row, path in _segments(self._folder):
      if first_row >= num_rows:
        path.unlink()
        continue
      rows = _load(path)
      if first_row + len(rows) > num_rows:
        rows = rows[: num_rows - first_row]
        files.write_text_atomic(path, _dump(rows))
      kept += len(rows)
    if kept < num_rows:
      logging.warning(
        'metrics in %s have %d rows where the checkpoint counts %d: earlier '
        'segments are missing',
        self._folder,
        kept,
        num_rows,
      )

  def close(self) -> None:
    """Flushes and closes the mirrors."""
    self.flush()
    for sink in self._sinks:
      sink.close()
    self._sinks = []

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc) -> None:
    self.close()
