"""Decode attention, the meaning: one softmax over prompt and own positions."""

import jax
import jax.numpy as jnp


def decode_attention(
  q_PNHh: jax.Array,
  prompt_k_PSKh: jax.Array,
  prompt_v_PSKh: jax.Array,
  own_k_PNRKh: jax.Array,
  own_v_PNRKh: jax.Array,
  prompt_valid_PS: jax.Array,
  own_valid_PNR: jax.Array,
) -> jax.Array:
  """Attention of one query token a candidate.

  The N candidates of a problem read the SAME prompt cache, which therefore
  exists (and is read) once a problem, not N times.

  Args:
    q_PNHh: rotated queries of P problems x N candidates.
    prompt_k_PSKh: rotated prompt keys, right-padded.
    prompt_v_PSKh: prompt values.
    own_k_PNRKh: rotated keys of what each candidate wrote.
    own_v_PNRKh: its values.
    prompt_valid_PS: True on real prompt positions.
    own_valid_PNR: True on slots a candidate has written (its own token now
      included).

  Returns:
    (P, N, H, h).
  """
  P, N, H, h = q_PNHh.shape
  S, K = prompt_k_PSKh.shape[1:3]
  acc = jnp.promote_types(q_PNHh.dtype, jnp.float32)
  q = q_PNHh.reshape(P, N, K, H // K, h)
  floor = jnp.finfo(acc).min
  prompt_scores = jnp.einsum(
    'PNKGh,PSKh->PNKGS', q, prompt_k_PSKh, preferred_element_type=acc
  )
  own_scores = jnp.einsum(
    'PNKGh,PNRKh->PNKGR', q, own_k_PNRKh, preferred_element_type=acc
  )
  scores = jnp.concatenate(
    [
      jnp.where(prompt_valid_PS[:, None, None, None], prompt_scores, floor),
      jnp.where(own_valid_PNR[:, :, None, None], own_scores, floor),
    ],
    axis=-1,
  ) * (h**-0.5)
  weight = jax.nn.softmax(scores, axis=-1).astype(own_v_PNRKh.dtype)
  out = jnp.einsum('PNKGS,PSKh->PNKGh', weight[..., :S], prompt_v_PSKh)
  out += jnp.einsum('PNKGR,PNRKh->PNKGh', weight[..., S:], own_v_PNRKh)
  return out.reshape(P, N, H, h)
