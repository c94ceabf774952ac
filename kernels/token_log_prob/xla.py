"""Token log-prob and entropy in chunks of positions, with a custom gradient.

Only one chunk of logits (B x chunk x V) exists at a time, forward and
backward: the backward pass recomputes a chunk's logits from the hidden states
instead of keeping them. The batch axis is never merged with the length, so a
batch sharded over devices stays where it is; with the vocabulary sharded the
compiler combines the partial max and sums.
"""

import functools

import jax
import jax.numpy as jnp


def _chunked(x_BT: jax.Array, chunk: int) -> jax.Array:
  """(B, T, ...) -> (T / chunk, B, chunk, ...), zero-padding T."""
  B, T = x_BT.shape[:2]
  pad = -T % chunk
  x = jnp.pad(x_BT, ((0, 0), (0, pad)) + ((0, 0),) * (x_BT.ndim - 2))
  x = x.reshape(B, (T + pad) // chunk, chunk, *x_BT.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _unchunked(x_NBt: jax.Array, length: int) -> jax.Array:
  """The inverse of `_chunked`."""
  x = jnp.moveaxis(x_NBt, 0, 1)
  x = x.reshape(x.shape[0], -1, *x.shape[3:])
  return x[:, :length]


# Finite: a probability of 0 times minus infinity would be NaN.
NEVER_A_TOKEN = -1e30


def mask_padding(logits: jax.Array, vocab_size: int) -> jax.Array:
  """Columns from `vocab_size` on become NEVER_A_TOKEN: (..., V) -> (..., V)."""
  V = logits.shape[-1]
  if V == vocab_size:
    return logits
  return jnp.where(jnp.arange(V) < vocab_size, logits, NEVER_A_TOKEN)


def _logits(hidden, kernel, temperature, vocab_size):
  acc = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum('BtD,DV->BtV', hidden, kernel, preferred_element_type=acc)
  logits = logits / temperature[:, None, None].astype(acc)
  return mask_padding(logits, vocab_size)


def _is_target(target, vocab):
  # A comparison, not a gather: it fuses into the reduction and needs no
  # communication beyond a sum when the vocabulary is sharded.
  return jax.lax.broadcasted_iota(
    target.dtype, target.shape + (vocab,), target.ndim
  ) == jnp.expand_dims(target, -1)


def _forward_chunk(hidden, kernel, target, temperature, vocab_size):
  logits = _logits(hidden, kernel, temperature, vocab_size)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  taken = jnp.sum(
    jnp.where(_is_target(target, logits.shape[-1]), logits, 0), axis=-1
  )
  # H = log Z - sum_v p_v l_v, from the same pass over the logits.
  mean = jnp.sum(jnp.exp(logits - log_z[..., None]) * logits, axis=-1)
  return taken - log_z, log_z - mean, log_z


def _backward_chunk(
  hidden,
  kernel,
  target,
  log_z,
  entropy,
  d_log_prob,
  d_entropy,
  temperature,
  vocab_size,
):
  logits = _logits(hidden, kernel, temperature, vocab_size)
  log_p = logits - log_z[..., None]
  p = jnp.exp(log_p)
  # d log p_target / d l_v = [v = target] - p_v
  # d H / d l_v = -p_v (log p_v + H)
  d_logits = -p * (
    d_log_prob[..., None] + d_entropy[..., None] * (log_p + entropy[..., None])
  )
  d_logits += jnp.where(
    _is_target(target, logits.shape[-1]), d_log_prob[..., None], 0
  )
  d_logits = d_logits / temperature[:, None, None].astype(d_logits.dtype)
  d_logits = d_logits.astype(hidden.dtype)
  d_hidden = jnp.einsum('BtV,DV->BtD', d_logits, kernel)
  acc = jnp.promote_types(hidden.dtype, jnp.float32)
  d_kernel = jnp.einsum(
    'BtD,BtV->DV', hidden, d_logits, preferred_element_type=acc
  )
  return d_hidden, d_kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_log_prob(
  hidden_BTD, kernel_DV, target_BT, temperature_B, chunk, vocab_size
):
  """Chunked form of `op.token_log_prob`; `chunk` positions at a time."""
  (log_prob, entropy), _ = _fwd(
    hidden_BTD, kernel_DV, target_BT, temperature_B, chunk, vocab_size
  )
  return log_prob, entropy


def _fwd(hidden_BTD, kernel_DV, target_BT, temperature, chunk, vocab_size):
  T = target_BT.shape[1]
  if chunk >= T:
    log_prob, entropy, log_z = _forward_chunk(
      hidden_BTD, kernel_DV, target_BT, temperature, vocab_size
    )
  else:
    _, (log_prob, entropy, log_z) = jax.lax.scan(
      lambda carry, x: (
        carry,
        _forward_chunk(x[0], kernel_DV, x[1], temperature, vocab_size),
      ),
      None,
      (_chunked(hidden_BTD, chunk), _chunked(target_BT, chunk)),
    )
    log_prob, entropy, log_z = (
      _unchunked(x, T) for x in (log_prob, entropy, log_z)
    )
  residuals = (
    hidden_BTD,
    kernel_DV,
    target_BT,
    temperature,
    log_z,
    entropy,
  )
  return (log_prob, entropy), residuals


def _bwd(chunk, vocab_size, residuals, cotangents):
  hidden_BTD, kernel_DV, target_BT, temperature, log_z, entropy = residuals
  d_log_prob, d_entropy = cotangents
  T = target_BT.shape[1]
  if chunk >= T:
    d_hidden, d_kernel = _backward_chunk(
      hidden_BTD,
      kernel_DV,
      target_BT,
      log_z,
      entropy,
      d_log_prob,
      d_entropy,
      temperature,
      vocab_size,
    )
  else:

    def body(d_kernel, x):
      hidden, target, *rest = x
      d_hidden, d_chunk = _backward_chunk(
        hidden, kernel_DV, target, *rest, temperature, vocab_size
      )
      return d_kernel + d_chunk, d_hidden

    acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    d_kernel, d_hidden = jax.lax.scan(
      body,
      jnp.zeros(kernel_DV.shape, acc),
      tuple(
        _chunked(x, chunk)
        for x in (
          hidden_BTD,
          target_BT,
          log_z,
          entropy,
          d_log_prob,
          d_entropy,
        )
      ),
    )
    d_hidden = _unchunked(d_hidden, T)
  return d_hidden, d_kernel.astype(kernel_DV.dtype), None, None


token_log_prob.defvjp(_fwd, _bwd)
