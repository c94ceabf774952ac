"""Causal grouped-query attention in blocks of queries, for any backend.

The scores of one block of queries against all keys exist at a time, forward
and backward: each block is recomputed in the backward pass. Nothing here needs
a kernel, so it is also the form for machines without one.
"""

import jax
import jax.numpy as jnp

from kernels.attention import reference
from kernels.attention.layout import Layout


def mask(query_T, key_S, segment_BT, segment_BS, layout: Layout) -> jax.Array:
  """Who may read whom: bool (B, T, S).

  Args:
    query_T: original places of the queries.
    key_S: of the keys.
    segment_BT: segments of the queries, 0 = padding.
    segment_BS: of the keys.
    layout: of the rows.
  """
  allowed_TS = layout.reads(query_T[:, None], key_S[None, :])
  same_BTS = segment_BT[:, :, None] == segment_BS[:, None, :]
  return allowed_TS & same_BTS & (segment_BS != 0)[:, None, :]


def attention(
  q_BTHh: jax.Array,
  k_BSKh: jax.Array,
  v_BSKh: jax.Array,
  segment_BT: jax.Array,
  segment_BS: jax.Array,
  query_T: jax.Array,
  key_S: jax.Array,
  *,
  layout: Layout,
  block: int,
) -> jax.Array:
  """As `op.attention`, on one device's queries and all keys.

  Args:
    q_BTHh: queries of this device.
    k_BSKh: all keys of the rows.
    v_BSKh: all values.
    segment_BT: segments of the queries.
    segment_BS: segments of the keys.
    query_T: original places of the queries.
    key_S: original places of the keys.
    layout: of the rows.
    block: queries whose scores exist at a time.
  """
  T = q_BTHh.shape[1]

  def one(q, query, segment):
    allowed = mask(query, key_S, segment, segment_BS, layout)
    return reference.attention(q, k_BSKh, v_BSKh, allowed)

  if T <= block:
    return one(q_BTHh, query_T, segment_BT)
  blocks = -(-T // block)

  def cut(x, axis):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, blocks * block - T)
    x = jnp.pad(x, pads)
    shape = x.shape[:axis] + (blocks, block) + x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  # Checkpointed: the backward pass makes a block's scores again.
  body = jax.checkpoint(one)
  _, out = jax.lax.scan(
    lambda carry, x: (carry, body(*x)),
    None,
    (cut(q_BTHh, 1), cut(query_T, 0), cut(segment_BT, 1)),
  )
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(out.shape[0], blocks * block, *out.shape[3:])[:, :T]
