"""Metric rows of a run as curves on one continuous step axis.

Contract: rows are the dicts of the run's JSONL: 'step', 'phase' and numbers by
name. Several rows may share a step, values may be None or text (left out), and
each phase may count its steps from 0: it then continues where the last ended.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from metastone_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
  """Metric rows on one continuous step axis.

  Attributes:
    rows: (x, index of the phase, row) for each row.
    phases: (name, first x, last x) for each phase.
  """

  rows: list[tuple[float, int, Mapping]]
  phases: list[tuple[str, float, float]]

  def names(self) -> list[str]:
    """Every name that occurs, in order of appearance."""
    return list(dict.fromkeys(name for _, _, row in self.rows for name in row))

  def series(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One (x, y) of float64 arrays a phase, undefined values left out."""
    for phase in range(len(self.phases)):
      # The last row of a step wins, as after a resume.
      values = {
        x: row[name]
        for x, owner, row in self.rows
        if owner == phase and is_number(row.get(name))
      }
      if values:
        x = sorted(values)
        yield np.array(x, float), np.array([values[i] for i in x], float)


def is_number(value) -> bool:
  """Whether a metric value is a finite number."""
  numeric = isinstance(value, int | float | np.number)
  return numeric and not isinstance(value, bool) and math.isfinite(value)


def read_run(metrics: Iterable[Mapping]) -> Run:
  """Puts the phases one after another on one step axis."""
  # A phase ends where the name changes: 'joint' may come twice.
  groups: list[tuple[str, list[Mapping]]] = []
  for row in metrics:
    if not is_number(row.get('step')):
      raise UserError(f'metrics: a row has no step: {dict(row)}')
    name = str(row.get('phase', ''))
    if not groups or groups[-1][0] != name:
      groups.append((name, []))
    groups[-1][1].append(row)
  if not groups:
    raise UserError('metrics: no rows to plot')
  rows, phases, end = [], [], 0.0
  for index, (name, part) in enumerate(groups):
    steps = [float(row['step']) for row in part]
    # Steps that start again at 0 continue where the last phase ended.
    offset = end if index and min(steps) < end else 0.0
    rows += [
      (step + offset, index, row) for step, row in zip(steps, part, strict=True)
    ]
    start = end if index else min(steps)
    end = max(steps) + offset
    phases.append((name, start, end))
  return Run(rows, phases)


def smooth(y: np.ndarray) -> np.ndarray:
  """Centred running mean over about 1/15 of the points, NaN left out."""
  half = len(y) // 30
  known = np.isfinite(y)
  total = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
  count = np.concatenate([[0], np.cumsum(known)])
  index = np.arange(len(y))
  low = np.maximum(index - half, 0)
  high = np.minimum(index + half + 1, len(y))
  number = count[high] - count[low]
  mean = (total[high] - total[low]) / np.maximum(number, 1)
  return np.where(number > 0, mean, np.nan)
