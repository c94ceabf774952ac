"""The published table, as data, and its points per doubling."""

import csv
import decimal
import pathlib

import numpy as np
import pytest
from scipy import stats

from metastone_jax.scaling import fit_log_linear, published

# Typed in again, one string a model, from the tables of the paper: low /
# medium / high on AIME24; AIME25; LiveCodeBench; C-Eval.
TABLE = {
  'S1-1.5B': '44.0 53.1 57.9; 32.6 35.7 40.4; 24.2 26.6 28.1; 43.6 43.9 44.1',
  'S1-7B': '60.7 66.3 70.2; 45.4 48.3 48.6; 41.7 44.1 44.4; 55.1 57.5 57.8',
  'S1-32B': '82.0 84.2 85.2; 72.0 73.4 73.6; 63.8 64.0 64.2; 89.5 89.6 89.7',
  'XBai-o4': '82.4 85.4 86.5; 74.8 77.6 77.9; 66.6 67.0 67.2; 89.4 89.5 89.7',
}
BASES = {
  'S1-1.5B': (43.1, 30.0, None, None),
  'S1-7B': (55.5, None, 37.6, None),
  'S1-32B': (79.5, 69.5, 63.4, 88.4),
  'XBai-o4': (None,) * 4,
}


def _half_up(value: float) -> str:
  exact = decimal.Decimal(str(round(value, 6)))
  return str(exact.quantize(decimal.Decimal('0.1'), decimal.ROUND_HALF_UP))


def test_every_number_of_the_table():
  assert published.MODELS == tuple(TABLE)
  for model, text in TABLE.items():
    for benchmark, part, base in zip(
      published.BENCHMARKS, text.split(';'), BASES[model], strict=True
    ):
      found = published.points_of(model, benchmark)
      assert [p.k for p in found] == [2, 8, 32]
      assert [p.accuracy for p in found] == [float(x) for x in part.split()]
      single = published.base_of(model, benchmark)
      assert (single and single.accuracy) == base
      assert single is None or single.k == 1
  assert len(published.PUBLISHED) == 4 * 4 * 3 + 8


def test_points_per_doubling_as_they_are_quoted():
  quoted = {
    'S1-1.5B': ('4.6', '2.4'),
    'S1-7B': ('2.8', '2.0'),
    'S1-32B': ('1.1', '0.5'),
  }
  found = {
    gain.model: (_half_up(gain.low_to_medium), _half_up(gain.medium_to_high))
    for gain in published.points_per_doubling()
    if gain.benchmark == 'AIME24' and gain.model in quoted
  }
  assert found == quoted


def test_the_line_through_three_points_has_the_mean_gain():
  # k = 2, 8, 32 lie evenly in ln k: the line's slope is that from end to end.
  for gain, curve in zip(
    published.points_per_doubling(), published.curves(), strict=True
  ):
    assert curve.label == f'{gain.model}, {gain.benchmark}'
    line = fit_log_linear(curve.compute_n, curve.accuracy_n)
    mean = (gain.low_to_medium + gain.medium_to_high) / 2
    np.testing.assert_allclose(line.per_doubling, mean, atol=1e-12)


def test_signs_of_the_bends_counted_in_tenths():
  tenths = [
    [int(x.replace('.', '')) for x in part.split()]
    for text in TABLE.values()
    for part in text.split(';')
  ]
  second = [c - 2 * b + a for a, b, c in tenths]
  found = published.bends()
  assert found.down == sum(x < 0 for x in second) == 12
  assert found.up == sum(x > 0 for x in second) == 2
  assert found.straight == sum(x == 0 for x in second) == 2
  two_sided = 2 * stats.binom.cdf(2, 14, 0.5)
  assert found.p == pytest.approx(two_sided)
  assert 0.006 < two_sided / 2 < 0.007


def test_what_rounding_can_make_of_a_bend():
  # Each number is off by 0.05 at most, the middle one counts twice.
  worst = max(
    abs((0.05 * c - 2 * 0.05 * b + 0.05 * a) / 2)
    for a in (-1, 1)
    for b in (-1, 1)
    for c in (-1, 1)
  )
  for gain in published.points_per_doubling():
    assert gain.beyond_rounding == (abs(gain.change) > worst + 1e-9)
  sure = [g for g in published.points_per_doubling() if g.beyond_rounding]
  assert len(sure) == 11 and sum(g.change < 0 for g in sure) == 10


def test_compute_is_k_or_parameters_times_k():
  for curve, sized in zip(
    published.curves(), published.curves(sizes=True), strict=True
  ):
    assert curve.compute_n.tolist() == [2, 8, 32]
    parameters = sized.compute_n / sized.k_n
    assert len(set(parameters)) == 1
    assert parameters[0] == 1e9 * {'S1-1.5B': 1.5, 'S1-7B': 7}.get(
      sized.label.partition(',')[0], 32
    )
  pooled = published.pooled('AIME24')
  assert pooled.label == 'AIME24'
  np.testing.assert_allclose(
    pooled.compute_n / 1e9, [3, 12, 14, 48, 56, 64, 224, 256, 1024]
  )
  np.testing.assert_allclose(
    pooled.accuracy_n, [44, 53.1, 60.7, 57.9, 66.3, 82, 70.2, 84.2, 85.2]
  )


def test_the_example_file_holds_the_same_rows():
  path = pathlib.Path(__file__).parents[2] / 'docs' / 'scaling_published.csv'
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  wanted = [p.row() for p in published.PUBLISHED if not p.base_of]
  assert [list(row) for row in rows] == [list(row) for row in wanted]
  for row, point in zip(rows, wanted, strict=True):
    for key, value in point.items():
      assert (row[key] if isinstance(value, str) else float(row[key])) == value
