"""Parts of a summary: what an answer costs, and what subjects differ in.

Contract: pure functions of `EvaluationSamples`, plain JSON values out. FLOPs
are counted (2 a multiply-add; `ModelConfig.prefill_flops`, `decode_flops`,
`score_flops`), not measured.
"""

from collections.abc import Sequence

import numpy as np

from metastone_jax.evaluation import closed_form, intervals
from metastone_jax.evaluation.samples import EvaluationSamples

# Rules that read the score; the others do not pay for it.
_SCORED = ('best_of_k', 'weighted_vote')


def costs(
  samples: EvaluationSamples, k: int, rules: Sequence[str]
) -> dict[str, dict[str, float | None]]:
  """What an answer by each rule costs at k, a mean over problems.

  The prompt is read once for all k samples of a problem.

  Args:
    samples: P x N.
    k: samples an answer.
    rules: their names.

  Returns:
    rule -> {'tokens', 'thinking_tokens', 'answer_tokens', 'flops'}; None where
    the samples do not say.
  """
  tokens = k * float(samples.tokens_PN.mean())
  thinking = answer = flops = scoring = None
  if samples.thinking_PN is not None:
    thinking = k * float(samples.thinking_PN.mean())
    answer = tokens - thinking
  if samples.write_flops_PN is not None and samples.read_flops_P is not None:
    flops = float(samples.read_flops_P.mean())
    flops += k * float(samples.write_flops_PN.mean())
    if samples.score_flops_PN is not None:
      scoring = k * float(samples.score_flops_PN.mean())
  return {
    rule: {
      'tokens': tokens,
      'thinking_tokens': thinking,
      'answer_tokens': answer,
      'flops': flops
      if scoring is None or (rule not in _SCORED and not samples.traces)
      else flops + scoring,
    }
    for rule in rules
  }


def by_subject(
  subjects: Sequence[str], values: dict[str, np.ndarray], *, level: float
) -> dict:
  """Accuracy a subject, and their macro average (each subject counts once).

  Args:
    subjects: of the P problems.
    values: measure -> value of each problem, in [0, 1].
    level: coverage.

  Returns:
    {'rows': [{'subject', 'problems', measure: I, ...}, ...] by name,
    'macro': {measure: I}}. The interval of the macro average treats the
    subjects as given and their problems as drawn; undefined where a subject
    has one problem.
  """
  names, index_P = np.unique(np.asarray(subjects), return_inverse=True)
  rows = []
  for s, name in enumerate(names.tolist()):
    chosen_P = index_P == s
    rows.append(
      {
        'subject': name,
        'problems': int(chosen_P.sum()),
        **{
          measure: intervals.interval(value_P[chosen_P], level=level).as_dict()
          for measure, value_P in values.items()
        },
      }
    )
  return {
    'rows': rows,
    'macro': {
      measure: _macro(value_P, index_P, len(names), level).as_dict()
      for measure, value_P in values.items()
    },
  }


def _macro(value_P, index_P, S: int, level: float) -> intervals.Interval:  # noqa: N803
  parts = [value_P[index_P == s] for s in range(S)]
  mean = float(np.mean([part.mean() for part in parts]))
  if min(len(part) for part in parts) < 2:
    return intervals.Interval(mean, np.nan, np.nan)
  variance_S = np.array([part.var(ddof=1) / len(part) for part in parts])
  error = np.sqrt(variance_S.sum()) / S
  if round(mean, 9) in (0.0, 1.0):
    return intervals.interval(value_P.round(9), level=level)
  if error == 0:
    return intervals.Interval(mean, mean, mean, 'logit t')
  # Few problems of one subject may make most of the error (Satterthwaite).
  number_S = np.array([len(part) for part in parts])
  freedom = variance_S.sum() ** 2 / (variance_S**2 / (number_S - 1)).sum()
  low, high = closed_form.logit_limits(mean, error, freedom, level)
  return intervals.Interval(mean, float(low), float(high), 'logit t')
