"""The gradient in one logit, as the Pallas kernels compute it.

With l the logit over the temperature, log p = l - log Z, and the gradients of
the loss in a token's log-prob (a) and entropy (b):

  d loss / d l_v = a [v = target] - p_v (a + b (log p_v + H))

and once more over the temperature for the gradient in the product of hidden
state and head. All that depends on the token alone is folded into five numbers
a token, so that a logit costs an exponential, six products and sums and one
selection.
"""

import jax
import jax.numpy as jnp

COEFFICIENTS = 5


def coefficients(
  temperature_N: jax.Array,
  log_z_N: jax.Array,
  entropy_N: jax.Array,
  d_log_prob_N: jax.Array,
  d_entropy_N: jax.Array,
) -> jax.Array:
  """float32 (5, N), the rows that `d_logits` takes after the logits."""
  rows = (
    x.astype(jnp.float32)
    for x in (temperature_N, log_z_N, entropy_N, d_log_prob_N, d_entropy_N)
  )
  temperature, log_z, entropy, d_log_prob, d_entropy = rows
  scale = 1 / temperature
  return jnp.stack(
    [
      scale,
      log_z,
      -(d_log_prob + d_entropy * entropy) * scale,
      -d_entropy * scale,
      d_log_prob * scale,
    ]
  )


def d_logits(logits, is_target, scale, log_z, constant, slope, taken):
  """Gradient of the loss in the product of hidden state and head.

  Args:
    logits: that product, any shape.
    is_target: whether its column is the target; broadcasts.
    scale, log_z, constant, slope, taken: rows of `coefficients`; broadcast.
  """
  log_p = logits * scale - log_z
  gradient = jnp.exp(log_p) * (log_p * slope + constant)
  return jnp.where(is_target, gradient + taken, gradient)
