"""Dispatch of the token log-prob; the only file others import."""

import jax
import jax.numpy as jnp

from kernels.token_log_prob import xla
from kernels.token_log_prob.xla import mask_padding as mask_padding

# Logits alive at a time on the devices that share a vocabulary: 2**24 float32
# = 64 MiB. At the tiny recipe's vocabulary one chunk holds a whole micro-batch;
# at V = 152,064 and one row a device it is about 110 positions.
_LOGITS_BUDGET = 2**24


def token_log_prob(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  target_BT: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  chunk: int | None = None,
  vocab_size: int | None = None,
  shards: tuple[int, int] = (1, 1),
) -> tuple[jax.Array, jax.Array]:
  """Log-prob of each taken token and entropy of its distribution.

  Differentiable in `hidden_BTD` and `kernel_DV`, through both outputs.

  Args:
    hidden_BTD: final hidden states, after the last norm.
    kernel_DV: the language-model head (the transposed embedding when tied).
    target_BT: int32, the token taken after each position, in [0, V).
    temperature: logits are divided by it; a number, one a row, (B,), or one a
      place, (B, T). It is a constant: no gradient. (SPEC 4: trainer, old and
      reference log-probs use the rollout temperature.)
    chunk: positions of (each device's part of) the length axis whose logits
      exist at a time; default: as many as keep a device's rows x chunk x V
      within 64 MiB of float32.
    vocab_size: columns from here on are padding, never a token; None = V.
    shards: devices over which B and T are split; the second divides T.

  Returns:
    log_prob_BT (nats) and entropy_BT (nats), float32 or better.
  """
  B = target_BT.shape[0]
  if chunk is None:
    local_rows = -(-B // shards[0])
    chunk = max(1, _LOGITS_BUDGET // (local_rows * kernel_DV.shape[1]))
  acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
  temperature = jnp.asarray(temperature, acc)
  if temperature.ndim < 2:  # one a row stays one a row
    temperature = jnp.broadcast_to(temperature, (B,))[:, None]
  return xla.token_log_prob(
    hidden_BTD,
    kernel_DV,
    target_BT,
    temperature,
    int(chunk),
    vocab_size or kernel_DV.shape[1],
    shards[1],
  )
