"""The report of laws: what it says, against fits made here; odd curves."""

import math
import re

import numpy as np
import pytest

from metastone_jax.scaling import (
  fit_law,
  fit_log_linear,
  published_plot,
  published_report,
  report,
)
from metastone_jax.scaling.curve import Curve

K = 2.0 ** np.arange(7)


def saturating_curve():
  rng = np.random.default_rng(0)
  accuracy_n = 80 - 40 * K**-0.5 + rng.normal(0, 0.2, len(K))
  return Curve('s', 1e9 * K, accuracy_n, k_n=K)


def problem_curve():
  rng = np.random.default_rng(1)
  hard_P1 = rng.normal(size=(60, 1))
  accuracy_PM = 100 / (1 + np.exp(-(hard_P1 + 0.4 * np.log(K))))
  return Curve('p', K, accuracy_PM.mean(axis=0), accuracy_PM=accuracy_PM)


def row(text, label, table=0):
  """Cells of the n-th table row that starts with a label."""
  lines = [x for x in text.split('\n') if x.startswith(f'| {label} ')]
  return [cell.strip() for cell in lines[table].strip('|').split('|')]


def test_numbers_are_those_of_the_fits():
  curve = saturating_curve()
  text = report.law_section('T', [curve], targets=(70,))
  line = fit_log_linear(curve.compute_n, curve.accuracy_n)
  cells = row(text, 's')
  assert cells[1] == '7'
  assert float(cells[4].split()[0]) == pytest.approx(
    line.per_doubling, abs=0.05
  )
  assert float(cells[5].split()[0]) == pytest.approx(line.r2, abs=5e-4)
  low, high = (float(x) for x in re.findall(r'[\d.]+', cells[5])[1:])
  assert (low, high) == pytest.approx(line.r2_interval, abs=5e-4)
  # Held out: the law that made the points is chosen, with its formula.
  assert row(text, 's', 1)[-1] == 'saturating'
  fit = fit_law('saturating', curve.compute_n, curve.accuracy_n)
  assert fit.describe() in text
  # It gains less and less, and is known to.
  assert row(text, 's', 2)[-1] == 'bends down, clear'
  # 70 = 80 - 40 k^-0.5: k = 16.
  found = float(row(text, 's (saturating)')[1].split()[0])
  assert found == pytest.approx(16e9, rel=0.1)
  shown = row(text, 's (saturating)', 1)[-1].split()
  np.testing.assert_allclose(
    [float(x) for x in shown], fit.residual_n, atol=6e-3
  )


def test_interval_over_problems_of_the_slope():
  curve = problem_curve()
  text = report.law_section('T', [curve])
  # Oracle: the slope of each problem by itself, by numpy.
  slope_P = np.polyfit(np.log2(K), curve.accuracy_PM.T, 1)[0]
  mean, low, high = (float(x) for x in re.findall(r'[\d.]+', row(text, 'p')[5]))
  assert mean == pytest.approx(slope_P.mean(), abs=0.06)
  half = 2.0 * slope_P.std(ddof=1) / math.sqrt(len(slope_P))
  assert (high - low) / 2 == pytest.approx(half, abs=0.06)


def test_three_points_get_what_they_support():
  curve = Curve('AIME', [2, 8, 32], [44.0, 53.1, 57.9])
  text = report.law_section('T', [curve], targets=(60,))
  assert row(text, 'AIME')[1] == '3'
  assert 'one degree of freedom' in text
  assert 'too few to hold any out' in text and 'Held-out error' not in text
  assert row(text, 'AIME', 1)[2:] == ['4.55', '2.4', 'bends down']
  assert 'its noise is not' in text


def test_predictions_say_how_far_they_reach():
  line = Curve('line', K, 10 + 3 * np.log2(K))
  text = report.law_section('T', [line], targets=(16, 13.0, 40, 99, 7))
  cells = row(text, 'line (linear)')[1:]
  # 10 + 3 log2 C, measured from 1 to 64; exact.
  assert cells[:3] == ['4 (exact)', '2 (exact)', '1,020* (exact)']
  assert cells[3].startswith('over 1,000,000 x the data')
  assert cells[4] == '0.5* (exact)'
  assert 'outside of the computes' in text
  assert row(text, 'line (linear)', 1)[1:] == [
    '0',
    '+0 at 1',
    '+0 +0 +0 +0 +0 +0 +0',
  ]


def test_curves_that_cannot_be_fitted_are_named():
  few = Curve('few', [1, 2], [3, 4])
  same = Curve('same', [2, 2, 2], [3, 4, 5])
  text = report.law_section('T', [few, saturating_curve(), same])
  assert 'Not fitted' in text and 'few; same' in text


@pytest.mark.parametrize(
  'curve',
  [
    Curve('flat', K, np.full(7, 50.0)),
    Curve('line', K, 10 + 3 * np.log(K)),
    Curve('falls', K, 50 - 3 * np.log(K)),
    Curve('step', K, [0, 0, 0, 0, 100, 100, 100]),
    Curve('pair', [1, 1, 2, 2], [10, 11, 12, 13]),
    Curve('three', [1, 2, 4], [10, 10, 10]),
    Curve('wide', [1e-30, 1, 1e30, 1e33], [1, 2, 3, 3]),
  ],
  ids=lambda curve: curve.label,
)
def test_no_infinity_and_no_nan_on_the_page(curve):
  text = report.law_section('T', [curve], targets=(20, 99, 150))
  assert not re.search(r'\b(nan|inf|None)\b', text)
  assert '-0 ' not in text and '-0.0 ' not in text


@pytest.mark.parametrize(
  'value, low, high, text',
  [
    (4.5512, 3.91, 5.24, '4.55 (3.91 to 5.24)'),
    (4.5512, 2.1, 7.0, '4.6 (2.1 to 7.0)'),
    (0.12345, 0.1214, 0.1256, '0.1235 (0.1214 to 0.1256)'),
    (4.5512, math.nan, math.nan, '4.55'),
    (4.5512, 2.0, math.inf, '4.55 (2 to infinite)'),
    (4.5512, -math.inf, math.inf, '4.55 (not bounded)'),
    (-0.01, -12.0, 12.0, '0 (-12 to 12)'),
    (math.nan, 1, 2, 'undefined'),
  ],
)
def test_digits_are_those_that_the_interval_knows(value, low, high, text):
  assert report.with_interval(value, low, high) == text


def test_plain_numbers():
  found = [report.plain(x) for x in (0, 1234.0, 1.5e9, math.inf, -math.inf)]
  assert found == ['0', '1,230', '1.5e9', 'infinite', 'minus infinite']


def test_words_leave_words_alone():
  text = report.words('98.1 to inf, -inf to nan; information, finance')
  assert text == (
    '98.1 to infinite, minus infinite to undefined; information, finance'
  )


def test_published_section_says_what_the_table_has(tmp_path):
  picture = published_plot.plot_published(tmp_path / 'p.png')
  assert picture.read_bytes().startswith(b'\x89PNG')
  text = published_report.published_section(picture)
  assert '(p.png)' in text and not re.search(r'\b(nan|inf)\b', text)
  gains = {
    model: row(text, f'AIME24, {model}')[3:5]
    for model in ('S1-1.5B', 'S1-7B', 'S1-32B')
  }
  assert gains == {
    'S1-1.5B': ['4.6', '2.4'],
    'S1-7B': ['2.8', '2.0'],
    'S1-32B': ['1.1', '0.5'],
  }
  # 12 of 14: 2 (C(14,0) + C(14,1) + C(14,2)) / 2^14.
  assert '12 bend down' in text and '2 are straight' in text
  p = (1 + 14 + 91) / 2**14
  assert f'p = {2 * p:.3f} (two-sided; {p:.3f} one-sided)' in text
