"""From logits to a token: temperature, top-k, top-p, Gumbel noise.

Nothing sorts the vocabulary: the top-p threshold is found by bisection on the
probability, top-k by `lax.top_k`. The noise of a draw depends only on the
row's key and its position, so a candidate's tokens do not depend on what else
is in the batch.
"""

import jax
import jax.numpy as jnp

# Halvings of [0, max p]: below float32 resolution after 32.
_BISECTIONS = 32


def top_p_threshold(p_V: jax.Array, top_p: float) -> jax.Array:
  """The largest t with sum(p[p >= t]) >= top_p, over the last axis.

  Tokens tied at the threshold are all kept.

  Args:
    p_V: probabilities (..., V).
    top_p: mass to reach, in (0, 1).

  Returns:
    (..., 1) thresholds; keep p >= t.
  """
  high = jnp.max(p_V, axis=-1, keepdims=True)
  # Invariant: mass(low) >= top_p. high starts just above every probability.
  low, high = jnp.zeros_like(high), high * (1 + 1e-6) + 1e-30

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    mass = jnp.sum(jnp.where(p_V >= middle, p_V, 0), axis=-1, keepdims=True)
    enough = mass >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
  return low


def filter_logits(
  logits_V: jax.Array, *, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
  """Sets the logits outside top-k, then outside top-p of the rest, to -inf.

  Args:
    logits_V: (..., V), temperature already applied.
    top_k: 0 = off.
    top_p: 1 = off.
  """
  if 0 < top_k < logits_V.shape[-1]:
    kth = jax.lax.top_k(logits_V, top_k)[0][..., -1:]
    logits_V = jnp.where(logits_V >= kth, logits_V, -jnp.inf)
  if top_p < 1:
    p = jax.nn.softmax(logits_V, axis=-1)
    logits_V = jnp.where(p >= top_p_threshold(p, top_p), logits_V, -jnp.inf)
  return logits_V


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
  logits_BV: jax.Array,
  key_B: jax.Array,
  place_B: jax.Array,
  *,
  greedy: bool,
  top_k: int = 0,
  top_p: float = 1.0,
) -> jax.Array:
  """Draws one token a row by the Gumbel-max trick, int32 (B,).

  Args:
    logits_BV: policy logits, temperature applied.
    key_B: keys of `row_keys`.
    place_B: int, the response position drawn.
    greedy: the argmax, no noise.
    top_k: 0 = off.
    top_p: 1 = off.
  """
  perturbed = filter_logits(logits_BV, top_k=top_k, top_p=top_p)
  if not greedy:
    V = logits_BV.shape[-1]

    def noise(key, place):
      return jax.random.gumbel(
        jax.random.fold_in(key, place), (V,), logits_BV.dtype
      )

    perturbed = perturbed + jax.vmap(noise)(key_B, place_B)
  return jnp.argmax(perturbed, axis=-1).astype(jnp.int32)


def log_prob_of(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
  """log softmax(logits) at one token a row.

  Of logits / temperature WITHOUT the top-k and top-p filters it is the
  trainer's distribution; greedy draws report temperature 1.
  """
  taken = jnp.take_along_axis(logits_BV, token_B[..., None], axis=-1)
  return taken[..., 0] - jax.nn.logsumexp(logits_BV, axis=-1)
