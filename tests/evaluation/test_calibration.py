"""Calibration of the score against plain loops, and against the truth."""

import dataclasses
import math

import numpy as np
from scipy import special, stats

from metastone_jax.evaluation import calibration as lib
from metastone_jax.evaluation.samples import EvaluationSamples
from tests.evaluation import synthetic


def _samples(score, correct):
  P, N = score.shape
  return EvaluationSamples(
    task='t',
    scores_PN=score,
    correct_PN=correct,
    answers_PN=np.zeros((P, N), int),
    finished_PN=np.ones((P, N), bool),
    tokens_PN=np.ones((P, N), int),
    problem_ids=[str(p) for p in range(P)],
  )


def test_numbers_are_those_of_plain_loops():
  s = synthetic.make_samples(P=25, N=6)
  s = dataclasses.replace(s, scores_PN=np.round(s.scores_PN, 1))  # on borders
  found = lib.calibration(s, bins=5)
  cells = {}
  for p, n in np.ndindex(s.shape):
    b = min(int(s.scores_PN[p, n] * 5), 4)
    cells.setdefault(b, []).append((p, s.scores_PN[p, n], s.correct_PN[p, n]))
  assert [round(b['low'] * 5) for b in found['bins']] == sorted(cells)
  error = 0.0
  for b in found['bins']:
    problems, score, right = zip(*cells[round(b['low'] * 5)], strict=True)
    assert b['count'] == len(score)
    assert b['problems'] == len(set(problems))
    np.testing.assert_allclose(b['score'], np.mean(score), rtol=1e-12)
    np.testing.assert_allclose(b['right']['mean'], np.mean(right), rtol=1e-12)
    assert b['right']['low'] <= np.mean(right) <= b['right']['high']
    error += len(score) / 150 * abs(np.mean(right) - np.mean(score))
  np.testing.assert_allclose(found['ece'], error, rtol=1e-10)
  np.testing.assert_allclose(
    found['brier']['mean'],
    np.mean((s.scores_PN - s.correct_PN) ** 2),
    rtol=1e-12,
  )
  p = s.correct_PN.mean()
  np.testing.assert_allclose(found['brier_of_mean'], p * (1 - p), rtol=1e-12)


def test_a_calibrated_score_looks_like_one():
  """And one that is too sure of itself does not."""
  rng = np.random.default_rng(0)
  chance = rng.random((300, 8))
  correct = rng.random((300, 8)) < chance
  good = lib.calibration(_samples(chance, correct))
  assert good['ece'] < 1.6 * good['ece_by_chance']
  sure = np.clip(chance + 0.35 * np.sign(chance - 0.5), 0, 1)
  bad = lib.calibration(_samples(sure, correct))
  assert bad['ece'] > 4 * bad['ece_by_chance']
  assert bad['brier']['low'] > good['brier']['high']


def test_intervals_of_bins_cover_with_problems_as_units():
  """Samples of a problem agree, so 8 of them are hardly more than one."""
  rng = np.random.default_rng(1)
  held = total = 0
  for _ in range(400):
    right_P1 = rng.random((40, 1)) < 0.3
    correct = np.broadcast_to(right_P1, (40, 8))
    found = lib.calibration(_samples(np.full((40, 8), 0.55), correct))
    (b,) = found['bins']
    held += b['right']['low'] <= 0.3 <= b['right']['high']
    total += 1
  assert 0.91 < held / total < 0.98


def test_a_bin_of_few_problems_is_uncertain():
  """The ratio of sums over three problems, t with two degrees of freedom."""
  correct = np.array([[1, 1], [1, 0], [0, 0]], bool)
  (b,) = lib.calibration(_samples(np.full((3, 2), 0.45), correct))['bins']
  residual = np.array([2, 1, 0]) - 0.5 * 2
  error = math.sqrt(3 / 2 * (residual**2).sum()) / 6
  half = stats.t.ppf(0.975, 2) * error / 0.25
  np.testing.assert_allclose(
    [b['right']['low'], b['right']['high']],
    special.expit([-half, half]),
    rtol=1e-9,
  )


def test_a_lonely_bin_has_no_interval():
  score = np.array([[0.05, 0.95], [0.95, 0.95]])
  correct = np.array([[0, 1], [1, 1]])
  low, high = lib.calibration(_samples(score, correct))['bins']
  assert low['right']['low'] is None and low['problems'] == 1
  assert high['right']['mean'] == 1 and 0 < high['right']['low'] < 1
