"""A curve: accuracies at rising computes, for laws and plots.

Contract: plain arrays of n points, in the order of their computes; accuracy in
one unit of the caller's choice (per cent, a share), the same for `low_n`,
`high_n` and `accuracy_PM`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.scaling import points

# Of the largest accuracy: what float32 loses in a mean over problems.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """n points of one curve; sorted by compute when it is made.

  Attributes:
    label: for legends and tables.
    compute_n: above 0, any unit; may repeat (seeds).
    accuracy_n: of each point.
    low_n: lower ends of their intervals, or None; NaN where there is none.
    high_n: upper ends; both or neither.
    k_n: samples an answer, or None.
    accuracy_PM: of each of P problems at each point (M = n), or None; its mean
      is `accuracy_n`.
  """

  label: str
  compute_n: np.ndarray
  accuracy_n: np.ndarray
  low_n: np.ndarray | None = None
  high_n: np.ndarray | None = None
  k_n: np.ndarray | None = None
  accuracy_PM: np.ndarray | None = None

  def __post_init__(self):
    what = f'curve {self.label!r}'
    points.log_compute(self.compute_n)
    compute_n = np.asarray(self.compute_n, np.float64)
    accuracy_n = points.numbers(f'{what}: accuracy', self.accuracy_n)
    n = len(compute_n)
    if not n:
      raise UserError(f'{what} has no point')
    if (self.low_n is None) != (self.high_n is None):
      raise UserError(f'{what}: give low_n and high_n, or neither')
    order_n = np.argsort(compute_n, kind='stable')
    found = {'compute_n': compute_n, 'accuracy_n': accuracy_n}
    for name in ('low_n', 'high_n', 'k_n'):
      if getattr(self, name) is not None:
        found[name] = np.asarray(getattr(self, name), np.float64)
    if self.accuracy_PM is not None:
      found['accuracy_PM'] = points.numbers(
        f'{what}: accuracy_PM', self.accuracy_PM, 2
      )
    for name, values in found.items():
      if values.shape[-1:] != (n,):
        raise UserError(
          f'{what}: {name} has shape {values.shape}, for {n} points'
        )
      object.__setattr__(self, name, values[..., order_n])
    if self.accuracy_PM is not None:
      self._check_problems(what)

  def _check_problems(self, what: str) -> None:
    if len(self.accuracy_PM) < 2:
      raise UserError(
        f'{what}: accuracy_PM has {len(self.accuracy_PM)} problems; give 2 or '
        'more, or leave it out'
      )
    off = np.abs(self.accuracy_PM.mean(axis=0) - self.accuracy_n).max()
    if off > _ROUNDING * np.abs(self.accuracy_n).max():
      raise UserError(
        f'{what}: accuracy_n is not the mean of accuracy_PM over problems (up '
        f'to {off:.3g} apart); give both in one unit'
      )

  @property
  def problems_or_means(self) -> np.ndarray:
    """`accuracy_PM` where it is there, else `accuracy_n`, as fits take them."""
    return self.accuracy_n if self.accuracy_PM is None else self.accuracy_PM

  @property
  def can_be_fitted(self) -> bool:
    """Whether it has 3 points or more, not all at one compute."""
    return (
      len(self.compute_n) >= 3 and points.distinct(np.log(self.compute_n)) >= 2
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Envelope:
  """The best of several curves at each budget of compute: a rising staircase.

  Attributes:
    compute_m: where it rises, ascending.
    accuracy_m: the best that has been reached up to there.
    labels: of the curve that reached it.
  """

  compute_m: np.ndarray
  accuracy_m: np.ndarray
  labels: tuple[str, ...]


def envelope(curves: Sequence[Curve]) -> Envelope:
  """Best accuracy within each compute.

  Chosen on what it is measured on: a maximum of many noisy points is too good.
  """
  found = sorted(
    (compute, -accuracy, curve.label)
    for curve in curves
    for compute, accuracy in zip(curve.compute_n, curve.accuracy_n, strict=True)
  )
  steps: list[tuple[float, float, str]] = []
  for compute, loss, label in found:
    if not steps or -loss > steps[-1][1]:
      steps.append((compute, -loss, label))
  compute_m, accuracy_m, labels = zip(*steps, strict=True)
  return Envelope(np.array(compute_m), np.array(accuracy_m), labels)
