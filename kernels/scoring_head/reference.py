"""The score head, the meaning: plain jnp over all positions at once."""

import jax
import jax.numpy as jnp

from kernels.scoring_head.dropout import keep_mask


def scoring_head(
  feature_BTD: jax.Array,
  hidden_kernel_DE: jax.Array,
  hidden_bias_E: jax.Array,
  output_kernel_E1: jax.Array,
  output_bias_1: jax.Array,
  dropout_rate: float = 0.0,
  seed: jax.Array | None = None,
  row: jax.Array | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """See `op.scoring_head`; rows and positions are (B,), (T,) or (B, T)."""
  dtype = feature_BTD.dtype
  acc = jnp.promote_types(dtype, jnp.float32)
  # Operands are rounded to the features' dtype, sums are not.
  hidden_kernel_DE, hidden_bias_E, output_kernel_E1, output_bias_1 = (
    x.astype(dtype)
    for x in (hidden_kernel_DE, hidden_bias_E, output_kernel_E1, output_bias_1)
  )
  hidden_BTE = jax.nn.relu(
    jnp.einsum(
      'BTD,DE->BTE',
      feature_BTD,
      hidden_kernel_DE,
      preferred_element_type=acc,
    )
    + hidden_bias_E.astype(acc)
  )
  if seed is not None and dropout_rate > 0:
    T, E = hidden_BTE.shape[1:]
    if position is None:
      position = jnp.arange(T, dtype=jnp.uint32)
    keep = keep_mask(seed, row, position, E, dropout_rate)
    hidden_BTE = jnp.where(keep, hidden_BTE / (1 - dropout_rate), 0)
  logit_BT1 = jnp.einsum(
    'BTE,EO->BTO', hidden_BTE, output_kernel_E1.astype(acc)
  )
  return (logit_BT1 + output_bias_1.astype(acc))[..., 0]


def step_scores(
  feature_BTD: jax.Array,
  hidden_kernel_DE: jax.Array,
  hidden_bias_E: jax.Array,
  output_kernel_E1: jax.Array,
  output_bias_1: jax.Array,
  mark_BT: jax.Array,
  **dropout,
) -> tuple[jax.Array, jax.Array]:
  """See `op.step_scores`; dropout as in `scoring_head`."""
  logit_BT = scoring_head(
    feature_BTD,
    hidden_kernel_DE,
    hidden_bias_E,
    output_kernel_E1,
    output_bias_1,
    **dropout,
  )
  # Marks alone reach the logarithm, so that no other place has a gradient.
  logit_BT = jnp.where(mark_BT, logit_BT, 0)
  return logit_BT, jnp.where(mark_BT, jax.nn.log_sigmoid(logit_BT), 0)
