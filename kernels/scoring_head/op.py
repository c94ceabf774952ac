"""Dispatch of the score head; the only file others import.

One implementation so far: `xla`, the reference over chunks of positions, each
recomputed in the backward pass, so the 2D-wide activations of a long sequence
never exist. All positions are scored, not only the marks: that is under 1 % of
the backbone's arithmetic from 1.5B parameters up and needs no gather and no
limit on the number of marks.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.scoring_head import reference

# Hidden activations alive at a time: 2**24 elements.
_HIDDEN_BUDGET = 2**24


def scoring_head(
  feature_BTD: jax.Array,
  hidden_kernel_DE: jax.Array,
  hidden_bias_E: jax.Array,
  output_kernel_E1: jax.Array,
  output_bias_1: jax.Array,
  *,
  dropout_rate: float = 0.0,
  seed: jax.Array | None = None,
  row_B: jax.Array | None = None,
) -> jax.Array:
  """Step logits z of SPEC section 1, at every position.

  Args:
    feature_BTD: the residual stream entering the last block.
    hidden_kernel_DE: first layer, E = 2D.
    hidden_bias_E: its bias.
    output_kernel_E1: second layer.
    output_bias_1: its bias.
    dropout_rate: share of hidden units dropped when `seed` is given.
    seed: uint32 scalar; None = no dropout.
    row_B: uint32 global row index, needed with `seed`.

  Returns:
    (B, T) logits, float32 or better.
  """
  B, T, _ = feature_BTD.shape
  E = hidden_kernel_DE.shape[1]
  head = functools.partial(
    reference.scoring_head,
    hidden_kernel_DE=hidden_kernel_DE,
    hidden_bias_E=hidden_bias_E,
    output_kernel_E1=output_kernel_E1,
    output_bias_1=output_bias_1,
    dropout_rate=dropout_rate,
    seed=seed,
    row_B=row_B,
  )
  chunk = max(1, _HIDDEN_BUDGET // (B * E))
  if chunk >= T:
    return head(feature_BTD)
  chunks = -(-T // chunk)
  padded = jnp.pad(feature_BTD, ((0, 0), (0, chunks * chunk - T), (0, 0)))
  padded = jnp.moveaxis(padded.reshape(B, chunks, chunk, -1), 1, 0)
  body = jax.checkpoint(lambda x, first: head(x, first_position=first))
  _, logit = jax.lax.scan(
    lambda carry, x: (carry, body(*x)),
    None,
    (padded, jnp.arange(chunks, dtype=jnp.uint32) * jnp.uint32(chunk)),
  )
  return jnp.moveaxis(logit, 0, 1).reshape(B, -1)[:, :T]
