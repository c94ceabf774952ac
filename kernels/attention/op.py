"""Dispatch of whole-sequence attention; the only file others import.

One implementation so far: `xla` (the reference, which XLA fuses well at the
lengths a CPU trains). Flash kernels for TPU and GPU plug in here by name.
"""

import jax
import jax.numpy as jnp

from kernels.attention import reference


def causal_mask(segment_BT: jax.Array) -> jax.Array:
  """Who may read whom: earlier or same position of the same real segment.

  Args:
    segment_BT: integer segment ids, 0 = padding.

  Returns:
    bool (B, T, T).
  """
  T = segment_BT.shape[1]
  causal_TT = jnp.tril(jnp.ones((T, T), bool))
  same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
  return causal_TT & same_BTT & (segment_BT != 0)[:, None, :]


def attention(
  q_BTHh: jax.Array,
  k_BTKh: jax.Array,
  v_BTKh: jax.Array,
  segment_BT: jax.Array,
) -> jax.Array:
  """Causal self-attention within segments: (B, T, H, h).

  Args:
    q_BTHh: rotated queries.
    k_BTKh: rotated keys, K divides H.
    v_BTKh: values.
    segment_BT: integer segment ids, 0 = padding.
  """
  return reference.attention(q_BTHh, k_BTKh, v_BTKh, causal_mask(segment_BT))
