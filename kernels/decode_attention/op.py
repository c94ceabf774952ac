"""Dispatch of decode attention; the only file others import.

| kind | where | what |
| --- | --- | --- |
| `pallas_tpu` | TPU | flash kernel over a list of the blocks written |
| `pallas_gpu` | GPU | flash-decoding kernel (Triton) |
| `xla` | anywhere | batched matrix products over the whole capacity |

All read a prompt's cache once for a tile of its slots, not once a slot. With a
mesh every device does its slots, the prompts of these, and its heads; nothing
is sent. Forward only: no policy is trained through its sampler.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels import platforms
from kernels import split as split_lib
from kernels.decode_attention import pallas_gpu, pallas_tpu, xla

KINDS = ('auto', 'pallas_tpu', 'pallas_gpu', 'xla')

# Caches of a device from which on a kernel pays. Two calls, the queries'
# padding and the merge cost some 10 us a layer, in which 8 to 34 MB are read
# (v5e to H100), and half-empty caches are the rule. An estimate from the
# compiled programs, not a measurement.
_LEAST_BYTES = 2**25


@dataclasses.dataclass(frozen=True)
class Split(split_lib.Split):
  """Mesh axes over which the arrays are split.

  `batch` splits slots AND prompts: a device has equally many of both, its slots
  read its own prompts, and `prompt_B` counts these from 0 on each device.
  `length` must be empty.

  Attributes:
    heads: axes of the key/value heads and of the query heads with them.
  """

  heads: tuple[str, ...] = ()


def choose(
  kind: str,
  *,
  platform: str,
  head_width: int,
  dtype,
  cache_bytes: int,
) -> str:
  """The kind that `auto` stands for; any other kind is returned as it is.

  Args:
    kind: one of KINDS.
    platform: of `kernels.platforms.auto_platform`.
    head_width: h.
    dtype: of queries and caches.
    cache_bytes: of a device's prompt and own caches of one layer, written or
      not.
  """
  if kind not in KINDS:
    raise ValueError(
      f'decode_attention kind {kind!r}; use one of {", ".join(KINDS)}'
    )
  if kind != 'auto':
    return kind
  if dtype != jnp.bfloat16 or cache_bytes < _LEAST_BYTES:
    return 'xla'
  # Narrower heads leave lanes of a TPU empty, and memory with them.
  if platform == 'tpu' and head_width % pallas_tpu.LANES == 0:
    return 'pallas_tpu'
  if platform == 'gpu' and head_width in pallas_gpu.HEAD_WIDTHS:
    return 'pallas_gpu'
  return 'xla'


def decode_attention(
  q_BHh: jax.Array,
  prompt_k_PKhS: jax.Array,
  prompt_v_PKSh: jax.Array,
  own_k_BKhR: jax.Array,
  own_v_BKRh: jax.Array,
  prompt_valid_PS: jax.Array,
  own_valid_BR: jax.Array,
  *,
  prompt_B: jax.Array | None = None,
  kind: str = 'auto',
  split: Split | None = None,
  interpret=False,
) -> jax.Array:
  """Attention of one query token a slot: (B, H, h).

  One softmax over the valid positions of the slot's prompt and of its own
  cache. Keys are cached width-major (..., h, R) and values position-major
  (..., R, h): then both products of a decode step run along contiguous memory.

  Args:
    q_BHh: rotated queries, not scaled.
    prompt_k_PKhS: rotated prompt keys, once a PROBLEM; K divides H, query head
      i reads i // (H / K).
    prompt_v_PKSh: prompt values.
    own_k_BKhR: rotated keys of what each slot wrote.
    own_v_BKRh: its values.
    prompt_valid_PS: True on real prompt positions, at least one a prompt that
      has a slot.
    own_valid_BR: True on positions a slot may read; holes are allowed, and so
      is a slot without any. What lies at the others must be finite.
    prompt_B: int32, the prompt of each slot, in [0, P) and in any order;
      prompts may have any number of slots, none included. None = equal groups,
      B / P neighbours a prompt.
    kind: see the module.
    split: mesh axes; None = one device.
    interpret: run Pallas kernels in interpret mode (tests on a CPU): True, or
      `pltpu.InterpretParams`.

  Raises:
    ValueError: an unknown kind, one that cannot do the shapes, or shapes that
      do not fit together.
    NotImplementedError: when differentiated.
  """
  arrays = (
    q_BHh,
    prompt_k_PKhS,
    prompt_v_PKSh,
    own_k_BKhR,
    own_v_BKRh,
    prompt_valid_PS,
    own_valid_BR,
  )
  _check_shapes(*arrays, prompt_B)
  device, shards = jax.devices()[0], 1
  if split is not None:
    device = split.mesh.devices.flat[0]
    shards = _check_split(split, q_BHh, prompt_k_PKhS)
  kind = choose(
    kind,
    platform=platforms.auto_platform(device),
    head_width=q_BHh.shape[2],
    dtype=jnp.result_type(*arrays[:5]),
    cache_bytes=sum(x.nbytes for x in arrays[1:5]) // shards,
  )
  if not q_BHh.size:
    return q_BHh
  arrays = (*_forward_only(arrays[:5]), *arrays[5:])
  if not own_valid_BR.shape[1]:
    arrays = _with_a_position(*arrays)
  local = functools.partial(_local, kind=kind, interpret=interpret)
  if split is not None:
    local = _split(local, split)
  return local(*arrays, prompt_B)


def _local(*arrays, kind: str, interpret):
  """On one device; the last array is prompt_B or None."""
  q, prompt_k, _, own_k, *_, prompt_B = arrays
  if kind != 'xla':
    _check_dtypes(kind, q, prompt_k, own_k)
  if kind == 'pallas_tpu':
    pallas_tpu.check(q, prompt_k, own_k, prompt_B)
    return pallas_tpu.decode_attention(*arrays, interpret=interpret)
  if kind == 'pallas_gpu':
    pallas_gpu.check(q, prompt_k)
    return pallas_gpu.decode_attention(*arrays, interpret=interpret)
  return xla.decode_attention(*arrays)


def _split(local, split: Split):
  """`local` on each device's part of the arrays."""
  spec = PartitionSpec
  batch, heads = split.batch or None, split.heads or None
  cache = spec(batch, heads)
  return jax.shard_map(
    local,
    mesh=split.mesh,
    in_specs=(cache,) * 5 + (spec(batch),) * 3,
    out_specs=cache,
    check_vma=False,  # Pallas calls do not say what they vary over.
  )


@jax.custom_jvp
def _forward_only(arrays):
  """The arrays, which nobody can differentiate any further."""
  return arrays


@_forward_only.defjvp
def _no_gradient(primals, tangents):
  raise NotImplementedError(
    'decode_attention has no gradient: it reads one new token a slot while '
    'sampling; differentiate kernels.attention over whole sequences'
  )


def _with_a_position(
  q, prompt_k, prompt_v, own_k, own_v, prompt_valid, own_valid
):
  """Own caches of no position as caches of one that nobody may read."""
  own_k = jnp.pad(own_k, ((0, 0),) * 3 + ((0, 1),))
  own_v = jnp.pad(own_v, ((0, 0),) * 2 + ((0, 1), (0, 0)))
  own_valid = jnp.pad(own_valid, ((0, 0), (0, 1)))
  return q, prompt_k, prompt_v, own_k, own_v, prompt_valid, own_valid


def _check_shapes(
  q, prompt_k, prompt_v, own_k, own_v, prompt_valid, own_valid, prompt_B
) -> None:
  """Raises ValueError where shapes do not fit together."""
  B, H, h = q.shape
  P, K, _, S = prompt_k.shape
  R = own_k.shape[-1]
  for name, x, shape in (
    ('prompt_k_PKhS', prompt_k, (P, K, h, S)),
    ('prompt_v_PKSh', prompt_v, (P, K, S, h)),
    ('own_k_BKhR', own_k, (B, K, h, R)),
    ('own_v_BKRh', own_v, (B, K, R, h)),
    ('prompt_valid_PS', prompt_valid, (P, S)),
    ('own_valid_BR', own_valid, (B, R)),
    ('prompt_B', prompt_B, (B,)),
  ):
    if x is not None and x.shape != shape:
      raise ValueError(
        f'decode_attention: {name} has shape {x.shape}; queries {q.shape} and '
        f'prompt keys {prompt_k.shape} go with {shape}'
      )
  if H % K:
    raise ValueError(
      f'decode_attention: {K} key/value heads do not divide {H} query heads'
    )
  if B and not P * S:
    raise ValueError(
      f'decode_attention: {B} slots need a prompt of at least one position, '
      f'got {P} prompts of {S}'
    )
  if prompt_B is None and P and B % P:
    raise ValueError(
      f'decode_attention: {B} slots are no equal groups of {P} prompts; give '
      'prompt_B'
    )


def _check_dtypes(kind: str, *arrays) -> None:
  """Raises ValueError where a kernel cannot do these dtypes."""
  dtypes = {x.dtype for x in arrays}
  if dtypes not in ({jnp.dtype('bfloat16')}, {jnp.dtype('float32')}):
    raise ValueError(
      f'decode_attention kind {kind!r} takes queries and caches of one dtype, '
      f'bfloat16 or float32, got {sorted(map(str, dtypes))}; cast them or use '
      "kind='xla'"
    )


def _check_split(split: Split, q, prompt_k) -> int:
  """Devices that hold different parts; ValueError where they cannot."""
  B, (P, K) = q.shape[0], prompt_k.shape[:2]
  if split.length:
    raise ValueError(
      f'decode_attention: caches are not split by position, got {split.length}'
    )
  batch, heads = split.size(split.batch), split.size(split.heads)
  if B % batch or P % batch:
    raise ValueError(
      f'decode_attention: {B} slots of {P} prompts cannot be split over '
      f'{batch} devices; use multiples of {batch} or a smaller batch axis'
    )
  if K % heads:
    raise ValueError(
      f'decode_attention: {K} key/value heads cannot be split over {heads} '
      'devices; use a smaller tensor axis'
    )
  return batch * heads
