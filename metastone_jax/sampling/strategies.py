"""From logits to a token: keys, and the Gumbel-max trick.

The noise of a draw depends only on the candidate's key and its position, so a
candidate's tokens do not depend on what else is in the batch.
"""

import jax
import jax.numpy as jnp


def keys(
  seed: jax.Array, draw_B: jax.Array, candidate_B: jax.Array
) -> jax.Array:
  """Keys (B,): fold_in(fold_in(seed, draw), candidate)."""
  root = jax.random.key(seed)

  def one(draw, candidate):
    return jax.random.fold_in(jax.random.fold_in(root, draw), candidate)

  return jax.vmap(one)(draw_B, candidate_B)


def row_keys(
  seed: jax.Array, draw_P: jax.Array, candidate_N: jax.Array
) -> jax.Array:
  """`keys` of N candidates of every problem, (P, N)."""
  P, N = draw_P.shape[0], candidate_N.shape[0]
  return keys(seed, jnp.repeat(draw_P, N), jnp.tile(candidate_N, P)).reshape(
    P, N
  )


def draw_tokens(
  logits_BV: jax.Array, key_B: jax.Array, place_B: jax.Array, *, greedy: bool
) -> jax.Array:
  """Draws one token a row by the Gumbel-max trick, int32 (B,).

  Args:
    logits_BV: policy logits over the temperature, after all processors.
    key_B: keys of `keys`.
    place_B: int, the response position drawn.
    greedy: the argmax, no noise.
  """
  if not greedy:
    V = logits_BV.shape[-1]

    def noise(key, place):
      return jax.random.gumbel(
        jax.random.fold_in(key, place), (V,), logits_BV.dtype
      )

    logits_BV = logits_BV + jax.vmap(noise)(key_B, place_B)
  return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def log_prob_of(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
  """log softmax(logits) at one token a row.

  Of logits / temperature WITHOUT any processor it is the trainer's
  distribution; greedy draws report temperature 1.
  """
  taken = jnp.take_along_axis(logits_BV, token_B[..., None], axis=-1)
  return taken[..., 0] - jax.nn.logsumexp(logits_BV, axis=-1)
