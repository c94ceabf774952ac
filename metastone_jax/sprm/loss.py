"""Self-supervised process reward loss of the score head (SPEC section 3).

Every step of a trace is labelled with the outcome of the whole trace,
y = 1 if reward > 0.5, and the loss is a weighted binary cross-entropy

  loss = sum(w * BCE(z, y)) / (sum(w) + 1e-5).

The weights are constants: no gradient passes through them. `step_weights`
computes them ONCE over the global batch, before micro-batches; then

  sum over micro-batches of step_loss_sum(z, y, w)
    / step_loss_denominator(w of the global batch)

is the loss of the whole batch, however it is cut. `spr_loss` is the two
composed on one batch.

Kinds of weight (with `balance` = 1.5 * n_neg / (n_pos + n_neg) on steps of
right traces, n_pos / (n_pos + n_neg) on steps of wrong ones):
- 'spr'  balance on the steps where the head already agrees: z > 0 and y = 1,
         or z < 0 and y = 0 (a logit of exactly 0 is never kept); n counts the
         kept steps of a class, plus one.
- 'bce'  balance on every step; n counts all steps of a class, plus one.
- 'soft' balance * q on every step, q = the head's own probability of y
         (sigmoid(z) or 1 - sigmoid(z)): 'spr' with a smooth filter; n is the
         sum of q over a class, plus one.

Step logits outside the mask are ignored, whatever they hold.
"""

from typing import NamedTuple

from metastone_jax.errors import UserError
from metastone_jax.sprm import arrays

KINDS = ('spr', 'bce', 'soft')

# The released code weighs kept positives 1.5 times.
POSITIVE_WEIGHT = 1.5
DENOMINATOR_EPSILON = 1e-5


class StepCounts(NamedTuple):
  """Steps a class, without the added one; sums over batches are meaningful.

  Only rows whose score weight is above 0 are counted. `kept_*` are what the
  class weights use: kept steps for 'spr', all for 'bce', summed agreement for
  'soft'.
  """

  kept_positive: arrays.Array  # scalar; steps of right traces with weight
  kept_negative: arrays.Array  # scalar; steps of wrong traces with weight
  positive: arrays.Array  # scalar; all steps of right traces
  negative: arrays.Array  # scalar; all steps of wrong traces


def step_weights(
  step_logits_BT: arrays.Array,
  step_mask_BT: arrays.Array,
  target_B: arrays.Array,
  *,
  kind: str,
  score_weight_B: arrays.Array | None = None,
  class_counts: StepCounts | None = None,
) -> tuple[arrays.Array, StepCounts]:
  """Constant weight of each step, over the global batch.

  Args:
    step_logits_BT: logits z of the score head, dropout off.
    step_mask_BT: true at the feature positions of counted marks.
    target_B: whether the final answer is right: reward > 0.5. One a row; or
      one a token, (B, T), where rows hold several traces.
    kind: 'spr', 'bce' or 'soft' (see the module).
    score_weight_B: multiplies the weights of a row, >= 0; None means 1. At 0
      the row is not trained on (truncated, unparsed) and not counted. One a
      row or one a token, as `target_B`.
    class_counts: counts to balance the classes with, where this array is only
      a part of the global batch; None counts this array.

  Returns:
    weight_BT, 0 outside the mask, without gradient; and the counts of THIS
    array (of parts: add them field by field).

  Raises:
    UserError: an unknown kind.
  """
  if kind not in KINDS:
    raise UserError(
      f'loss kind must be one of {", ".join(KINDS)}: got {kind!r}'
    )
  xp = arrays.namespace(step_logits_BT, step_mask_BT, target_B, score_weight_B)
  z_BT = arrays.constant(xp, arrays.as_float(xp, step_logits_BT))
  mask_BT = xp.asarray(step_mask_BT) != 0
  right_BT = arrays.per_token(xp, target_B) != 0
  if score_weight_B is not None:
    row_weight_BT = arrays.constant(
      xp, arrays.per_token(xp, score_weight_B).astype(z_BT.dtype)
    )
    mask_BT = mask_BT & (row_weight_BT > 0)
  z_BT = xp.where(mask_BT, z_BT, 0)

  # How much of each step is kept, in [0, 1].
  signed_BT = xp.where(right_BT, z_BT, -z_BT)  # > 0 where the head agrees
  if kind == 'spr':
    kept_BT = (signed_BT > 0) & mask_BT
  elif kind == 'bce':
    kept_BT = mask_BT
  else:
    kept_BT = xp.where(mask_BT, arrays.sigmoid(xp, signed_BT), 0)
  kept_BT = kept_BT.astype(z_BT.dtype)
  all_BT = mask_BT.astype(z_BT.dtype)

  counts = StepCounts(
    kept_positive=xp.where(right_BT, kept_BT, 0).sum(),
    kept_negative=xp.where(right_BT, 0, kept_BT).sum(),
    positive=xp.where(right_BT, all_BT, 0).sum(),
    negative=xp.where(right_BT, 0, all_BT).sum(),
  )
  balance = counts if class_counts is None else class_counts
  n_positive = balance.kept_positive + 1
  n_negative = balance.kept_negative + 1
  total = n_positive + n_negative
  weight_BT = kept_BT * xp.where(
    right_BT, POSITIVE_WEIGHT * n_negative / total, n_positive / total
  ).astype(z_BT.dtype)
  if score_weight_B is not None:
    weight_BT = weight_BT * row_weight_BT
  return arrays.constant(xp, weight_BT), counts


def step_loss_sum(
  step_logits_BT: arrays.Array, target_B: arrays.Array, weight_BT: arrays.Array
) -> arrays.Array:
  """sum(w * BCE(z, y)), the numerator of the loss.

  Args:
    step_logits_BT: logits z, any finite or infinite value where w = 0.
    target_B: whether the final answer is right; (B,) or (B, T).
    weight_BT: constant weights of `step_weights`.

  Returns:
    A scalar; its gradient in z is w * (sigmoid(z) - y), exactly 0 where w = 0.
  """
  xp = arrays.namespace(step_logits_BT, target_B, weight_BT)
  z_BT = arrays.as_float(xp, step_logits_BT)
  weight_BT = xp.asarray(weight_BT)
  # Masking the logit (not only the product) keeps the gradient of unused,
  # perhaps non-finite logits 0 instead of 0 * nan.
  z_BT = xp.where(weight_BT != 0, z_BT, 0)
  right_BT = arrays.per_token(xp, target_B) != 0
  # BCE with logits is -log sigmoid(z) for y = 1 and -log sigmoid(-z) for 0.
  bce_BT = -arrays.log_sigmoid(xp, xp.where(right_BT, z_BT, -z_BT))
  return (weight_BT * bce_BT).sum()


def step_loss_denominator(weight_BT: arrays.Array) -> arrays.Array:
  """sum(w) + 1e-5 over the global batch: a scalar, never 0."""
  xp = arrays.namespace(weight_BT)
  return arrays.as_float(xp, weight_BT).sum() + DENOMINATOR_EPSILON


def spr_loss(
  step_logits_BT: arrays.Array,
  step_mask_BT: arrays.Array,
  reward_B: arrays.Array,
  *,
  kind: str = 'spr',
  score_weight_B: arrays.Array | None = None,
) -> arrays.Array:
  """The loss of SPEC section 3 over one whole batch.

  Args:
    step_logits_BT: logits z of the score head.
    step_mask_BT: true at the feature positions of counted marks.
    reward_B: outcome reward; the answer is right above 0.5.
    kind: 'spr' (the paper), 'bce' or 'soft'.
    score_weight_B: weight of each row, 0 to leave it out; None means 1.

  Returns:
    A scalar; 0 where no step is kept.

  Raises:
    UserError: an unknown kind.
  """
  xp = arrays.namespace(step_logits_BT, step_mask_BT, reward_B)
  target_B = xp.asarray(reward_B) > 0.5
  weight_BT, _ = step_weights(
    step_logits_BT,
    step_mask_BT,
    target_B,
    kind=kind,
    score_weight_B=score_weight_B,
  )
  loss_sum = step_loss_sum(step_logits_BT, target_B, weight_BT)
  return loss_sum / step_loss_denominator(weight_BT)
