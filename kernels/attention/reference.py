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
  S, K = k_BSKh.shape[1:3]
  G = H // K
  acc = jnp.promote_types(q_BTHh.dtype, jnp.float32)
  # Batch axes in front and the G queries of a key/value head stacked: both
  # products are then plain batched matrix products, without hidden transposes.
  q_BKGTh = jnp.transpose(q_BTHh.reshape(B, T, K, G, h), (0, 2, 3, 1, 4))
  k_BKSh = jnp.swapaxes(k_BSKh, 1, 2)
  v_BKSh = jnp.swapaxes(v_BSKh, 1, 2)
  q_BKMh = (q_BKGTh * h**-0.5).reshape(B, K, G * T, h)
  scores_BKMS = jnp.einsum(
    'BKMh,BKSh->BKMS', q_BKMh, k_BKSh, preferred_element_type=acc
  )
  scores_BKGTS = jnp.where(
    mask_BTS[:, None, None],
    scores_BKMS.reshape(B, K, G, T, S),
    jnp.finfo(acc).min,
  )
  weight_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKh.dtype)
  weight_BKMS = weight_BKGTS.reshape(B, K, G * T, S)
  out_BKMh = jnp.einsum('BKMS,BKSh->BKMh', weight_BKMS, v_BKSh)
  out_BKGTh = out_BKMh.reshape(B, K, G, T, h)
  return jnp.transpose(out_BKGTh, (0, 3, 1, 2, 4)).reshape(B, T, H, h)
