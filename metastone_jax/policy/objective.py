"""The clipped policy objective of the GRPO family (SPEC section 4).

With ratio = exp(log_prob - old_log_prob) and advantage A, per token:

  loss = max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))
  A < 0 and dual_clip: loss = min(loss, -A * dual_clip)
  loss *= min(exp(old_log_prob - sampler_log_prob), importance_truncation)

With `ratio='sequence'` (GSPO) every token of a sequence has the ratio
exp(mean over its tokens of log_prob - old_log_prob), gradient through the mean.

Every result is a pair (sum, denominator): added up over micro-batches and
divided once they equal the whole batch (a sequence is never cut). old_log_prob,
sampler_log_prob and the advantage are constants. All arrays are aligned with
the predicting position; what lies outside the mask is ignored. Log ratios are
bounded by +-20.
"""

import functools

from metastone_jax.errors import UserError
from metastone_jax.policy import arrays
from metastone_jax.policy.aggregation import Term, aggregate
from metastone_jax.policy.config import ObjectiveConfig


def policy_terms(
  log_prob_BT: arrays.Array,
  old_log_prob_BT: arrays.Array,
  advantage_B: arrays.Array,
  mask_BT: arrays.Array,
  *,
  config: ObjectiveConfig,
  sampler_log_prob_BT: arrays.Array | None = None,
  sequence_total: arrays.Array | None = None,
  segment_BT: arrays.Array | None = None,
  num_segments: int | None = None,
) -> dict[str, Term]:
  """The policy loss and its metrics.

  Args:
    log_prob_BT: log-probs of the sampled tokens under the current policy.
    old_log_prob_BT: the same under the policy at the start of the update round
      (`stop_gradient(log_prob_BT)` with one update a rollout).
    advantage_B: one advantage a sequence; or one a token, (B, T), where rows
      hold several sequences.
    mask_BT: true at response tokens.
    config: the objective; static.
    sampler_log_prob_BT: log-probs the sampler recorded; needed for, and only
      used by, `config.importance_truncation`.
    sequence_total: number of sequences these rows stand for, where it is not
      the number of rows with a token (see `aggregation_weights`).
    segment_BT: sequence of each token in its row, from 1; None: a row is one
      sequence.
    num_segments: the most sequences of a row; static.

  Returns:
    (sum, denominator) of
      'policy': the loss term, aggregated as configured; the only one with a
        gradient;
      and, as token means,
      'clip_fraction': tokens where the clipped branch is the larger loss;
      'approx_kl': old_log_prob - log_prob, nats;
      'ratio_mean': the ratio (1 on-policy);
      'tis_clipped_fraction': tokens whose importance weight was cut to the
        cap (0 without truncation).

  Raises:
    UserError: importance truncation without the sampler's log-probs, or an
      aggregation that needs a fixed length and has none.
  """
  xp = arrays.namespace(
    log_prob_BT, old_log_prob_BT, advantage_B, mask_BT, sampler_log_prob_BT
  )
  mask_BT = xp.asarray(mask_BT) != 0
  old_BT = arrays.constant(xp, xp.asarray(old_log_prob_BT))
  delta_BT = arrays.masked_difference(xp, log_prob_BT, old_BT, mask_BT)
  advantage_B = arrays.constant(xp, arrays.as_float(xp, advantage_B))
  advantage_BT = arrays.per_token(xp, advantage_B.astype(delta_BT.dtype))

  log_ratio_BT = delta_BT
  if config.ratio == 'sequence' and segment_BT is not None:
    sums = functools.partial(
      arrays.segment_sums,
      xp,
      segment_BT=segment_BT,
      num_segments=num_segments,
    )
    length_BM = xp.maximum(sums(mask_BT.astype(delta_BT.dtype)), 1)
    log_ratio_BT = arrays.on_segments(
      xp, sums(delta_BT) / length_BM, segment_BT
    )
  elif config.ratio == 'sequence':
    length_B1 = xp.maximum(mask_BT.sum(-1, keepdims=True), 1)
    mean_B1 = delta_BT.sum(-1, keepdims=True) / length_B1.astype(delta_BT.dtype)
    log_ratio_BT = xp.broadcast_to(mean_B1, delta_BT.shape)
  ratio_BT = xp.exp(
    xp.clip(log_ratio_BT, -arrays.MAX_LOG_RATIO, arrays.MAX_LOG_RATIO)
  )
  plain_BT = -advantage_BT * ratio_BT
  clipped_BT = -advantage_BT * xp.clip(
    ratio_BT, 1 - config.clip_low, 1 + config.clip_high
  )
  loss_BT = xp.maximum(plain_BT, clipped_BT)
  if config.dual_clip is not None:
    ceiling_BT = -advantage_BT * config.dual_clip
    loss_BT = xp.where(
      advantage_BT < 0, xp.minimum(loss_BT, ceiling_BT), loss_BT
    )

  truncated_BT = xp.zeros_like(mask_BT)
  if config.importance_truncation is not None:
    if sampler_log_prob_BT is None:
      raise UserError(
        'importance_truncation needs the log-probs of the sampler: keep them '
        'in the rollout or set importance_truncation to None'
      )
    sampler_BT = arrays.constant(xp, xp.asarray(sampler_log_prob_BT))
    shift_BT = arrays.masked_difference(xp, old_BT, sampler_BT, mask_BT)
    importance_BT = xp.exp(xp.minimum(shift_BT, arrays.MAX_LOG_RATIO))
    truncated_BT = importance_BT > config.importance_truncation
    importance_BT = xp.minimum(importance_BT, config.importance_truncation)
    loss_BT = loss_BT * importance_BT.astype(loss_BT.dtype)

  def metric(value_BT) -> Term:
    value_BT = arrays.constant(xp, value_BT).astype(delta_BT.dtype)
    return aggregate(value_BT, mask_BT, 'token')

  return {
    'policy': aggregate(
      loss_BT,
      mask_BT,
      config.aggregation,
      fixed_length=config.fixed_length,
      sequence_total=sequence_total,
      segment_BT=segment_BT,
      num_segments=num_segments,
    ),
    'clip_fraction': metric(clipped_BT > plain_BT),
    'approx_kl': metric(-delta_BT),
    'ratio_mean': metric(ratio_BT),
    'tis_clipped_fraction': metric(truncated_BT),
  }


def policy_loss(
  log_prob_BT: arrays.Array,
  old_log_prob_BT: arrays.Array,
  advantage_B: arrays.Array,
  mask_BT: arrays.Array,
  clip: float = 0.2,
) -> arrays.Array:
  """The clipped loss as a token mean over one whole batch.

  Args:
    log_prob_BT: log-probs of the sampled tokens under the current policy.
    old_log_prob_BT: the same under the old policy; a constant.
    advantage_B: one advantage a sequence.
    mask_BT: true at response tokens.
    clip: the ratio is clipped to [1 - clip, 1 + clip].

  Returns:
    A scalar; 0 for an empty mask.
  """
  total, denominator = policy_terms(
    log_prob_BT,
    old_log_prob_BT,
    advantage_B,
    mask_BT,
    config=ObjectiveConfig(clip_low=clip, clip_high=clip),
  )['policy']
  xp = arrays.namespace(total, denominator)
  return arrays.divide(xp, total, denominator)


def sampler_mismatch_terms(
  log_prob_BT: arrays.Array,
  sampler_log_prob_BT: arrays.Array,
  mask_BT: arrays.Array,
) -> dict[str, Term | arrays.Array]:
  """|delta log p|: how far the sampler is from the trainer on the same tokens.

  Args:
    log_prob_BT: the trainer's log-probs (of the rollout's parameters).
    sampler_log_prob_BT: the sampler's.
    mask_BT: true at response tokens.

  Returns:
    'mean': (sum, denominator), nats a token; 'max': the largest, nats, to be
    combined over micro-batches by max. No gradient.
  """
  xp = arrays.namespace(log_prob_BT, sampler_log_prob_BT, mask_BT)
  mask_BT = xp.asarray(mask_BT) != 0
  gap_BT = arrays.constant(
    xp,
    xp.abs(
      arrays.masked_difference(xp, log_prob_BT, sampler_log_prob_BT, mask_BT)
    ),
  )
  return {'mean': aggregate(gap_BT, mask_BT, 'token'), 'max': gap_BT.max()}
