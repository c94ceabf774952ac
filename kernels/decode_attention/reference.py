"""Decode attention, the meaning: one softmax over prompt and own positions.

Keys are cached width-major (..., h, R) and values position-major (..., R, h):
then both products of a decode step run along contiguous memory (on a CPU 4x
faster than position-major keys).
"""

import jax
import jax.numpy as jnp


def decode_attention(
  q_PNHh: jax.Array,
  prompt_k_PKhS: jax.Array,
  prompt_v_PKSh: jax.Array,
  own_k_PNKhR: jax.Array,
  own_v_PNKRh: jax.Array,
  prompt_valid_PS: jax.Array,
  own_valid_PNR: jax.Array,
) -> jax.Array:
  """Attention of one query token a candidate.

  The N candidates of a problem read the SAME prompt cache, which therefore
  exists (and is read) once a problem, not N times. The two parts share one
  softmax through a common maximum and denominator.

  Args:
    q_PNHh: rotated queries of P problems x N candidates.
    prompt_k_PKhS: rotated prompt keys, right-padded.
    prompt_v_PKSh: prompt values.
    own_k_PNKhR: rotated keys of what each candidate wrote.
    own_v_PNKRh: its values.
    prompt_valid_PS: True on real prompt positions, at least one a row.
    own_valid_PNR: True on slots a candidate has written (its own token now
      included).

  Returns:
    (P, N, H, h).
  """
  P, N, H, h = q_PNHh.shape
  K = prompt_k_PKhS.shape[1]
  acc = jnp.promote_types(q_PNHh.dtype, jnp.float32)
  q = (q_PNHh * h**-0.5).reshape(P, N, K, H // K, h)
  floor = jnp.finfo(acc).min
  prompt_scores = jnp.einsum(
    'PNKGh,PKhS->PNKGS', q, prompt_k_PKhS, preferred_element_type=acc
  )
  own_scores = jnp.einsum(
    'PNKGh,PNKhR->PNKGR', q, own_k_PNKhR, preferred_element_type=acc
  )
  prompt_scores = jnp.where(
    prompt_valid_PS[:, None, None, None], prompt_scores, floor
  )
  own_scores = jnp.where(own_valid_PNR[:, :, None, None], own_scores, floor)
  top = jnp.maximum(
    jnp.max(prompt_scores, axis=-1, keepdims=True),
    jnp.max(own_scores, axis=-1, keepdims=True),
  )
  prompt_weight = jnp.exp(prompt_scores - top)
  own_weight = jnp.exp(own_scores - top)
  total = jnp.sum(prompt_weight, axis=-1) + jnp.sum(own_weight, axis=-1)
  dtype = own_v_PNKRh.dtype
  out = jnp.einsum(
    'PNKGS,PKSh->PNKGh', prompt_weight.astype(dtype), prompt_v_PKSh
  ) + jnp.einsum('PNKGR,PNKRh->PNKGh', own_weight.astype(dtype), own_v_PNKRh)
  return (out / total[..., None].astype(dtype)).reshape(P, N, H, h)
