"""Dispatch of whole-sequence attention; the only file others import.

| kind | where | what |
| --- | --- | --- |
| `splash` | TPU | block-sparse flash kernel; every layout |
| `cudnn` | GPU | flash kernel; plain rows of one segment |
| `triton` | GPU | JAX's flash kernel; original order, rows of whole blocks |
| `xla` | anywhere | blocks of queries, recomputed backward; every layout |

`auto` takes the first that fits the platform, the layout and the shapes. With
a mesh each device computes its rows, its heads and, where rows are split, its
queries against the gathered keys and values (context parallelism).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from kernels import split as split_lib
from kernels.attention import pallas_gpu, pallas_tpu, xla
from kernels.attention.layout import PLAIN as PLAIN
from kernels.attention.layout import Layout as Layout

KINDS = ('auto', 'splash', 'cudnn', 'triton', 'xla')

# Queries whose scores exist at a time in the `xla` form; shorter rows are done
# at once, as a CPU likes it.
_XLA_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Split(split_lib.Split):
  """Mesh axes over which the arrays are split.

  Attributes:
    heads: axes of the query heads.
  """

  heads: tuple[str, ...] = ()


def choose(
  kind: str,
  *,
  platform: str,
  length: int,
  head_width: int,
  dtype,
  layout: Layout,
  shards: int = 1,
) -> str:
  """The kind that `auto` stands for; any other kind is returned as it is.

  Args:
    kind: one of KINDS.
    platform: 'tpu', 'gpu' ('cuda', 'rocm') or 'cpu'.
    length: T of the whole row.
    head_width: h.
    dtype: of q, k, v.
    layout: of the rows.
    shards: devices that split a row.
  """
  if kind not in KINDS:
    raise ValueError(f'attention kind {kind!r}; use one of {", ".join(KINDS)}')
  if kind != 'auto':
    return kind
  if platform == 'tpu':
    # Shorter rows than a block a device are not worth a kernel.
    fits = length % (pallas_tpu.LANES * shards) == 0
    return 'splash' if fits else 'xla'
  gpu = platform in ('gpu', 'cuda', 'rocm')
  half = jnp.dtype(dtype).itemsize == 2
  if gpu and half and layout.is_causal and shards == 1:
    if not layout.packed and head_width <= 128:
      return 'cudnn'
    if length % pallas_gpu.BLOCK == 0:
      return 'triton'
  return 'xla'


def attention(
  q_BTHh: jax.Array,
  k_BTKh: jax.Array,
  v_BTKh: jax.Array,
  segment_BT: jax.Array,
  *,
  layout: Layout = PLAIN,
  kind: str = 'auto',
  split: Split | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Causal self-attention within segments: (B, T, H, h).

  What a padding place gets is no loss's business and differs between kinds.

  Args:
    q_BTHh: rotated queries.
    k_BTKh: rotated keys, K divides H.
    v_BTKh: values.
    segment_BT: integer segment ids, 0 = padding.
    layout: what the places of a row are.
    kind: see the module.
    split: mesh axes; None = one device.
    interpret: run Pallas kernels in interpret mode (tests on a CPU).

  Raises:
    ValueError: an unknown kind, or one that cannot do the layout.
  """
  T, H, h = q_BTHh.shape[1:]
  K = k_BTKh.shape[2]
  platform = jax.default_backend()
  shards = head_shards = 1
  if split is not None:
    platform = split.mesh.devices.flat[0].platform
    shards = split.size(split.length)
    head_shards = split.size(split.heads)
  kind = choose(
    kind,
    platform=platform,
    length=T,
    head_width=h,
    dtype=q_BTHh.dtype,
    layout=layout,
    shards=shards,
  )
  if kind in ('cudnn', 'triton') and not (layout.is_causal and shards == 1):
    raise ValueError(f'attention kind {kind!r} cannot do {layout}; use xla')
  if kind == 'cudnn' and layout.packed:
    raise ValueError("attention kind 'cudnn' has no segments; use triton")
  order_T = jnp.asarray(layout.places(T))
  kernel = kernel_spec = None
  if kind == 'splash':
    if T % (pallas_tpu.LANES * shards):
      raise ValueError(
        f'splash attention needs rows of a multiple of '
        f'{pallas_tpu.LANES * shards} places, got {T}'
      )
    kernel = pallas_tpu.make_kernel(
      T, H // head_shards, layout, shards, interpret
    )

  def local(q, k, v, segment, key_segment, place, key_place, kernel):
    if kind == 'splash':
      return pallas_tpu.attention(q, k, v, segment, key_segment, kernel)
    if kind == 'cudnn':
      return pallas_gpu.cudnn(q, k, v, segment)
    if kind == 'triton':
      return pallas_gpu.pallas(q, k, v, segment, interpret=interpret)
    return xla.attention(
      q,
      k,
      v,
      segment,
      key_segment,
      place,
      key_place,
      layout=layout,
      block=_XLA_BLOCK,
    )

  if split is not None:
    k_BTKh, v_BTKh = (
      _spread_heads(x, H, K, head_shards) for x in (k_BTKh, v_BTKh)
    )
    batch, length, heads = (
      axes or None for axes in (split.batch, split.length, split.heads)
    )
    spec = PartitionSpec
    if kernel is not None:
      kernel_spec = kernel.manual_sharding_spec(
        NamedSharding(split.mesh, spec(None, length))
      )
    queries, keys = spec(batch, length, heads), spec(batch, None, heads)
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(
        queries,
        keys,
        keys,
        spec(batch, length),
        spec(batch, None),
        spec(length),
        spec(None),
        kernel_spec,
      ),
      out_specs=queries,
      check_vma=False,  # Pallas calls do not say what they vary over.
    )
  return local(
    q_BTHh, k_BTKh, v_BTKh, segment_BT, segment_BT, order_T, order_T, kernel
  )


def attention_to_past(
  q_BTHh: jax.Array,
  k_BSKh: jax.Array,
  v_BSKh: jax.Array,
  segment_BS: jax.Array,
  start: jax.Array,
  *,
  split: Split | None = None,
) -> jax.Array:
  """A piece of a row against the keys of the row so far: (B, T, H, h).

  What `attention` gives at places [start, start + T) of the whole rows, in the
  `xla` form.

  Args:
    q_BTHh: rotated queries of the piece.
    k_BSKh: rotated keys at all places; those behind the piece are not read.
    v_BSKh: values.
    segment_BS: of the rows, 0 = padding.
    start: int scalar, place of the first query.
    split: mesh axes, `length` among them empty; None = one device.
  """
  T, H = q_BTHh.shape[1:3]
  K = k_BSKh.shape[2]
  place_S = jnp.arange(k_BSKh.shape[1])
  segment_BT = jax.lax.dynamic_slice_in_dim(segment_BS, start, T, axis=1)

  def local(q, k, v, segment, key_segment, place):
    return xla.attention(
      q,
      k,
      v,
      segment,
      key_segment,
      place,
      place_S,
      layout=PLAIN,
      block=_XLA_BLOCK,
    )

  if split is not None:
    shards = split.size(split.heads)
    k_BSKh, v_BSKh = (_spread_heads(x, H, K, shards) for x in (k_BSKh, v_BSKh))
    rows = PartitionSpec(split.batch or None)
    heads = PartitionSpec(split.batch or None, None, split.heads or None)
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(heads, heads, heads, rows, rows, PartitionSpec()),
      out_specs=heads,
    )
  place_T = start + jnp.arange(T)
  return local(q_BTHh, k_BSKh, v_BSKh, segment_BT, segment_BS, place_T)


def _spread_heads(x_BTKh, num_heads: int, num_kv_heads: int, shards: int):
  """Repeats key/value heads until `shards` devices can share them out."""
  times = shards // math.gcd(num_kv_heads, shards)
  if num_heads % (num_kv_heads * times):
    raise ValueError(
      f'{num_heads} query heads with {num_kv_heads} key/value heads cannot be '
      f'split over {shards} devices; use a smaller tensor axis'
    )
  return jnp.repeat(x_BTKh, times, axis=2) if times > 1 else x_BTKh
