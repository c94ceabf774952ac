"""Dispatch of the score head; the only file others import.

One implementation so far: `xla`, the reference over chunks of positions, each
recomputed in the backward pass, so the 2D-wide activations of a long sequence
never exist. All positions are scored, not only the marks: that is under 1 % of
the backbone's arithmetic from 1.5B parameters up and needs no gather and no
limit on the number of marks.

Where the length is split over devices, a chunk is a piece of every device's
part: cut in the order of the places it would lie on one device, and each step
would first move it to all others.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.scoring_head import reference

# Hidden activations alive on a device at a time: 2**24 elements.
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
  position_BT: jax.Array | None = None,
  shards: tuple[int, int] = (1, 1),
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
    row_B: uint32 global number of each row's sequence, needed with `seed`; or
      of each place's, (B, T), where rows hold several.
    position_BT: position of each place in its sequence; None = its place.
    shards: devices over which B and T are split; the second divides T.

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
  )
  row = position = None
  if seed is not None and dropout_rate > 0:
    row = jnp.asarray(row_B, jnp.uint32)
    if row.ndim == 1:
      row = row[:, None]
    row = jnp.broadcast_to(row, (B, T))
    position = jnp.arange(T) if position_BT is None else position_BT
    position = jnp.broadcast_to(position.astype(jnp.uint32), (B, T))
  local_rows = -(-B // shards[0])
  n = shards[1]
  chunk = max(1, _HIDDEN_BUDGET // (local_rows * E))
  if chunk >= T // n:
    return head(feature_BTD, row=row, position=position)
  chunks = -(-T // (n * chunk))

  def cut(x):
    """(B, T, ...) -> (chunks, B, n x chunk, ...)."""
    if x is None:
      return None
    rest = x.shape[2:]
    x = x.reshape(B, n, T // n, *rest)
    pads = [(0, 0), (0, 0), (0, chunks * chunk - T // n)]
    x = jnp.pad(x, pads + [(0, 0)] * len(rest))
    x = x.reshape(B, n, chunks, chunk, *rest)
    return jnp.moveaxis(x, 2, 0).reshape(chunks, B, n * chunk, *rest)

  body = jax.checkpoint(
    lambda x, row, position: head(x, row=row, position=position)
  )
  _, logit = jax.lax.scan(
    lambda carry, x: (carry, body(*x)),
    None,
    (cut(feature_BTD), cut(row), cut(position)),
  )
  logit = jnp.moveaxis(logit.reshape(chunks, B, n, chunk), 0, 2)
  return logit.reshape(B, n, -1)[:, :, : T // n].reshape(B, T)
