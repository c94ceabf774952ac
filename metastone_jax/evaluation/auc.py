"""AUC of the trace score for right against wrong, with intervals.

Contract: the area under the ROC curve is the share of right-wrong pairs of
samples in which the right one scores higher, ties half. WITHIN compares pairs
inside one problem only (weighted by pairs): the number that says whether the
score can select. ACROSS compares all pairs and is flattered by easy problems.
The estimates are those of `metastone_jax.sprm.diagnostics`; this file adds the
intervals over problems.
"""

import numpy as np

from metastone_jax.evaluation import intervals
from metastone_jax.evaluation.samples import EvaluationSamples
from metastone_jax.sprm import diagnostics


def auc_intervals(
  samples: EvaluationSamples,
  *,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> tuple[intervals.Interval, intervals.Interval]:
  """AUC of the score for right against wrong, within and across problems.

  Within compares pairs inside one problem only (pair-weighted, ties half):
  the number that says whether the score can select. Both are resampled over
  whole problems exactly: with wins_PQ the pairs that a right sample of p wins
  against a wrong one of q, a resample with weights w has
  sum(w_p w_q wins_PQ) wins.

  Returns:
    (within, across); all NaN where no right-wrong pair exists.
  """
  wins_PQ = _pair_wins(samples.scores_PN, samples.correct_PN)
  right_P = samples.correct_PN.sum(axis=1).astype(np.float64)
  wrong_P = samples.shape[1] - right_P
  own_P, pairs_P = np.diag(wins_PQ), right_P * wrong_P

  def weights():
    return intervals.problem_weights(len(own_P), resamples, seed)

  def resampled_within():
    return np.concatenate([(w @ own_P) / (w @ pairs_P) for w in weights()])

  def resampled_across():
    return np.concatenate(
      [
        ((w @ wins_PQ) * w).sum(axis=1) / (w @ right_P) / (w @ wrong_P)
        for w in weights()
      ]
    )

  with np.errstate(divide='ignore', invalid='ignore'):
    jack_within = (own_P.sum() - own_P) / (pairs_P.sum() - pairs_P)
    left = wins_PQ.sum() - wins_PQ.sum(axis=0) - wins_PQ.sum(axis=1) + own_P
    jack_across = left / (right_P.sum() - right_P) / (wrong_P.sum() - wrong_P)
    # Both are NaN where no pair exists, and then so is the interval.
    return tuple(
      intervals.ratio_interval(estimate, boot_R, jack_P, level=level)
      for estimate, boot_R, jack_P in (
        (
          diagnostics.auc_within(samples.scores_PN, samples.correct_PN),
          resampled_within,
          jack_within,
        ),
        (
          diagnostics.auc(samples.scores_PN, samples.correct_PN),
          resampled_across,
          jack_across,
        ),
      )
    )


def _pair_wins(scores_PN, correct_PN) -> np.ndarray:
  """[p, q]: right samples of p against wrong ones of q, ties half."""
  P = len(scores_PN)
  owner = np.nonzero(correct_PN)[0]
  right = scores_PN[correct_PN]
  wins_PQ = np.zeros((P, P))
  for q in range(P):
    wrong = np.sort(scores_PN[q][~correct_PN[q]])
    below = np.searchsorted(wrong, right, 'left')
    upto = np.searchsorted(wrong, right, 'right')
    wins_PQ[:, q] = np.bincount(owner, 0.5 * (below + upto), minlength=P)
  return wins_PQ
