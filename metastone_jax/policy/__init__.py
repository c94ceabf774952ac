"""Policy optimisation: advantages, the GRPO family's objective, KL estimators.

Pure functions on arrays, jax or numpy, float32 or float64; numpy in, numpy
out. `group_advantage`, `policy_loss` and `k3_kl` are the released recipe over
one whole batch; the trainer uses the (sum, denominator) forms `policy_terms`,
`kl_terms` and `aggregate`, which add up over micro-batches.
"""

from metastone_jax.policy.advantage import (
  ZeroVariance,
  group_advantage,
  overlong_penalty_B,
  zero_variance_groups,
)
from metastone_jax.policy.aggregation import (
  AGGREGATIONS,
  aggregate,
  aggregation_weights,
)
from metastone_jax.policy.config import (
  PRESETS,
  ObjectiveConfig,
  dapo,
  dr_grpo,
  grpo,
  gspo,
)
from metastone_jax.policy.kl import KL_FORMS, k3_kl, kl_terms, token_kl_BT
from metastone_jax.policy.objective import (
  policy_loss,
  policy_terms,
  sampler_mismatch_terms,
)

__all__ = [
  'AGGREGATIONS',
  'KL_FORMS',
  'PRESETS',
  'ObjectiveConfig',
  'ZeroVariance',
  'aggregate',
  'aggregation_weights',
  'dapo',
  'dr_grpo',
  'group_advantage',
  'grpo',
  'gspo',
  'k3_kl',
  'kl_terms',
  'overlong_penalty_B',
  'policy_loss',
  'policy_terms',
  'sampler_mismatch_terms',
  'token_kl_BT',
  'zero_variance_groups',
]
