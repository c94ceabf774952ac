"""The curves of a scaling-law sweep, from what its sample points have left.

Contract: a curve is one strategy of one model size and thinking budget at all
k. All seeds of a size have the same problems, so a value a problem is the mean
over seeds, and the PROBLEM is the unit of every interval here: points at
different k come from the same samples of the same problems, their errors go up
and down together, and an interval that takes them as independent is too narrow.
What another seed would have given is shown by the seeds themselves.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.evaluation import Interval, intervals
from metastone_jax.scaling import strategies
from metastone_jax.scaling.runs.law import LawValues


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
  """One sample point that is done.

  Attributes:
    width: of the model.
    parameters: of its backbone.
    seed: of training and draws.
    budget: thinking tokens; 0 = none.
    values: of its rows, a problem.
  """

  width: int
  parameters: int
  seed: int
  budget: int
  values: LawValues


@dataclasses.dataclass(frozen=True, eq=False)
class LawCurve:
  """One strategy of one size and budget, n points of rising k.

  Attributes:
    width: of the model.
    parameters: of its backbone.
    budget: thinking tokens; 0 = none.
    strategy: name of a strategy.
    first: tokens at the first milestone of pruning; 0 = no pruning.
    seeds: that it is the mean of.
    k_n: samples an answer.
    accuracy_SPn: of each seed, at each problem.
    thinking_n: thinking tokens a problem.
    flops_n: FLOPs a problem.
  """

  width: int
  parameters: int
  budget: int
  strategy: str
  first: int
  seeds: tuple[int, ...]
  k_n: np.ndarray
  accuracy_SPn: np.ndarray
  thinking_n: np.ndarray
  flops_n: np.ndarray

  @property
  def compute_n(self) -> np.ndarray:
    """Parameters x thinking tokens a problem."""
    return self.parameters * self.thinking_n

  @property
  def accuracy_Pn(self) -> np.ndarray:  # noqa: N802 (shape suffix)
    """Mean over seeds, of each problem."""
    return self.accuracy_SPn.mean(axis=0)

  @property
  def accuracy_n(self) -> np.ndarray:
    """Mean over seeds and problems."""
    return self.accuracy_SPn.mean(axis=(0, 1))

  @property
  def label(self) -> str:
    """For legends and tables."""
    text = f'{self.parameters / 1e6:.2f} M'
    if self.budget:
      text += f', {self.budget} thinking tokens'
    return text

  def limits(self) -> tuple[np.ndarray, np.ndarray]:
    """95 % over problems, at each k: (low_n, high_n)."""
    found = intervals.column_intervals(
      self.accuracy_Pn, [intervals.SHARE] * len(self.k_n)
    )
    return np.array([x.low for x in found]), np.array([x.high for x in found])

  def at(self, k: int) -> np.ndarray:
    """Accuracy of each problem at k, mean over seeds."""
    return self.accuracy_Pn[:, int(np.flatnonzero(self.k_n == k)[0])]


def load(
  points: Iterable[Mapping[str, Any]],
  workdir: epath.Path,
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Drawn], list[str]]:
  """What is done of a sweep.

  Args:
    points: of its config.
    workdir: of the sweep.
    rows: of the tidy table.

  Returns:
    (done sample points in the order of the config, names of the others).
  """
  found = {row['point']: row for row in rows if row.get('strategy') is not None}
  done, missing = [], []
  for point in points:
    if point['kind'] != 'sample':
      continue
    row = found.get(point['name'])
    if row is None:
      missing.append(point['name'])
      continue
    path = workdir / 'points' / point['name'] / 'values.npz'
    fields = (row[key] for key in ('width', 'parameters', 'seed', 'budget'))
    done.append(Drawn(*fields, LawValues.load(path)))
  return done, missing


def curve(
  drawn: Iterable[Drawn],
  width: int,
  budget: int,
  strategy: str,
  first: int = 0,
) -> LawCurve | None:
  """The mean over the seeds that are there; None where none is.

  Raises:
    UserError: seeds with other problems or k.
  """
  found = [d for d in drawn if (d.width, d.budget) == (width, budget)]
  parts = []
  for one in found:
    values = one.values
    m = np.flatnonzero(
      (values.strategy_M == strategy) & (values.first_M == first)
    )
    if not len(m):
      return None
    parts.append((values, m[np.argsort(values.k_M[m])]))
  if not parts:
    return None
  start, m_n = parts[0]
  k_n = start.k_M[m_n]
  for values, m in parts:
    same = np.array_equal(values.problem_ids, start.problem_ids)
    if not same or not np.array_equal(values.k_M[m], k_n):
      raise UserError(
        f'the seeds of width {width}, budget {budget} have different problems '
        'or k; remove the folders of their sample points and sweep again'
      )
  return LawCurve(
    width,
    found[0].parameters,
    budget,
    strategy,
    first,
    tuple(one.seed for one in found),
    k_n,
    np.stack([values.accuracy_PM[:, m] for values, m in parts]),
    *(
      np.mean([getattr(v, name)[:, m].mean(axis=0) for v, m in parts], axis=0)
      for name in ('thinking_PM', 'flops_PM')
    ),
  )


def widths(drawn: Iterable[Drawn]) -> list[int]:
  """That are there, from the smallest."""
  return sorted({one.width for one in drawn})


def budgets(drawn: Iterable[Drawn]) -> list[int]:
  """Likewise; no budget is the largest."""
  return sorted({one.budget for one in drawn}, key=lambda b: b or math.inf)


def firsts(drawn: Iterable[Drawn]) -> list[int]:
  """First milestones of pruning that are there."""
  found = {int(x) for one in drawn for x in one.values.first_M}
  return sorted(found - {0})


def slope_weights(compute_n) -> np.ndarray:
  """w with slope per doubling = accuracies @ w, by least squares on ln C."""
  x_n = np.log(np.asarray(compute_n, float))
  off_n = x_n - x_n.mean()
  return math.log(2) * off_n / (off_n @ off_n)


def slope_over_problems(compute_n, accuracy_Pn) -> Interval:
  """Accuracy a doubling of compute, and its interval over problems.

  The slope is a weighted sum of the points, so it has a value for each problem
  of which it is the mean: what the points share is kept together.
  """
  slope_P = np.asarray(accuracy_Pn) @ slope_weights(compute_n)
  return intervals.interval(slope_P, intervals.VALUE)


def slopes_of_seeds(curves: Sequence[LawCurve]) -> list[float]:
  """Accuracy a doubling of compute, of each seed by itself.

  Args:
    curves: of one line, with equal seeds.
  """
  weight_m = slope_weights(np.concatenate([c.compute_n for c in curves]))
  accuracy_Sm = np.concatenate(
    [c.accuracy_SPn.mean(axis=1) for c in curves], axis=1
  )
  return (accuracy_Sm @ weight_m).tolist()


def title_of(curve: LawCurve) -> str:
  """What a strategy is called, with its first milestone."""
  name = strategies.STRATEGIES[curve.strategy]
  return f'{name} from {curve.first} tokens on' if curve.first else name
