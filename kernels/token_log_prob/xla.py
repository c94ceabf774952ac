"""Token log-prob and entropy in chunks of tokens, forward and backward.

Only one chunk of logits (chunk x V) exists at a time: the backward pass makes
a chunk's logits again from the hidden states instead of keeping them. The two
functions here run on one device's tokens and its columns of the vocabulary and
know of no other: op.py combines what the devices found.
"""

import jax
import jax.numpy as jnp

# Finite: a probability of 0 times minus infinity would be NaN.
NEVER_A_TOKEN = -1e30


def mask_padding(logits: jax.Array, vocab_size: int, first=0) -> jax.Array:
  """Columns from `vocab_size` on become NEVER_A_TOKEN: (..., V) -> (..., V).

  Args:
    logits: columns [first, first + V) of the vocabulary.
    vocab_size: columns from here on are padding; None = there is none.
    first: column that these logits start at.
  """
  if vocab_size is None:
    return logits
  V = logits.shape[-1]
  if isinstance(first, int) and first + V <= vocab_size:
    return logits
  return jnp.where(first + jnp.arange(V) < vocab_size, logits, NEVER_A_TOKEN)


def _logits(hidden_nD, kernel_DV, temperature_n, vocab_size, first):
  acc = jnp.promote_types(hidden_nD.dtype, jnp.float32)
  logits = jnp.einsum(
    'nD,DV->nV', hidden_nD, kernel_DV, preferred_element_type=acc
  )
  logits = logits / temperature_n[:, None].astype(acc)
  return mask_padding(logits, vocab_size, first)


def _is_target(target_n, width, first):
  # A comparison, not a gather: it fuses into the reduction, and a target in
  # another device's columns is simply nowhere.
  return first + jnp.arange(width, dtype=target_n.dtype) == target_n[:, None]


def _over_chunks(body, carry, arrays, chunk, zero_filled=()):
  """Scans body over pieces of `chunk` tokens; outputs cut to N again.

  The last piece is filled up by repetition, which divides by no 0; the arrays
  `zero_filled` (gradients, which are summed over tokens) by zeros.
  """
  N = arrays[0].shape[0]
  if chunk >= N:
    return body(carry, (*arrays, *zero_filled))
  pieces = -(-N // chunk)

  def cut(x, mode):
    pads = ((0, pieces * chunk - N),) + ((0, 0),) * (x.ndim - 1)
    return jnp.pad(x, pads, mode=mode).reshape(pieces, chunk, *x.shape[1:])

  cut_arrays = [cut(x, 'edge') for x in arrays]
  cut_arrays += [cut(x, 'constant') for x in zero_filled]
  carry, out = jax.lax.scan(body, carry, tuple(cut_arrays))
  return carry, jax.tree.map(
    lambda x: x.reshape(pieces * chunk, *x.shape[2:])[:N], out
  )


def forward(
  hidden_ND: jax.Array,
  kernel_DV: jax.Array,
  target_N: jax.Array,
  temperature_N: jax.Array,
  *,
  chunk: int,
  vocab_size: int | None,
  first: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """What N tokens' distributions need to know of these columns, (N,) each.

  With l the logits: top = max l, total = sum exp(l - top),
  mean = sum exp(l - top) l, and taken, the target's l, 0 where the target is
  in none of these columns.

  Args:
    hidden_ND: final hidden states of this device's tokens.
    kernel_DV: its columns of the language-model head.
    target_N: int32, the tokens taken.
    temperature_N: logits are divided by it.
    chunk: tokens whose logits exist at a time.
    vocab_size: columns of the whole head from here on are padding.
    first: column of the whole head that `kernel_DV` starts at.
  """

  def body(carry, x):
    hidden, target, temperature = x
    logits = _logits(hidden, kernel_DV, temperature, vocab_size, first)
    top = jnp.max(logits, axis=-1)
    weight = jnp.exp(logits - top[:, None])
    taken = jnp.sum(
      jnp.where(_is_target(target, logits.shape[-1], first), logits, 0), -1
    )
    return carry, (
      top,
      jnp.sum(weight, axis=-1),
      jnp.sum(weight * logits, axis=-1),
      taken,
    )

  _, found = _over_chunks(
    body, None, (hidden_ND, target_N, temperature_N), chunk
  )
  return found


def backward(
  hidden_ND: jax.Array,
  kernel_DV: jax.Array,
  target_N: jax.Array,
  temperature_N: jax.Array,
  log_z_N: jax.Array,
  entropy_N: jax.Array,
  d_log_prob_N: jax.Array,
  d_entropy_N: jax.Array,
  *,
  chunk: int,
  vocab_size: int | None,
  first: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array]:
  """The gradients through these columns: d_hidden_ND, d_kernel_DV.

  Args:
    hidden_ND, kernel_DV, target_N, temperature_N: as in `forward`.
    log_z_N, entropy_N: of the whole distributions.
    d_log_prob_N, d_entropy_N: gradients of the loss in the results.
    chunk, vocab_size, first: as in `forward`.

  Returns:
    d_hidden in its dtype; d_kernel of THIS device's tokens and columns,
    float32 or better.
  """
  acc = jnp.promote_types(hidden_ND.dtype, jnp.float32)

  def body(d_kernel, x):
    hidden, target, temperature, log_z, entropy, d_log_prob, d_entropy = x
    logits = _logits(hidden, kernel_DV, temperature, vocab_size, first)
    log_p = logits - log_z[:, None]
    # d log p_target / d l_v = [v = target] - p_v
    # d H / d l_v = -p_v (log p_v + H)
    d_logits = -jnp.exp(log_p) * (
      d_log_prob[:, None] + d_entropy[:, None] * (log_p + entropy[:, None])
    )
    d_logits += jnp.where(
      _is_target(target, logits.shape[-1], first), d_log_prob[:, None], 0
    )
    d_logits = d_logits / temperature[:, None].astype(d_logits.dtype)
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum('nV,DV->nD', d_logits, kernel_DV)
    d_chunk = jnp.einsum(
      'nD,nV->DV', hidden, d_logits, preferred_element_type=acc
    )
    return d_chunk if d_kernel is None else d_kernel + d_chunk, d_hidden

  # One chunk needs no accumulator.
  start = None
  if chunk < hidden_ND.shape[0]:
    start = jnp.zeros(kernel_DV.shape, acc)
  d_kernel, d_hidden = _over_chunks(
    body,
    start,
    (
      hidden_ND,
      target_N,
      temperature_N,
      log_z_N,
      entropy_N,
    ),
    chunk,
    zero_filled=(d_log_prob_N, d_entropy_N),
  )
  return d_hidden, d_kernel
