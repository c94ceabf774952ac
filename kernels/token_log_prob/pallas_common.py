"""What the Pallas kernels of both platforms have in common.

First, which of a device's columns are tokens. Second, the gradient in one
logit. With l the logit over the temperature, log p = l - log Z, and the
gradients of the loss in a token's log-prob (a) and entropy (b):

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


def local_target(target_N, first, columns: int) -> jax.Array:
  """Targets as columns of this device; -1 where they are not among them.

  A target beyond the last column must not be found in the padding of the last
  tile, which is masked by a very small logit.
  """
  local = target_N - first
  return jnp.where((local >= 0) & (local < columns), local, -1)


def local_limit(first, columns: int, vocab_size: int | None) -> jax.Array:
  """int32 (1,): how many of this device's columns may be tokens."""
  limit = columns
  if vocab_size is not None:
    limit = jnp.clip(vocab_size - first, 0, columns)
  return jnp.asarray(limit, jnp.int32).reshape(1)


def pad_tokens(x_N, tokens: int, value=0, axis: int = 0) -> jax.Array:
  """Fills the axis up to `tokens` with `value`."""
  if x_N.shape[axis] == tokens:
    return x_N
  pads = [(0, 0)] * x_N.ndim
  pads[axis] = (0, tokens - x_N.shape[axis])
  return jnp.pad(x_N, pads, constant_values=value)
