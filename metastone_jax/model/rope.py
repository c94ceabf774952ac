"""Rotary position embedding, half-split as Hugging Face stores q and k.

Source: Su et al. 2021; transformers `apply_rotary_pos_emb`.
"""

import jax
import jax.numpy as jnp


def rotation(
  position_BT: jax.Array, head_width: int, theta: float, dtype
) -> tuple[jax.Array, jax.Array]:
  """cos and sin of each position's angles.

  Computed once a forward pass and shared by all layers.

  Args:
    position_BT: integer positions, any leading shape.
    head_width: h, even.
    theta: base.
    dtype: of the result; angles are computed in float32 or better.

  Returns:
    (cos, sin), each (B, T, h / 2).
  """
  acc = jnp.promote_types(dtype, jnp.float32)
  exponent = jnp.arange(0, head_width, 2, dtype=acc) / head_width
  angle = position_BT[..., None].astype(acc) * (theta**-exponent)
  return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def rotate(x_BTHh: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + h/2) of each head; shape and dtype are kept."""
  first, second = jnp.split(x_BTHh, 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
