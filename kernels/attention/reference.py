"""Causal grouped-query attention, the meaning: plain jnp, all scores at once.

Source: Vaswani et al. 2017, grouped as in Ainslie et al. 2023 (GQA).
"""

import jax
import jax.numpy as jnp


def attention(
  q_BTHh: jax.Array,
  k_BSKh: jax.Array,
  v_BSKh: jax.Array,
  mask_BTS: jax.Array,
) -> jax.Array:
  """Softmax attention of grouped queries.

  Args:
    q_BTHh: queries, already rotated; not scaled.
    k_BSKh: keys, already rotated; K divides H, query head i reads i // (H/K).
    v_BSKh: values.
    mask_BTS: True where query t may read key s. A query that may read nothing
      (padding) gets the mean of the values, which no loss ever reads.

  Returns:
    (B, T, H, h) in the dtype of the values; scores and softmax are in float32
    or better.
  """
  B, T, H, h = q_BTHh.shape
  K = k_BSKh.shape[2]
  acc = jnp.promote_types(q_BTHh.dtype, jnp.float32)
  q_BTKGh = q_BTHh.reshape(B, T, K, H // K, h)
  scores_BKGTS = jnp.einsum(
    'BTKGh,BSKh->BKGTS', q_BTKGh, k_BSKh, preferred_element_type=acc
  ) * (h**-0.5)
  floor = jnp.finfo(acc).min
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, floor)
  weight_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKh.dtype)
  out_BTKGh = jnp.einsum('BKGTS,BSKh->BTKGh', weight_BKGTS, v_BSKh)
  return out_BTKGh.reshape(B, T, H, h)
