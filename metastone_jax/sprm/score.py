"""The score of a trace from the logits of its steps (SPEC section 2).

p = sigmoid(z) a step; the trace score is the geometric mean of its step
scores. The other aggregators are those of the paper's ablation (1.5B, k = 8,
AIME24: geometric 53.1, arithmetic 52.9, last 48.5, product 44.2) and 'min'.
All lie in [0, 1]. The same pure function serves training, the decode loop and
evaluation. Sums are of log-probabilities, so no step score is clamped: a
product of thousands of steps underflows to 0 only at the very end.
"""

from metastone_jax.errors import UserError
from metastone_jax.sprm import arrays

AGGREGATORS = ('geometric', 'arithmetic', 'product', 'min', 'last')


def trace_score(
  step_logits_BT: arrays.Array,
  step_mask_BT: arrays.Array,
  *,
  aggregator: str = 'geometric',
  fallback_logit_B: arrays.Array | None = None,
) -> arrays.Array:
  """The score of each trace.

  Args:
    step_logits_BT: logits z; values outside the mask are ignored. Further
      leading axes (problem, sample) are welcome.
    step_mask_BT: true at the feature positions of counted marks.
    aggregator: 'geometric', 'arithmetic', 'product', 'min' or 'last'.
    fallback_logit_B: logit for a trace without marks, read at its last
      thinking position (`thinking_end_feature_mask`). None gives such a trace
      the score 0, as the released code does.

  Returns:
    score_B in [0, 1].

  Raises:
    UserError: an unknown aggregator.
  """
  if aggregator not in AGGREGATORS:
    raise UserError(
      f'aggregator must be one of {", ".join(AGGREGATORS)}: got {aggregator!r}'
    )
  xp = arrays.namespace(step_logits_BT, step_mask_BT, fallback_logit_B)
  mask_BT = xp.asarray(step_mask_BT) != 0
  z_BT = xp.where(mask_BT, arrays.as_float(xp, step_logits_BT), 0)
  count_B = mask_BT.sum(-1)
  if aggregator == 'arithmetic':
    p_BT = xp.where(mask_BT, arrays.sigmoid(xp, z_BT), 0)
    score_B = p_BT.sum(-1) / xp.maximum(count_B, 1).astype(z_BT.dtype)
  elif aggregator == 'min':
    lowest_B = xp.where(mask_BT, z_BT, xp.inf).min(-1)
    score_B = arrays.sigmoid(xp, xp.where(count_B > 0, lowest_B, 0))
  elif aggregator == 'last':
    index_T = xp.arange(mask_BT.shape[-1])
    last_B1 = xp.where(mask_BT, index_T, -1).max(-1, keepdims=True)
    score_B = arrays.sigmoid(xp, xp.where(index_T == last_B1, z_BT, 0).sum(-1))
  else:
    log_p_BT = xp.where(mask_BT, arrays.log_sigmoid(xp, z_BT), 0)
    log_score_B = log_p_BT.sum(-1)
    if aggregator == 'geometric':
      log_score_B = log_score_B / xp.maximum(count_B, 1).astype(z_BT.dtype)
    score_B = xp.exp(log_score_B)
  if fallback_logit_B is None:
    return xp.where(count_B > 0, score_B, xp.zeros_like(score_B))
  fallback_B = arrays.as_float(xp, fallback_logit_B).astype(z_BT.dtype)
  return xp.where(count_B > 0, score_B, arrays.sigmoid(xp, fallback_B))
