"""Attention on GPUs: cuDNN's flash kernel, and the Triton one that JAX ships.

Both run on the shards of one device: call them inside `shard_map` (op.py does).
cuDNN is the faster; it knows lengths, not segments, so packed rows and other
layouts than plain causal ones take the Triton kernel, which also compiles on a
machine that has neither a GPU nor cuDNN.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as triton

BLOCK = 64  # queries and keys of the Triton kernel at a time, forward


def cudnn(
  q_BTHh: jax.Array,
  k_BTKh: jax.Array,
  v_BTKh: jax.Array,
  segment_BT: jax.Array,
) -> jax.Array:
  """Causal attention of rows that are one segment, padded on the right."""
  length_B = jnp.sum(segment_BT != 0, axis=1, dtype=jnp.int32)
  return jax.nn.dot_product_attention(
    q_BTHh,
    k_BTKh,
    v_BTKh,
    is_causal=True,
    # A row of padding alone would divide by zero.
    query_seq_lengths=jnp.maximum(length_B, 1),
    key_value_seq_lengths=jnp.maximum(length_B, 1),
    implementation='cudnn',
  )


def pallas(
  q_BTHh: jax.Array,
  k_BTKh: jax.Array,
  v_BTKh: jax.Array,
  segment_BT: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Causal attention within segments, by JAX's Triton kernel.

  Raises:
    ValueError: T is not a multiple of BLOCK.
  """
  T = q_BTHh.shape[1]
  if T % BLOCK:
    raise ValueError(
      f"attention kind 'triton': rows of {T} positions must be a multiple of "
      f"{BLOCK}; use 'xla'"
    )
  groups = q_BTHh.shape[2] // k_BTKh.shape[2]
  return triton.mha(
    q_BTHh,
    jnp.repeat(k_BTKh, groups, axis=2),
    jnp.repeat(v_BTKh, groups, axis=2),
    segment_BT,
    sm_scale=q_BTHh.shape[-1] ** -0.5,
    causal=True,
    block_sizes=triton.BlockSizes(
      block_q=BLOCK,
      block_k=BLOCK,
      block_q_dkv=32,
      block_kv_dkv=32,
      block_q_dq=32,
      block_kv_dq=32,
    ),
    interpret=interpret,
  )
