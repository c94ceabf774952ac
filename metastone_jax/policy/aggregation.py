"""How per-token terms become one number: policy, KL and entropy all alike.

An aggregation is a weight per token and a denominator:

  term = sum(weight_BT * value_BT) / denominator

Both are ADDITIVE over rows: sums and denominators of micro-batches, added up
and divided once, give the whole batch's term.

- 'token'               every token of the batch counts the same (released
                        GRPO code, DAPO).
- 'sequence'            every sequence counts the same: the mean over sequences
                        of the mean over their tokens (GRPO's paper, GSPO).
- 'sequence_sum_fixed'  the mean over sequences of the sum over tokens divided
                        by a constant length (Dr. GRPO: no length bias).

A row without a token in the mask (batch filler) weighs nothing. A sequence is a
row, or with `segment_BT` a segment of a row (packed rows).
"""

from metastone_jax.errors import UserError
from metastone_jax.policy import arrays

AGGREGATIONS = ('token', 'sequence', 'sequence_sum_fixed')

Term = tuple[arrays.Array, arrays.Array]  # (sum, denominator), both scalar


def aggregation_weights(
  mask_BT: arrays.Array,
  aggregation: str = 'token',
  *,
  fixed_length: int | None = None,
  sequence_total: arrays.Array | None = None,
  dtype=None,
  segment_BT: arrays.Array | None = None,
  num_segments: int | None = None,
) -> Term:
  """The weight of each token and the denominator.

  Args:
    mask_BT: true at response tokens.
    aggregation: 'token', 'sequence' or 'sequence_sum_fixed'.
    fixed_length: tokens; the constant of 'sequence_sum_fixed' (usual: the
      longest response allowed). The same for every batch of a run.
    sequence_total: the number of sequences that these rows stand for, where
      it is not the number of rows with a token.
    dtype: float type of the result; the default float type if None.
    segment_BT: sequence that each token belongs to, in 1..num_segments; None:
      each row is one sequence.
    num_segments: the most sequences of a row; static.

  Returns:
    weight_BT, 0 outside the mask; scalar denominator.

  Raises:
    UserError: an unknown aggregation, or no fixed length where one is needed.
  """
  if aggregation not in AGGREGATIONS:
    raise UserError(
      f'aggregation must be one of {", ".join(AGGREGATIONS)}: '
      f'got {aggregation!r}'
    )
  xp = arrays.namespace(mask_BT, sequence_total)
  mask_BT = xp.asarray(mask_BT) != 0
  weight_BT = arrays.as_float(xp, mask_BT)
  if dtype is not None:
    weight_BT = weight_BT.astype(dtype)
  if aggregation == 'token':
    return weight_BT, weight_BT.sum()
  # Tokens of each sequence: one sequence a row, or num_segments.
  if segment_BT is None:
    length_BM = weight_BT.sum(-1, keepdims=True)
    length_BT = length_BM
  else:
    length_BM = arrays.segment_sums(xp, weight_BT, segment_BT, num_segments)
    length_BT = arrays.on_segments(xp, length_BM, segment_BT)
  if sequence_total is None:
    denominator = (length_BM > 0).sum().astype(weight_BT.dtype)
  else:
    denominator = xp.asarray(sequence_total).astype(weight_BT.dtype)
  if aggregation == 'sequence':
    return weight_BT / xp.maximum(length_BT, 1), denominator
  if fixed_length is None:
    raise UserError(
      "aggregation 'sequence_sum_fixed' needs fixed_length, in tokens "
      '(usually the longest response allowed)'
    )
  return weight_BT / fixed_length, denominator


def aggregate(
  value_BT: arrays.Array,
  mask_BT: arrays.Array,
  aggregation: str = 'token',
  *,
  fixed_length: int | None = None,
  sequence_total: arrays.Array | None = None,
  segment_BT: arrays.Array | None = None,
  num_segments: int | None = None,
) -> Term:
  """(sum, denominator) of a per-token value, such as the entropy.

  Args:
    value_BT: one value a token; anything, even nan, outside the mask.
    mask_BT: true at response tokens.
    aggregation: see `aggregation_weights`, as are the rest.
    fixed_length: tokens.
    sequence_total: number of sequences.
    segment_BT: sequences of packed rows.
    num_segments: the most of them in a row.

  Returns:
    (sum, denominator), additive over micro-batches.
  """
  xp = arrays.namespace(value_BT, mask_BT, sequence_total)
  value_BT = arrays.as_float(xp, value_BT)
  mask_BT = xp.asarray(mask_BT) != 0
  weight_BT, denominator = aggregation_weights(
    mask_BT,
    aggregation,
    fixed_length=fixed_length,
    sequence_total=sequence_total,
    dtype=value_BT.dtype,
    segment_BT=segment_BT,
    num_segments=num_segments,
  )
  return (weight_BT * xp.where(mask_BT, value_BT, 0)).sum(), denominator
