"""Sampled estimators of KL(policy || reference), per token (SPEC section 4).

With x = log_prob - ref_log_prob of the sampled token:
- 'k1'  x: unbiased, high variance.
- 'k2'  x^2 / 2: low variance, biased, but its gradient is the unbiased
        gradient of the KL for tokens drawn from the policy.
- 'k3'  exp(-x) - 1 + x: unbiased, never negative, low variance. The released
        code's form, with its gradient and its clamp of the VALUE to +-10
        (so a token beyond the clamp has no gradient).

The plain gradient of k1 is the score function alone, whose expectation is 0:
it teaches nothing. So 'k1' has the value of k1 and the gradient of k2. For
'k1' and 'k2' it is x that is clamped, to +-10.
"""

from metastone_jax.errors import UserError
from metastone_jax.policy import aggregation as aggregation_lib
from metastone_jax.policy import arrays

KL_FORMS = ('k1', 'k2', 'k3')
CLAMP = 10.0


def token_kl_BT(  # noqa: N802 (the suffix is the shape)
  log_prob_BT: arrays.Array,
  ref_log_prob_BT: arrays.Array,
  mask_BT: arrays.Array,
  form: str = 'k3',
) -> arrays.Array:
  """The estimate of each token, 0 outside the mask.

  Args:
    log_prob_BT: log-probs of the sampled tokens under the policy.
    ref_log_prob_BT: the same under the reference; a constant.
    mask_BT: true at response tokens.
    form: 'k1', 'k2' or 'k3'.

  Returns:
    Nats a token.

  Raises:
    UserError: an unknown form.
  """
  if form not in KL_FORMS:
    raise UserError(
      f'kl_form must be one of {", ".join(KL_FORMS)}: got {form!r}'
    )
  xp = arrays.namespace(log_prob_BT, ref_log_prob_BT, mask_BT)
  mask_BT = xp.asarray(mask_BT) != 0
  ref_log_prob_BT = arrays.constant(xp, xp.asarray(ref_log_prob_BT))
  x_BT = arrays.masked_difference(xp, log_prob_BT, ref_log_prob_BT, mask_BT)
  if form == 'k3':
    # expm1: exp(-x) - 1 + x cancels to noise in float32 near x = 0.
    bounded_BT = xp.clip(x_BT, -arrays.MAX_LOG_RATIO, arrays.MAX_LOG_RATIO)
    kl_BT = xp.expm1(-bounded_BT) + bounded_BT
    return xp.clip(kl_BT, -CLAMP, CLAMP)
  x_BT = xp.clip(x_BT, -CLAMP, CLAMP)
  k2_BT = x_BT**2 / 2
  if form == 'k2':
    return k2_BT
  return arrays.constant(xp, x_BT - k2_BT) + k2_BT


def kl_terms(
  log_prob_BT: arrays.Array,
  ref_log_prob_BT: arrays.Array,
  mask_BT: arrays.Array,
  form: str = 'k3',
  *,
  aggregation: str = 'token',
  fixed_length: int | None = None,
  sequence_total: arrays.Array | None = None,
  segment_BT: arrays.Array | None = None,
  num_segments: int | None = None,
) -> aggregation_lib.Term:
  """(sum, denominator) of the KL term, additive over micro-batches.

  Args:
    log_prob_BT: log-probs of the sampled tokens under the policy.
    ref_log_prob_BT: the same under the reference; a constant.
    mask_BT: true at response tokens.
    form: 'k1', 'k2' or 'k3'.
    aggregation: see `aggregation.aggregation_weights`, as are the rest.
    fixed_length: tokens.
    sequence_total: number of sequences.
    segment_BT: sequences of packed rows.
    num_segments: the most of them in a row.

  Returns:
    Two scalars.

  Raises:
    UserError: an unknown form or aggregation.
  """
  return aggregation_lib.aggregate(
    token_kl_BT(log_prob_BT, ref_log_prob_BT, mask_BT, form),
    mask_BT,
    aggregation,
    fixed_length=fixed_length,
    sequence_total=sequence_total,
    segment_BT=segment_BT,
    num_segments=num_segments,
  )


def k3_kl(
  log_prob_BT: arrays.Array,
  ref_log_prob_BT: arrays.Array,
  mask_BT: arrays.Array,
) -> arrays.Array:
  """Token mean of the k3 estimator over one whole batch.

  Args:
    log_prob_BT: log-probs of the sampled tokens under the policy.
    ref_log_prob_BT: the same under the reference; a constant.
    mask_BT: true at response tokens.

  Returns:
    A scalar, nats a token; 0 for an empty mask.
  """
  total, denominator = kl_terms(log_prob_BT, ref_log_prob_BT, mask_BT, 'k3')
  xp = arrays.namespace(total, denominator)
  return arrays.divide(xp, total, denominator)
