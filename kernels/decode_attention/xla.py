"""Decode attention without a kernel, for any backend.

Equal groups read each prompt once, in one batched product a prompt. Ragged
groups do the same on tiles of slots (tiles.py), for which the prompts of the
tiles, about as many as there are prompts in use, are copied first.

All scores exist at a time: B x H x (S + R) floats, for 5 to 7 queries a
key/value head and heads of width 128 a twentieth of the own cache in bfloat16.
The whole capacity R is read, however little of it is written.
"""

import jax
import jax.numpy as jnp

from kernels.decode_attention import tiles as tiles_lib


def decode_attention(
  q_BHh: jax.Array,
  prompt_k_PKhS: jax.Array,
  prompt_v_PKSh: jax.Array,
  own_k_BKhR: jax.Array,
  own_v_BKRh: jax.Array,
  prompt_valid_PS: jax.Array,
  own_valid_BR: jax.Array,
  prompt_B: jax.Array | None,
) -> jax.Array:
  """As `op.decode_attention`, on one device."""
  B, H, h = q_BHh.shape
  P, K = prompt_k_PKhS.shape[:2]
  # Equal groups are one tile each, whatever their size.
  limit = B if prompt_B is None else tiles_lib.MAX_SIZE
  tiles = tiles_lib.make(prompt_B, B, P, limit)
  acc = jnp.promote_types(q_BHh.dtype, jnp.float32)
  floor = jnp.finfo(acc).min
  q_BKGh = (q_BHh * h**-0.5).reshape(B, K, H // K, h)
  prompt_scores = jnp.einsum(
    'TNKGh,TKhS->TNKGS',
    tiles.gather(q_BKGh),
    tiles.prompts(prompt_k_PKhS),
    preferred_element_type=acc,
  )
  prompt_scores = jnp.where(
    tiles.prompts(prompt_valid_PS)[:, None, None, None], prompt_scores, floor
  )
  own_scores = jnp.einsum(
    'BKGh,BKhR->BKGR', q_BKGh, own_k_BKhR, preferred_element_type=acc
  )
  own_scores = jnp.where(own_valid_BR[:, None, None], own_scores, floor)
  top = jnp.maximum(
    tiles.scatter(jnp.max(prompt_scores, axis=-1, keepdims=True)),
    jnp.max(own_scores, axis=-1, keepdims=True),
  )
  prompt_weight = jnp.exp(prompt_scores - tiles.gather(top))
  own_weight = jnp.exp(own_scores - top)
  total = tiles.scatter(jnp.sum(prompt_weight, axis=-1))
  total += jnp.sum(own_weight, axis=-1)
  dtype = own_v_BKRh.dtype
  prompt_out = jnp.einsum(
    'TNKGS,TKSh->TNKGh',
    prompt_weight.astype(dtype),
    tiles.prompts(prompt_v_PKSh),
  )
  out = tiles.scatter(prompt_out) + jnp.einsum(
    'BKGR,BKRh->BKGh', own_weight.astype(dtype), own_v_BKRh
  )
  return (out / total[..., None].astype(dtype)).reshape(B, H, h)
