"""Decode attention at the shapes of a best-of-k rollout, per device.

Prompts of 2,048 positions, 4,096 of each slot's own written. The naive form
gives every slot a copy of its prompt's cache; 32B is split over four devices
by heads.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kernels.decode_attention import Split, decode_attention, reference
from metastone_jax.model import preset
from tests.benchmarks.kernels.case import Case

PROMPT, WRITTEN = 2048, 4096
_PRESETS = {'1p5b': ('1.5b', 1), '7b': ('7b', 1), '32b': ('32b', 4)}
# (slots of each problem, own positions, whether the groups are called equal).
_SHAPES = (
  ((32,), 8192, True),
  ((8, 8, 8, 8), 8192, True),
  ((14, 9, 8, 1), 8192, False),
  ((8, 8, 8), 32768, True),
)
_SLICE_SHAPES = (((8, 8, 8, 8), 8192, True), ((10, 6, 9, 7), 8192, False))
_ONE, _SLICE = {'fsdp': 1, 'tensor': 1}, {'fsdp': 2, 'tensor': 2}
_FORMS = ('xla', 'naive', 'pallas_tpu', 'pallas_gpu')


def cases(model: str) -> list[Case]:
  """Every shape in every form, forward (there is no gradient).

  Args:
    model: '1p5b', '7b' or '32b'.
  """
  name, tensor = _PRESETS[model]
  config = preset(name)
  H, K, h = config.num_heads, config.num_kv_heads, config.head_width
  found = [
    _case(model, H // tensor, K // tensor, h, *shape, form, _ONE)
    for shape in _SHAPES
    for form in _FORMS
  ]
  return found + [
    _case(model, H, K, h, *shape, form, _SLICE)
    for shape in _SLICE_SHAPES
    for form in _FORMS
    if form != 'naive'
  ]


def _case(model, H, K, h, counts, R, equal, form, mesh) -> Case:
  P, B, S = len(counts), sum(counts), PROMPT
  # Numbers of a device's own prompts.
  local = np.arange(P, dtype=np.int32) % (P // mesh['fsdp'])
  prompt_B = np.repeat(local, counts)
  bf16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  arguments = (
    bf16((B, H, h)),
    bf16((P, K, h, S)),
    bf16((P, K, S, h)),
    bf16((B, K, h, R)),
    bf16((B, K, R, h)),
    jax.ShapeDtypeStruct((P, S), jnp.bool_),
    jax.ShapeDtypeStruct((B, R), jnp.bool_),
  )
  if not equal:
    arguments += (jax.ShapeDtypeStruct((B,), jnp.int32),)

  def function(*arrays, mesh):
    given = arrays[7] if len(arrays) > 7 else None
    if form == 'naive':
      return reference.decode_attention(
        *arrays[:7], jnp.asarray(prompt_B) if given is None else given
      )
    split = Split(mesh, ('fsdp',), heads=('tensor',))
    return decode_attention(*arrays[:7], prompt_B=given, kind=form, split=split)

  def make(seed: int) -> tuple:
    keys = jax.random.split(jax.random.key(seed), 5)
    arrays = [
      jax.random.normal(key, x.shape, x.dtype)
      for key, x in zip(keys, arguments[:5], strict=True)
    ]
    masks = (
      jnp.ones((P, S), bool),
      jnp.broadcast_to(jnp.arange(R) < WRITTEN, (B, R)),
    )
    return *arrays, *masks, *(() if equal else (jnp.asarray(prompt_B),))

  groups = 'equal' if equal else 'ragged'
  devices = math.prod(mesh.values())
  cache = PartitionSpec('fsdp', 'tensor')
  return Case(
    operator='decode_attention',
    shape=f'{model}, {B} slots of {P} problem{"s" * (P > 1)} ({groups}), '
    f'{WRITTEN:,} of {R:,} written'
    + (', 1 of 2 x 2 devices' if devices > 1 else ''),
    form=form,
    direction='forward',
    function=function,
    arguments=arguments,
    flops=4.0 * B * H * h * (S + WRITTEN) / devices,
    # Every prompt and what is written of the own caches, once; q and out.
    bytes=(4.0 * K * h * (P * S + B * WRITTEN) + 4.0 * B * H * h) / devices,
    make=make,
    mesh=mesh,
    specs=(cache,) * 5 + (PartitionSpec('fsdp'),) * (len(arguments) - 5),
  )
