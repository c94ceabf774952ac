"""Dispatch of the token log-prob; the only file others import."""

import jax
import jax.numpy as jnp

from kernels.token_log_prob import xla
from kernels.token_log_prob.xla import mask_padding as mask_padding

# Logits alive at a time, counted over the whole batch: 2**24 float32 = 64 MiB.
# At the tiny recipe's vocabulary one chunk holds a whole micro-batch; at
# V = 152,064 it is about 110 positions.
_LOGITS_BUDGET = 2**24


def token_log_prob(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  target_BT: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  chunk: int | None = None,
  vocab_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-prob of each taken token and entropy of its distribution.

  Differentiable in `hidden_BTD` and `kernel_DV`, through both outputs.

  Args:
    hidden_BTD: final hidden states, after the last norm.
    kernel_DV: the language-model head (the transposed embedding when tied).
    target_BT: int32, the token taken after each position, in [0, V).
    temperature: logits are divided by it; a number, or one a row, (B,). It is
      a constant: no gradient. (SPEC 4: trainer, old and reference log-probs
      use the rollout temperature.)
    chunk: positions of the length axis whose logits exist at a time; default:
      as many as keep B x chunk x V within 64 MiB of float32.
    vocab_size: columns from here on are padding, never a token; None = V.

  Returns:
    log_prob_BT (nats) and entropy_BT (nats), float32 or better.
  """
  if chunk is None:
    B, V = target_BT.shape[0], kernel_DV.shape[1]
    chunk = max(1, _LOGITS_BUDGET // (B * V))
  acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
  temperature_B = jnp.broadcast_to(
    jnp.asarray(temperature, acc), target_BT.shape[:1]
  )
  return xla.token_log_prob(
    hidden_BTD,
    kernel_DV,
    target_BT,
    temperature_B,
    int(chunk),
    vocab_size or kernel_DV.shape[1],
  )
