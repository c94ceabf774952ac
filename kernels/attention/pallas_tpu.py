"""Splash attention: the block-sparse flash kernel that ships with JAX for TPU.

Blocks of the (query, key) plane that the layout leaves empty are never visited.
Runs on the shards of one device: call it inside `shard_map` (op.py does).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as mask_lib,
)

from kernels.attention.layout import Layout

# Blocks are multiples of the TPU's 128 lanes.
LANES = 128
# Swept for other models at these lengths (MaxText, tokamax): 512 or more.
_BLOCK = 512


class _LayoutMask(mask_lib.Mask):
  """A layout as the mask of one head, cut out lazily."""

  def __init__(self, layout: Layout, length: int):
    self.layout = layout
    self.place_T = layout.places(length)

  @property
  def shape(self):
    return (len(self.place_T),) * 2

  def __getitem__(self, index):
    rows, columns = index
    return np.asarray(
      self.layout.reads(
        self.place_T[rows][:, None], self.place_T[columns][None, :]
      )
    )

  def __eq__(self, other):
    return (
      isinstance(other, _LayoutMask)
      and self.layout == other.layout
      and self.shape == other.shape
    )

  def __hash__(self):
    return hash((self.layout, self.shape))


def _block(length: int, layout: Layout, shards: int) -> int:
  """The largest block on whose edges the edges of the layout lie."""
  edges = [length // shards]
  if layout.zigzag > 1:
    edges += [length // (2 * layout.zigzag)]
  if layout.prompt_length:
    edges += [layout.prompt_length, layout.response_length]
  common = math.gcd(*edges)
  for size in (_BLOCK, 384, 256, LANES):
    if common % size == 0:
      return size
  return LANES


@functools.lru_cache(maxsize=64)
def make_kernel(
  length: int, heads: int, layout: Layout, shards: int, interpret: bool
):
  """The kernel of rows of `length`, made once (its mask tables are arrays).

  Args:
    length: T of the whole row, a multiple of 128 x shards.
    heads: query heads on one device.
    layout: of the rows.
    shards: devices that split the queries of a row.
    interpret: run in interpret mode.
  """
  mask = (
    mask_lib.CausalMask((length, length), shard_count=shards)
    if layout.is_causal and shards == 1
    else _LayoutMask(layout, length)
  )
  size = _block(length, layout, shards)
  with jax.ensure_compile_time_eval():
    return splash.make_splash_mha(
      mask_lib.MultiHeadMask([mask] * heads),
      block_sizes=splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
      ),
      head_shards=1,
      q_seq_shards=shards,
      interpret=interpret,
    )


def attention(
  q_BTHh: jax.Array,
  k_BSKh: jax.Array,
  v_BSKh: jax.Array,
  segment_BT: jax.Array,
  segment_BS: jax.Array,
  kernel,
) -> jax.Array:
  """As `op.attention`, on one device's queries and all keys.

  Args:
    q_BTHh: queries of this device.
    k_BSKh: all keys of the rows.
    v_BSKh: all values.
    segment_BT: segments of the queries.
    segment_BS: segments of the keys. Padding reads padding, which no loss
      looks at.
    kernel: `make_kernel`, this device's part of its mask.
  """
  scale = q_BTHh.shape[-1] ** -0.5
  heads_first = lambda x: jnp.swapaxes(x, 1, 2)  # noqa: E731
  out = jax.vmap(kernel)(
    heads_first(q_BTHh * jnp.asarray(scale, q_BTHh.dtype)),
    heads_first(k_BSKh),
    heads_first(v_BSKh),
    splash.SegmentIds(q=segment_BT, kv=segment_BS),
  )
  return heads_first(out)
