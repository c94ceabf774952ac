"""The published accuracies of the method, as data, and what they say of a law.

Source: "Test-Time Scaling with Reflective Generative Model" (arXiv 2507.01951):
pass@1 in per cent at low, medium and high effort, which are k = 2, 8 and 32
samples, and of the models they were trained from.

Contract: what is not in the source is not here. It gives no thinking tokens, so
compute can only be k, or (nominal) parameters x k. Three points a curve have
one degree of freedom to a line: the direction of a bend is known, its noise is
not; AIME has 30 problems, so 3.3 points are one problem.
"""

import dataclasses
import math

from metastone_jax.scaling import bend
from metastone_jax.scaling.curve import Curve

KS = (2, 8, 32)
BENCHMARKS = ('AIME24', 'AIME25', 'LiveCodeBench', 'C-Eval')
# What a published number may be off by rounding, in points.
ROUNDED = 0.05

_S1 = ('S1-1.5B', 'S1-7B', 'S1-32B')
# Nominal sizes: the source counts in these.
_PARAMETERS = {
  **dict(zip(_S1, (1.5e9, 7e9, 32e9), strict=True)),
  'XBai-o4': 32e9,
}
# model -> its base, pass@1 of the base at each benchmark (None: not given)
_BASES = {
  'S1-1.5B': ('DeepScaleR-1.5B', (43.1, 30.0, None, None)),
  'S1-7B': ('R1-Distill-Qwen-7B', (55.5, None, 37.6, None)),
  'S1-32B': ('QwQ-32B', (79.5, 69.5, 63.4, 88.4)),
}
# model -> at each benchmark, at each k
_ACCURACY = {
  'S1-1.5B': (
    (44.0, 53.1, 57.9),
    (32.6, 35.7, 40.4),
    (24.2, 26.6, 28.1),
    (43.6, 43.9, 44.1),
  ),
  'S1-7B': (
    (60.7, 66.3, 70.2),
    (45.4, 48.3, 48.6),
    (41.7, 44.1, 44.4),
    (55.1, 57.5, 57.8),
  ),
  'S1-32B': (
    (82.0, 84.2, 85.2),
    (72.0, 73.4, 73.6),
    (63.8, 64.0, 64.2),
    (89.5, 89.6, 89.7),
  ),
  'XBai-o4': (
    (82.4, 85.4, 86.5),
    (74.8, 77.6, 77.9),
    (66.6, 67.0, 67.2),
    (89.4, 89.5, 89.7),
  ),
}
MODELS = tuple(_ACCURACY)


@dataclasses.dataclass(frozen=True)
class Published:
  """One published number.

  Attributes:
    model: that was measured.
    parameters: nominal.
    benchmark: of `BENCHMARKS`.
    k: samples an answer; 1: one sample of a base model.
    accuracy: pass@1, per cent.
    base_of: the model that was trained from this one; empty: it is no base.
  """

  model: str
  parameters: float
  benchmark: str
  k: int
  accuracy: float
  base_of: str = ''

  @property
  def curve(self) -> str:
    """Name of the curve that the point is on."""
    return f'{self.model}, {self.benchmark}'

  def row(self) -> dict:
    """As a row of a table."""
    return {
      'curve': self.curve,
      'model': self.model,
      'benchmark': self.benchmark,
      'parameters': self.parameters,
      'k': self.k,
      'parameters_x_k': self.parameters * self.k,
      'accuracy': self.accuracy,
    }


def _rows():
  for model, found in _ACCURACY.items():
    size = _PARAMETERS[model]
    if model in _BASES:
      base, accuracies = _BASES[model]
      for benchmark, accuracy in zip(BENCHMARKS, accuracies, strict=True):
        if accuracy is not None:
          yield Published(base, size, benchmark, 1, accuracy, model)
    for benchmark, accuracies in zip(BENCHMARKS, found, strict=True):
      for k, accuracy in zip(KS, accuracies, strict=True):
        yield Published(model, size, benchmark, k, accuracy)


PUBLISHED: tuple[Published, ...] = tuple(_rows())


def points_of(model: str, benchmark: str) -> list[Published]:
  """The three points of a curve, by k."""
  return [
    row
    for row in PUBLISHED
    if (row.model, row.benchmark) == (model, benchmark) and not row.base_of
  ]


def base_of(model: str, benchmark: str) -> Published | None:
  """The base model's number there, if it was published."""
  for row in PUBLISHED:
    if (row.base_of, row.benchmark) == (model, benchmark):
      return row
  return None


def curves(*, sizes: bool = False) -> list[Curve]:
  """The 16 curves of accuracy against k, three points each.

  Args:
    sizes: compute is parameters x k instead.
  """
  return [
    _curve(f'{model}, {benchmark}', points_of(model, benchmark), sizes)
    for benchmark in BENCHMARKS
    for model in MODELS
  ]


def pooled(benchmark: str) -> Curve:
  """The three S1 models as one curve of accuracy against parameters x k.

  XBai-o4 has another base model, and is left out.
  """
  found = [row for model in _S1 for row in points_of(model, benchmark)]
  return _curve(benchmark, found, sizes=True)


def _curve(label: str, found: list[Published], sizes: bool) -> Curve:
  return Curve(
    label,
    [row.parameters * row.k if sizes else row.k for row in found],
    [row.accuracy for row in found],
    k_n=[row.k for row in found],
  )


@dataclasses.dataclass(frozen=True)
class Gain:
  """Points per doubling of k between the efforts, of one curve.

  Attributes:
    model: its name.
    benchmark: its name.
    low_to_medium: per doubling from k = 2 to 8.
    medium_to_high: from k = 8 to 32.
  """

  model: str
  benchmark: str
  low_to_medium: float
  medium_to_high: float

  @property
  def change(self) -> float:
    """Later gain minus earlier: below 0 the curve bends down."""
    return self.medium_to_high - self.low_to_medium

  @property
  def beyond_rounding(self) -> bool:
    """Whether the change is more than rounding of its numbers can make."""
    doublings = math.log2(KS[1] / KS[0])
    return abs(self.change) > 4 * ROUNDED / doublings + 1e-9


def points_per_doubling() -> list[Gain]:
  """Of all 16 curves; exact in the published digits."""
  found = []
  for benchmark in BENCHMARKS:
    for model in MODELS:
      low, medium, high = (p.accuracy for p in points_of(model, benchmark))
      gains = (
        # Tenths are no binary numbers; their differences are taken as tenths.
        round(b - a, 6) / math.log2(k_b / k_a)
        for a, b, k_a, k_b in (
          (low, medium, *KS[:2]),
          (medium, high, *KS[1:]),
        )
      )
      found.append(Gain(model, benchmark, *gains))
  return found


def bends() -> bend.BendSigns:
  """How many of the 16 curves bend down, and the sign test of that."""
  return bend.bend_signs((c.compute_n, c.accuracy_n) for c in curves())
