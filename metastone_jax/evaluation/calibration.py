"""Is a score of 0.8 right eight times in ten? Reliability, ECE, Brier.

Contract: a pure, seeded function of `EvaluationSamples`, plain JSON values out.
The score is a trace score, which is made to order traces and not to be a
probability: a good AUC with a bad calibration is no contradiction.

The samples of one problem are not independent, so the interval of a bin takes
the problem as its unit (a ratio of sums over problems, t on the logit scale).
The expected calibration error of a finite sample is never 0: `ece_by_chance` is
what a perfectly calibrated score would show on the same scores.
"""

import numpy as np

from metastone_jax.evaluation import closed_form, intervals
from metastone_jax.evaluation.samples import EvaluationSamples

BINS = 10
_CHANCE_DRAWS = 100


def calibration(
  samples: EvaluationSamples,
  *,
  bins: int = BINS,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> dict:
  """Reliability of the score as a probability.

  Args:
    samples: scored samples.
    bins: equal parts of [0, 1].
    level: coverage of the intervals.
    resamples: of the bootstrap.
    seed: of the bootstrap and of the draws by chance.

  Returns:
    {'bins': [{'low', 'high', 'count', 'problems', 'score', 'right': I}, ...]
    (occupied ones), 'ece', 'ece_by_chance', 'brier': I, 'brier_of_mean': the
    Brier score of always saying the mean accuracy}.
  """
  score, right = samples.scores_PN, samples.correct_PN.astype(np.float64)
  place_PN = np.minimum((score * bins).astype(int), bins - 1)
  found = []
  for b in range(bins):
    inside_PN = place_PN == b
    count_P = inside_PN.sum(axis=1)
    if not count_P.any():
      continue
    interval = _share(
      (right * inside_PN).sum(axis=1)[count_P > 0], count_P[count_P > 0], level
    )
    found.append(
      {
        'low': b / bins,
        'high': (b + 1) / bins,
        'count': int(count_P.sum()),
        'problems': int((count_P > 0).sum()),
        'score': float(score[inside_PN].mean()),
        'right': interval.as_dict(),
      }
    )
  rng = np.random.default_rng(seed)
  by_chance = [
    _ece(score, rng.random(score.shape) < score, place_PN, bins)
    for _ in range(_CHANCE_DRAWS)
  ]
  brier = intervals.interval(
    ((score - right) ** 2).mean(axis=1),
    level=level,
    resamples=resamples,
    seed=seed,
  )
  return {
    'bins': found,
    'ece': _ece(score, right, place_PN, bins),
    'ece_by_chance': float(np.mean(by_chance)),
    'brier': brier.as_dict(),
    'brier_of_mean': float(right.mean() * (1 - right.mean())),
  }


def _ece(score, right, place_PN, bins: int) -> float:
  """Mean |share right - mean score| over the bins, weighted by samples."""
  gap_PN = (right - score).ravel()
  gap_b = np.bincount(place_PN.ravel(), gap_PN, minlength=bins)
  return float(np.abs(gap_b).sum() / score.size)


def _share(right_P, count_P, level: float) -> intervals.Interval:
  """Share right of all samples, problems as units."""
  P, total = len(count_P), count_P.sum()
  share = float(right_P.sum() / total)
  if P < 2:
    return intervals.Interval(share, np.nan, np.nan)
  if share in (0.0, 1.0):
    low, high = closed_form.share_limits(np.full((P, 1), share), level)
    return intervals.Interval(share, float(low[0]), float(high[0]), 'Wilson')
  residual_P = right_P - share * count_P
  error = np.sqrt(P / (P - 1) * (residual_P**2).sum()) / total
  low, high = closed_form.logit_limits(share, error, P - 1, level)
  return intervals.Interval(share, float(low), float(high), 'logit t')
