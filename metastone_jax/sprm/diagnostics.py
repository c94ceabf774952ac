"""Does the head tell right from wrong? Plain numpy, float64, on the host.

Judge selection by `auc_within`: candidates compete only with candidates of the
same problem. `auc` over a whole batch also rewards a head that merely tells
easy problems from hard ones, and can be high where best-of-k is no better than
chance.

Where a number is undefined (a class is missing, a score is NaN) the result is
NaN, never a guess.
"""

import numpy as np

from metastone_jax.sprm.loss import StepCounts


def _midranks(score_n: np.ndarray) -> np.ndarray:
  """Ranks from 1, tied scores sharing the mean of their ranks."""
  _, inverse_n, count_u = np.unique(
    score_n, return_inverse=True, return_counts=True
  )
  last_u = np.cumsum(count_u)
  return (last_u - (count_u - 1) / 2)[inverse_n]


def _concordant(score_n: np.ndarray, correct_n: np.ndarray):
  """(pairs in which the right one scores higher, all right-wrong pairs)."""
  n_right = int(correct_n.sum())
  n_wrong = correct_n.size - n_right
  if n_right == 0 or n_wrong == 0:
    return 0.0, 0
  if np.isnan(score_n).any():
    return np.nan, n_right * n_wrong
  # Mann-Whitney: the ranks of the right ones, less what they owe each other.
  rank_sum = _midranks(score_n)[correct_n].sum()
  return rank_sum - n_right * (n_right + 1) / 2, n_right * n_wrong


def auc(score_B, correct_B) -> float:
  """P(a right trace scores above a wrong one), ties counted half.

  Args:
    score_B: scores of traces, any shape.
    correct_B: whether each is right, same shape.

  Returns:
    A number in [0, 1]; NaN if either class is absent.
  """
  concordant, pairs = _concordant(
    np.asarray(score_B, np.float64).ravel(), np.asarray(correct_B, bool).ravel()
  )
  return float(concordant / pairs) if pairs else float('nan')


def auc_within(score_PN, correct_PN) -> float:
  """AUC over right-wrong pairs of the SAME problem, ties counted half.

  Pair-weighted: the concordant pairs of all problems over all pairs of all
  problems. A problem with 4 right of 8 (16 pairs) therefore counts more than
  one with 1 right of 8 (7 pairs), which keeps the variance small; a problem
  with one class has no pair and does not count. It is not a mean of AUCs.

  Args:
    score_PN: score of sample n of problem p.
    correct_PN: whether it is right.

  Returns:
    A number in [0, 1]; NaN if no problem has both classes.
  """
  score_PN = np.asarray(score_PN, np.float64)
  correct_PN = np.asarray(correct_PN, bool)
  concordant, pairs = 0.0, 0
  for score_N, correct_N in zip(score_PN, correct_PN, strict=True):
    c, n = _concordant(score_N, correct_N)
    concordant += c
    pairs += n
  return float(concordant / pairs) if pairs else float('nan')


def kept_fractions(counts: StepCounts) -> dict[str, float]:
  """The share of each class's steps that the filter keeps (SPEC section 6).

  The SPR filter can collapse: 'negative' -> 0 means that the head calls every
  step right and nothing corrects it.

  Args:
    counts: from `step_weights`, summed over whatever is reported on.

  Returns:
    {'positive': kept share, 'negative': kept share}; NaN for a class without
    steps.
  """
  counts = StepCounts(*(float(c) for c in counts))
  return {
    'positive': _ratio(counts.kept_positive, counts.positive),
    'negative': _ratio(counts.kept_negative, counts.negative),
  }


def score_gap(score_B, correct_B) -> float:
  """Mean score of right traces minus that of wrong ones (the "aha" plot).

  Args:
    score_B: scores of traces, any shape.
    correct_B: whether each is right, same shape.

  Returns:
    A number in [-1, 1]; NaN if either class is absent.
  """
  score_n = np.asarray(score_B, np.float64).ravel()
  right_n = np.asarray(correct_B, bool).ravel()
  return _ratio(score_n[right_n].sum(), right_n.sum()) - _ratio(
    score_n[~right_n].sum(), (~right_n).sum()
  )


def _ratio(numerator, denominator) -> float:
  return float(numerator / denominator) if denominator else float('nan')
