"""Self-supervised process reward model: pure functions on arrays.

Step marks (`steps`), the loss of the score head (`loss`), the score of a trace
(`score`) and what to watch (`diagnostics`). Arrays are jax or numpy, float32
or float64; numpy in, numpy out. No parameters and no model live here.
"""

from metastone_jax.sprm.diagnostics import (
  auc,
  auc_within,
  kept_fractions,
  score_gap,
)
from metastone_jax.sprm.loss import (
  KINDS,
  StepCounts,
  spr_loss,
  step_loss_denominator,
  step_loss_sum,
  step_weights,
)
from metastone_jax.sprm.score import AGGREGATORS, trace_score
from metastone_jax.sprm.steps import (
  SIDES,
  step_feature_mask,
  thinking_end_feature_mask,
)

__all__ = [
  'AGGREGATORS',
  'KINDS',
  'SIDES',
  'StepCounts',
  'auc',
  'auc_within',
  'kept_fractions',
  'score_gap',
  'spr_loss',
  'step_feature_mask',
  'step_loss_denominator',
  'step_loss_sum',
  'step_weights',
  'thinking_end_feature_mask',
  'trace_score',
]
