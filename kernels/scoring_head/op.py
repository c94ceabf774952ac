"""Dispatch of the score head; the only file others import.

`scoring_head` scores every place: the sampler's newest tokens. `step_scores`
works on step marks alone, however many there are, and is what training uses:

| kind | where | what |
| --- | --- | --- |
| `pallas_tpu` | TPU | one kernel forward, two backward; bfloat16 |
| `pallas_gpu` | GPU | Triton: one kernel forward, one and products backward |
| `xla` | anywhere | chunks of marks, recomputed backward; every dtype |

`auto` is `pallas_tpu` on a TPU where blocks are large enough
(`blocks_tpu.pay`) and a device has an even number of positions up to 131,072,
else `xla`. What the kernels save, at 4,096 marks of D 5120:
- TPU, forward: the gather, 0.08 GB that XLA does before it computes; and on
  tpu7x the hidden units' way through memory, 0.34 GB, which XLA spares on the
  other TPUs by fusing the second layer into the product. Both forms make the
  same products, and these set the pace.
- GPU, forward: the gather and one reading of the hidden units, 0.25 GB or
  0.08 ms beside 0.43 ms of products at the peak of an H100. A Triton product is
  as likely to lose that against cuBLAS; until it is timed, `auto` is `xla`.

With a mesh every device scores its own positions with the whole (small) head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels import platforms
from kernels.scoring_head import blocks_tpu, pallas_gpu, reference, steps
from kernels.split import Split as Split

KINDS = ('auto', 'pallas_tpu', 'pallas_gpu', 'xla')
_DTYPES = {
  'pallas_tpu': (jnp.bfloat16,),
  'pallas_gpu': (jnp.bfloat16, jnp.float32),
}


def scoring_head(
  feature_BTD: jax.Array,
  hidden_kernel_DE: jax.Array,
  hidden_bias_E: jax.Array,
  output_kernel_E1: jax.Array,
  output_bias_1: jax.Array,
) -> jax.Array:
  """Step logits z of SPEC section 1 at every place, without dropout.

  Args:
    feature_BTD: the residual stream entering the last block.
    hidden_kernel_DE: first layer; E = 2D as released.
    hidden_bias_E: its bias.
    output_kernel_E1: second layer.
    output_bias_1: its bias.

  Returns:
    (B, T) logits, float32 or better.
  """
  return reference.scoring_head(
    feature_BTD,
    hidden_kernel_DE,
    hidden_bias_E,
    output_kernel_E1,
    output_bias_1,
  )


def _places(shape, rate, seed, row_B, position_BT):
  """Dropout rate, seed, and row and position of each place, uint32 (B, T)."""
  B, T = shape
  if seed is None or not rate > 0:
    # Arguments without a dropout are never read.
    rate, seed = 0.0, 0
    row_B, position_BT = jnp.zeros((B,), jnp.uint32), None
  if row_B is None:
    raise ValueError(
      'step_scores: dropout needs row_B, the number of each row; or leave seed '
      'out'
    )
  if position_BT is None:
    position_BT = jnp.arange(T)
  row, position = (
    jnp.broadcast_to(jnp.asarray(x, jnp.uint32), (B, T))
    for x in (row_B[:, None] if row_B.ndim == 1 else row_B, position_BT)
  )
  return rate, jnp.asarray(seed, jnp.uint32), row, position


def _split(local, split: Split | None):
  """`local` on every device's share of its places.

  Args:
    local: of four arrays whose first two axes are B and T, then weights and a
      seed that every device has whole; returns (B, T) arrays.
    split: mesh axes; None = one device.
  """
  if split is None:
    return local
  mine = PartitionSpec(split.batch or None, split.length or None)
  return jax.shard_map(
    local,
    mesh=split.mesh,
    in_specs=(mine,) * 4 + (PartitionSpec(),) * 2,
    out_specs=mine,
    check_vma=False,  # Pallas calls do not say what they vary over.
  )


def choose(
  kind: str,
  *,
  platform: str,
  places: int,
  width: int,
  hidden: int,
  dtype,
) -> str:
  """The kind that `auto` stands for; any other kind is returned as it is.

  Args:
    kind: one of KINDS.
    platform: of `kernels.platforms.auto_platform`.
    places: positions on a device.
    width: D.
    hidden: E.
    dtype: of the features.

  Raises:
    ValueError: an unknown kind, or a kernel that cannot do the shapes.
  """
  if kind not in KINDS:
    raise ValueError(
      f'scoring_head kind {kind!r}; use one of {", ".join(KINDS)}'
    )
  name = kind
  if kind == 'auto':
    pays = platform == 'tpu' and blocks_tpu.pay(width, hidden)
    name = 'pallas_tpu' if pays else 'xla'
  reason = _refusal(name, places, width, hidden, dtype)
  if kind == 'auto':
    return 'xla' if reason else name
  if reason:
    raise ValueError(
      f'scoring_head kind {kind!r} needs {reason}, got {places} positions on a '
      f'device, D {width}, E {hidden}, {jnp.dtype(dtype).name}; use xla'
    )
  return kind


def _refusal(kind: str, places: int, width: int, hidden: int, dtype) -> str:
  """What a kernel lacks to do these shapes; '' if nothing."""
  dtypes = [jnp.dtype(x) for x in _DTYPES.get(kind, (dtype,))]
  if dtype not in dtypes:
    return f'{" or ".join(x.name for x in dtypes)} features'
  if kind == 'pallas_tpu':
    if places % 2 or places > blocks_tpu.MAX_PLACES:
      return f'an even number of positions up to {blocks_tpu.MAX_PLACES}'
    if not blocks_tpu.blocks(width, hidden, backward=True):
      return 'D and E that are multiples of 128 and a block that fits VMEM'
  if kind == 'pallas_gpu' and not pallas_gpu.fits(width, hidden, places):
    blocks = pallas_gpu.BLOCKS
    return (
      f'D a multiple of {blocks.depth}, E of {blocks.units}, and fewer than '
      '2**31 numbers'
    )
  return ''


def step_scores(
  feature_BTD: jax.Array,
  hidden_kernel_DE: jax.Array,
  hidden_bias_E: jax.Array,
  output_kernel_E1: jax.Array,
  output_bias_1: jax.Array,
  mark_BT: jax.Array,
  *,
  dropout_rate: float = 0.0,
  seed: jax.Array | None = None,
  row_B: jax.Array | None = None,
  position_BT: jax.Array | None = None,
  split: Split | None = None,
  kind: str = 'auto',
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """Step logits z of SPEC section 1 and log-scores, log sigmoid(z), at marks.

  Work follows the number of marks; any number of them, none and all included,
  is one and the same program. The logarithm is taken after the kernels, where
  it is part of putting zeros at the other positions.

  Args:
    feature_BTD: the residual stream entering the last block.
    hidden_kernel_DE: first layer; E = 2D as released. Weights may have another
      dtype than the features, float32 masters for example: they are rounded to
      that of the features, their gradients are not.
    hidden_bias_E: its bias.
    output_kernel_E1: second layer.
    output_bias_1: its bias.
    mark_BT: bool, the positions to score.
    dropout_rate: share of hidden units dropped when `seed` is given.
    seed: uint32 scalar; None = no dropout.
    row_B: uint32 global number of each row's sequence, needed with `seed`; or
      of each place's, (B, T), where rows hold several.
    position_BT: position of each place in its sequence; None = its place.
    split: mesh axes; None = one device.
    kind: see the module.
    interpret: run Pallas kernels in interpret mode (tests on a CPU): True, or
      for `pallas_tpu` also `pltpu.InterpretParams`.

  Returns:
    Logits and log-scores, (B, T) each, float32 or better; 0 where there is no
    mark.

  Raises:
    ValueError: an unknown kind, or one that cannot do the shapes.
  """
  (B, T, D), E = feature_BTD.shape, hidden_kernel_DE.shape[1]
  rate, seed, row, position = _places(
    (B, T), dropout_rate, seed, row_B, position_BT
  )
  device, shards = jax.devices()[0], 1
  if split is not None:
    device = split.mesh.devices.flat[0]
    shards = split.size(split.batch) * split.size(split.length)
  kind = choose(
    kind,
    platform=platforms.auto_platform(device),
    places=B * T // shards,
    width=D,
    hidden=E,
    dtype=feature_BTD.dtype,
  )
  if not B * T:
    none = jnp.zeros((B, T), jnp.promote_types(feature_BTD.dtype, jnp.float32))
    return none, none
  form = steps.Form(
    kind,
    rate,
    cores=_cores(device),
    interpret=interpret,
  )
  weights = (hidden_kernel_DE, hidden_bias_E, output_kernel_E1, output_bias_1)
  local = _split(functools.partial(steps.step_scores, form=form), split)
  return local(feature_BTD, mark_BT, row, position, weights, seed)


def _cores(device) -> int:
  """TensorCores that one device of JAX has: two on a v5p."""
  return getattr(device, 'num_cores', None) or 1
