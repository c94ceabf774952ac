"""Rotary position embedding, half-split as Hugging Face stores q and k.

Source: Su et al. 2021; transformers `apply_rotary_pos_emb`. Frequencies of
longer contexts: transformers `modeling_rope_utils` (linear; YaRN, Peng et al.
2023, as Qwen2.5 uses it; Llama 3.1's).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.errors import UserError

ROPE_KINDS = ('linear', 'yarn', 'llama3')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How frequencies are changed for contexts beyond the pretrained length.

  Attributes:
    kind: 'linear', 'yarn' or 'llama3'.
    factor: context length over the original one.
    original_length: tokens of the original context ('yarn', 'llama3').
    beta_fast: rotations above which a frequency is kept ('yarn').
    beta_slow: rotations below which it is divided by `factor` ('yarn').
    attention_factor: multiplies cos and sin ('yarn'); None = 0.1 ln(factor)
      + 1.
    truncate: the band between the betas has whole bounds ('yarn').
    low_frequency_factor: as beta_slow, in wavelengths ('llama3').
    high_frequency_factor: as beta_fast, in wavelengths ('llama3').
  """

  kind: str
  factor: float
  original_length: int = 0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  truncate: bool = True
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0

  def __post_init__(self):
    if self.kind not in ROPE_KINDS:
      raise UserError(
        f'model.rope_scaling.kind={self.kind!r}; use one of '
        f'{", ".join(ROPE_KINDS)}'
      )
    if self.factor < 1:
      raise UserError(
        f'model.rope_scaling.factor={self.factor} must be at least 1'
      )
    if self.kind != 'linear' and self.original_length < 1:
      raise UserError(
        f'model.rope_scaling.original_length={self.original_length} must be '
        f'at least 1 token for kind {self.kind!r}'
      )

  @property
  def magnitude(self) -> float:
    """What cos and sin are multiplied by."""
    if self.kind != 'yarn':
      return 1.0
    if self.attention_factor is not None:
      return self.attention_factor
    return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def inverse_frequencies(
  head_width: int, theta: float, scaling: RopeScaling | None = None
) -> np.ndarray:
  """Radians a position, one a pair: (h / 2,), float64.

  Args:
    head_width: h, even.
    theta: base.
    scaling: for longer contexts; None = the original frequencies.
  """
  inverse = theta ** -(np.arange(0, head_width, 2) / head_width)
  if scaling is None:
    return inverse
  slowed = inverse / scaling.factor
  if scaling.kind == 'linear':
    return slowed
  if scaling.kind == 'yarn':

    def pair_of(rotations: float) -> float:
      """The pair that turns so often over the original context."""
      turns = scaling.original_length / (rotations * 2 * math.pi)
      return head_width * math.log(turns) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    if low == high:
      high += 0.001  # as transformers: no division by zero
    ramp = np.clip((np.arange(head_width // 2) - low) / (high - low), 0, 1)
    return slowed * ramp + inverse * (1 - ramp)
  wavelength = 2 * math.pi / inverse
  turns = scaling.original_length / wavelength
  slow, fast = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = np.clip((turns - slow) / (fast - slow), 0, 1)
  return slowed * (1 - kept) + inverse * kept


def rotation(
  position_BT: jax.Array,
  head_width: int,
  theta: float,
  dtype,
  scaling: RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
  """cos and sin of each position's angles.

  Computed once a forward pass and shared by all layers.

  Args:
    position_BT: integer positions, any leading shape.
    head_width: h, even.
    theta: base.
    dtype: of the result; angles are computed in float32 or better.
    scaling: for longer contexts.

  Returns:
    (cos, sin), each (B, T, h / 2).
  """
  acc = jnp.promote_types(dtype, jnp.float32)
  inverse = jnp.asarray(inverse_frequencies(head_width, theta, scaling), acc)
  angle = position_BT[..., None].astype(acc) * inverse
  magnitude = 1.0 if scaling is None else scaling.magnitude
  return (
    (jnp.cos(angle) * magnitude).astype(dtype),
    (jnp.sin(angle) * magnitude).astype(dtype),
  )


def rotate(x_BTHh: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + h/2) of each head; shape and dtype are kept."""
  first, second = jnp.split(x_BTHh, 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
