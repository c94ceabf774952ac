"""Decode attention, the meaning: one softmax over prompt and own positions.

Plain jnp; every slot gets a copy of its prompt's cache.
"""

import jax
import jax.numpy as jnp


def decode_attention(
  q_BHh: jax.Array,
  prompt_k_PKhS: jax.Array,
  prompt_v_PKSh: jax.Array,
  own_k_BKhR: jax.Array,
  own_v_BKRh: jax.Array,
  prompt_valid_PS: jax.Array,
  own_valid_BR: jax.Array,
  prompt_B: jax.Array,
) -> jax.Array:
  """As `op.decode_attention`, with the prompt of each slot given.

  Returns:
    (B, H, h) in the dtype of the own values; scores and softmax are in float32
    or better.
  """
  B, H, h = q_BHh.shape
  K = own_k_BKhR.shape[1]
  acc = jnp.promote_types(q_BHh.dtype, jnp.float32)
  k_BKhC = jnp.concatenate([prompt_k_PKhS[prompt_B], own_k_BKhR], axis=-1)
  v_BKCh = jnp.concatenate([prompt_v_PKSh[prompt_B], own_v_BKRh], axis=-2)
  valid_BC = jnp.concatenate([prompt_valid_PS[prompt_B], own_valid_BR], axis=-1)
  q_BKGh = (q_BHh * h**-0.5).reshape(B, K, H // K, h)
  scores_BKGC = jnp.einsum(
    'BKGh,BKhC->BKGC', q_BKGh, k_BKhC, preferred_element_type=acc
  )
  scores_BKGC = jnp.where(
    valid_BC[:, None, None], scores_BKGC, jnp.finfo(acc).min
  )
  weight_BKGC = jax.nn.softmax(scores_BKGC, axis=-1).astype(v_BKCh.dtype)
  out_BKGh = jnp.einsum('BKGC,BKCh->BKGh', weight_BKGC, v_BKCh)
  return out_BKGh.reshape(B, H, h)
