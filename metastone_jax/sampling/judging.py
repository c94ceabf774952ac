"""Marks and scores of responses, for whatever has drawn them.

Numpy in, numpy out; jax in, jax out (traced or not).
"""

from metastone_jax import sprm
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sprm import arrays


def judge(
  row_BT: arrays.Array,
  read_B: arrays.Array,
  length_B: arrays.Array,
  step_logit_BR: arrays.Array,
  last_logit_B: arrays.Array,
  config: SamplingConfig,
) -> tuple[arrays.Array, arrays.Array]:
  """Where the counted marks of responses are, and the scores of their traces.

  Args:
    row_BT: what was read and, without a gap, the response; padded.
    read_B: tokens that were read, >= 1; marks among them do not count.
    length_B: tokens of each response.
    step_logit_BR: z at the position that predicts response token r, where that
      is a mark or </think>.
    last_logit_B: z at the last position.
    config: ids, aggregator.

  Returns:
    step_mask_BR and score_B.
  """
  xp = arrays.namespace(row_BT, step_logit_BR)
  R = step_logit_BR.shape[1]
  # Response token r is predicted at position read - 1 + r of its row.
  index_BR = xp.minimum(read_B[:, None] - 1 + xp.arange(R), row_BT.shape[1] - 1)
  real_BR = xp.arange(R) < length_B[:, None]

  def of_response(mask_BT):
    return xp.take_along_axis(mask_BT, index_BR, axis=1) & real_BR

  tags = dict(
    think_start_id=config.think_start_id,
    think_end_id=config.think_end_id,
    side=config.score_side,
  )
  step_mask_BR = of_response(
    sprm.step_feature_mask(row_BT, step_ids=config.step_ids, **tags)
  )
  fallback_B = None
  if not config.released_selection:
    # The last thinking position predicts </think> (a response token) or, where
    # none was written, nothing yet.
    end_BR = of_response(
      sprm.thinking_end_feature_mask(row_BT, read_B + length_B, **tags)
    )
    fallback_B = xp.where(
      end_BR.any(axis=1),
      xp.where(end_BR, step_logit_BR, 0).sum(axis=1),
      last_logit_B,
    ).astype(step_logit_BR.dtype)
  score_B = sprm.trace_score(
    step_logit_BR,
    step_mask_BR,
    aggregator=config.aggregator,
    fallback_logit_B=fallback_B,
  )
  return step_mask_BR, score_B
