"""Token log-prob and entropy in chunks of positions, with a custom gradient.

Only one chunk of logits (B x chunk x V) exists at a time, forward and
backward: the backward pass recomputes a chunk's logits from the hidden states
instead of keeping them. The batch axis is never merged with the length, so a
batch sharded over devices stays where it is; of a length split over `shards`
devices a chunk takes the same share of each device's part, so its hidden
states stay there too; with the vocabulary sharded the compiler combines the
partial max and sums.
"""

import functools

import jax
import jax.numpy as jnp


def _chunked(x_BT: jax.Array, chunk: int, shards: int, fill=0) -> jax.Array:
  """(B, T, ...) -> (T / (s chunk), B, s chunk, ...), padding T / s."""
  B, T, *rest = x_BT.shape
  x = x_BT.reshape(B, shards, T // shards, *rest)
  pad = -(T // shards) % chunk
  pads = ((0, 0), (0, 0), (0, pad)) + ((0, 0),) * len(rest)
  x = jnp.pad(x, pads, constant_values=fill)
  x = x.reshape(B, shards, -1, chunk, *rest)
  x = jnp.moveaxis(x, 2, 0)
  return x.reshape(len(x), B, shards * chunk, *rest)


def _chunked_temperature(temperature, length, chunk, shards):
  """Of each chunk; what is one a row, (B, 1), stays so."""
  if temperature.shape[1] > 1:
    return _chunked(temperature, chunk, shards, fill=1)
  N = -(-length // (shards * chunk))
  return jnp.broadcast_to(temperature, (N, *temperature.shape))


def _unchunked(x_NBt: jax.Array, length: int, shards: int) -> jax.Array:
  """The inverse of `_chunked`."""
  N, B, _, *rest = x_NBt.shape
  x = jnp.moveaxis(x_NBt.reshape(N, B, shards, -1, *rest), 0, 2)
  x = x.reshape(B, shards, -1, *rest)[:, :, : length // shards]
  return x.reshape(B, length, *rest)


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
  logits = logits / temperature[:, :, None].astype(acc)
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
  d_logits = d_logits / temperature[:, :, None].astype(d_logits.dtype)
  d_logits = d_logits.astype(hidden.dtype)
  d_hidden = jnp.einsum('BtV,DV->BtD', d_logits, kernel)
  acc = jnp.promote_types(hidden.dtype, jnp.float32)
  d_kernel = jnp.einsum(
    'BtD,BtV->DV', hidden, d_logits, preferred_element_type=acc
  )
  return d_hidden, d_kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def token_log_prob(
  hidden_BTD, kernel_DV, target_BT, temperature, chunk, vocab_size, shards
):
  """Chunked form of `op.token_log_prob`: `chunk` places of each shard.

  The temperature is (B, 1) or (B, T).
  """
  (log_prob, entropy), _ = _fwd(
    hidden_BTD, kernel_DV, target_BT, temperature, chunk, vocab_size, shards
  )
  return log_prob, entropy


def _fwd(
  hidden_BTD, kernel_DV, target_BT, temperature, chunk, vocab_size, shards
):
  T = target_BT.shape[1]
  if chunk >= T // shards:
    log_prob, entropy, log_z = _forward_chunk(
      hidden_BTD, kernel_DV, target_BT, temperature, vocab_size
    )
  else:
    _, (log_prob, entropy, log_z) = jax.lax.scan(
      lambda carry, x: (
        carry,
        _forward_chunk(x[0], kernel_DV, x[1], x[2], vocab_size),
      ),
      None,
      (
        _chunked(hidden_BTD, chunk, shards),
        _chunked(target_BT, chunk, shards),
        _chunked_temperature(temperature, T, chunk, shards),
      ),
    )
    log_prob, entropy, log_z = (
      _unchunked(x, T, shards) for x in (log_prob, entropy, log_z)
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


def _bwd(chunk, vocab_size, shards, residuals, cotangents):
  hidden_BTD, kernel_DV, target_BT, temperature, log_z, entropy = residuals
  d_log_prob, d_entropy = cotangents
  T = target_BT.shape[1]
  if chunk >= T // shards:
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
        hidden, kernel_DV, target, *rest, vocab_size
      )
      return d_kernel + d_chunk, d_hidden

    acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    d_kernel, d_hidden = jax.lax.scan(
      body,
      jnp.zeros(kernel_DV.shape, acc),
      tuple(
        _chunked(x, chunk, shards)
        for x in (
          hidden_BTD,
          target_BT,
          log_z,
          entropy,
          d_log_prob,
          d_entropy,
        )
      )
      + (_chunked_temperature(temperature, T, chunk, shards),),
    )
    d_hidden = _unchunked(d_hidden, T, shards)
  return d_hidden, d_kernel.astype(kernel_DV.dtype), None, None


token_log_prob.defvjp(_fwd, _bwd)
