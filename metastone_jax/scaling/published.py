"""The published test-time scaling table, as an example of a law.

Contract: pass@1 in per cent of models with a score head at low, medium and
high effort, which answer by the best of k = 2, 8, 32 thinking traces, and of
the models they were trained from (one trace, k = 1). Numbers of problems,
seeds and thinking tokens are not published; so there are no intervals, and
compute is k, or parameters x k, which has the unit of the paper's compute
(parameters x thinking tokens) only if all models think equally long. Sizes are
those of the models' names.

Source: SPEC section 8; the models are those of arXiv 2507.01951 and XBai-o4.
"""

import dataclasses

import numpy as np

from metastone_jax.scaling.bend import BendSigns, bend_signs
from metastone_jax.scaling.curve import Curve

EFFORTS = {'low': 2, 'medium': 8, 'high': 32}
BENCHMARKS = ('AIME24', 'AIME25', 'LiveCodeBench', 'C-Eval')


@dataclasses.dataclass(frozen=True)
class Published:
  """One number of the table.

  Attributes:
    model: name.
    size: short name of the model for curves: '1.5B', ...
    parameters: by the name.
    benchmark: one of BENCHMARKS.
    effort: 'low', 'medium', 'high', or 'base': the model it was trained from.
    k: traces an answer.
    accuracy: pass@1, per cent.
  """

  model: str
  size: str
  parameters: float
  benchmark: str
  effort: str
  k: int
  accuracy: float


# (model, short name, parameters, base, the base's pass@1, low/medium/high);
# None: not published. Benchmarks in the order of BENCHMARKS.
_TABLE = (
  (
    *('S1-1.5B', '1.5B', 1.5e9, 'DeepScaleR-1.5B', (43.1, 30.0, None, None)),
    (
      (44.0, 53.1, 57.9),
      (32.6, 35.7, 40.4),
      (24.2, 26.6, 28.1),
      (43.6, 43.9, 44.1),
    ),
  ),
  (
    *('S1-7B', '7B', 7e9, 'R1-Distill-Qwen-7B', (55.5, None, 37.6, None)),
    (
      (60.7, 66.3, 70.2),
      (45.4, 48.3, 48.6),
      (41.7, 44.1, 44.4),
      (55.1, 57.5, 57.8),
    ),
  ),
  (
    *('S1-32B', '32B', 32e9, 'QwQ-32B', (79.5, 69.5, 63.4, 88.4)),
    (
      (82.0, 84.2, 85.2),
      (72.0, 73.4, 73.6),
      (63.8, 64.0, 64.2),
      (89.5, 89.6, 89.7),
    ),
  ),
  (
    *('XBai-o4', 'XBai-o4', 32e9, 'Qwen3-32B', (None, None, None, None)),
    (
      (82.4, 85.4, 86.5),
      (74.8, 77.6, 77.9),
      (66.6, 67.0, 67.2),
      (89.4, 89.5, 89.7),
    ),
  ),
)


def _rows() -> tuple[Published, ...]:
  found = []
  for model, size, parameters, base, base_B, accuracy_B3 in _TABLE:
    for benchmark, single, accuracy_3 in zip(
      BENCHMARKS, base_B, accuracy_B3, strict=True
    ):
      if single is not None:
        found.append(
          Published(base, size, parameters, benchmark, 'base', 1, single)
        )
      found += [
        Published(model, size, parameters, benchmark, effort, k, accuracy)
        for (effort, k), accuracy in zip(
          EFFORTS.items(), accuracy_3, strict=True
        )
      ]
  return tuple(found)


PUBLISHED = _rows()
SIZES = tuple(dict.fromkeys(row.size for row in PUBLISHED))


def efforts(benchmark: str, size: str) -> list[Published]:
  """The rows at k = 2, 8, 32 of one model, in that order."""
  return [
    row
    for row in PUBLISHED
    if (row.benchmark, row.size) == (benchmark, size) and row.effort != 'base'
  ]


def base(benchmark: str, size: str) -> Published | None:
  """The row of the model it was trained from; None: not published."""
  for row in PUBLISHED:
    if (row.benchmark, row.size, row.k) == (benchmark, size, 1):
      return row
  return None


def points_per_doubling() -> dict[tuple[str, str], tuple[float, float]]:
  """(benchmark, size) -> points per doubling of k from 2 to 8 and 8 to 32."""
  found = {}
  for benchmark in BENCHMARKS:
    for size in SIZES:
      rows = efforts(benchmark, size)
      gain_2 = np.diff([row.accuracy for row in rows])
      doublings_2 = np.diff(np.log2([row.k for row in rows]))
      # Inputs have one decimal: rounding to six takes off what is binary.
      before, after = np.round(gain_2 / doublings_2, 6).tolist()
      found[benchmark, size] = before, after
  return found


def curves(benchmark: str, *, against: str = 'k') -> list[Curve]:
  """A curve a model, three points each.

  Args:
    benchmark: one of BENCHMARKS.
    against: 'k', or 'parameters x k'.
  """
  found = []
  for size in SIZES:
    rows = efforts(benchmark, size)
    k_n = np.array([row.k for row in rows], float)
    scale = rows[0].parameters if against == 'parameters x k' else 1.0
    accuracy_n = np.array([row.accuracy for row in rows])
    found.append(Curve(size, scale * k_n, accuracy_n, k_n=k_n))
  return found


def signs(benchmarks=BENCHMARKS) -> BendSigns:
  """Directions of all curves against k, 16 by default."""
  return bend_signs(
    (curve.compute_n, curve.accuracy_n)
    for benchmark in benchmarks
    for curve in curves(benchmark)
  )
