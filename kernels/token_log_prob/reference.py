"""Token log-prob and entropy, the meaning: all logits of a sequence at once."""

import jax
import jax.numpy as jnp


def token_log_prob(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  target_BT: jax.Array,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """The naive form of `op.token_log_prob`; see there."""
  acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
  logits_BTV = (
    jnp.einsum('BTD,DV->BTV', hidden_BTD, kernel_DV, preferred_element_type=acc)
    / temperature
  )
  log_p_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
  log_prob_BT = jnp.take_along_axis(log_p_BTV, target_BT[..., None], axis=-1)
  entropy_BT = -jnp.sum(jnp.exp(log_p_BTV) * log_p_BTV, axis=-1)
  return log_prob_BT[..., 0], entropy_BT
