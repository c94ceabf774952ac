"""What the report and the pictures of laws are given: points of one curve.

Contract: accuracies, bounds and differences are in PER CENT (points); compute
has any unit, the same for all curves of a picture. Points stand in rising
compute.

Shapes: n points, P problems.
"""

import dataclasses

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.scaling import points


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """Points (compute, accuracy) that belong together: a size, a strategy.

  Attributes:
    label: for legends and tables.
    compute_n: above 0; sorted on construction, all else with it.
    accuracy_n: per cent.
    low_n: lower bounds of the accuracies; None: unknown.
    high_n: upper bounds.
    k_n: samples an answer; None: unknown.
    accuracy_PM: of each of P problems at the n points, for bands over
      problems; None: unknown.

  Raises:
    UserError: an array of another length, or values that are no numbers.
  """

  label: str
  compute_n: np.ndarray
  accuracy_n: np.ndarray
  low_n: np.ndarray | None = None
  high_n: np.ndarray | None = None
  k_n: np.ndarray | None = None
  accuracy_PM: np.ndarray | None = None  # noqa: N815 (shape suffix)

  def __post_init__(self):
    compute_n = np.exp(points.log_compute(self.compute_n))
    if not len(compute_n):
      raise UserError(f'curve {self.label!r} has no point')
    order_n = np.argsort(compute_n, kind='stable')
    for name in ('compute_n', 'accuracy_n', 'low_n', 'high_n', 'k_n'):
      values = getattr(self, name)
      if values is None:
        continue
      # Bounds may be NaN where a point has none.
      values = np.asarray(values, np.float64)
      if name == 'accuracy_n':
        values = points.numbers('accuracy', values)
      if values.shape != compute_n.shape:
        raise UserError(
          f'curve {self.label!r}: {name} has shape {values.shape}, there are '
          f'{len(compute_n)} points'
        )
      object.__setattr__(self, name, values[order_n])
    if self.accuracy_PM is not None:
      accuracy_PM = points.numbers('accuracy_PM', self.accuracy_PM, 2)
      if accuracy_PM.shape[1] != len(compute_n):
        raise UserError(
          f'curve {self.label!r}: accuracy_PM has {accuracy_PM.shape[1]} '
          f'columns, there are {len(compute_n)} points'
        )
      object.__setattr__(self, 'accuracy_PM', accuracy_PM[:, order_n])

  @property
  def fitted(self) -> np.ndarray:
    """What a band over problems, or over residuals, is made of."""
    return self.accuracy_n if self.accuracy_PM is None else self.accuracy_PM


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
  """What pruning saves and costs against best-of-k, n points of rising k.

  Attributes:
    label: for the legend.
    k_n: samples an answer.
    tokens_n: thinking tokens that are not drawn, per cent of all.
    change_n: accuracy with pruning minus without, points.
    low_n: lower bounds of that.
    high_n: upper bounds.
  """

  label: str
  k_n: np.ndarray
  tokens_n: np.ndarray
  change_n: np.ndarray
  low_n: np.ndarray | None = None
  high_n: np.ndarray | None = None


def envelope(curves) -> tuple[np.ndarray, np.ndarray]:
  """The best accuracy that each compute budget buys, over all curves.

  Args:
    curves: of one compute unit.

  Returns:
    (compute_m, accuracy_m): the points that no cheaper or equally cheap point
    reaches, both strictly rising.
  """
  compute = np.concatenate([c.compute_n for c in curves])
  accuracy = np.concatenate([c.accuracy_n for c in curves])
  # Of equal computes the best comes first, so that it alone can be kept.
  order = np.lexsort((-accuracy, compute))
  compute, accuracy = compute[order], accuracy[order]
  before = np.concatenate([[-np.inf], np.maximum.accumulate(accuracy)[:-1]])
  keep = accuracy > before
  return compute[keep], accuracy[keep]
