"""How exact a kernel's matrix products are."""

import jax
import jax.numpy as jnp


def of_products(dtype) -> jax.lax.Precision | None:
  """`precision` of a product of such operands.

  Left to the hardware, float32 would be rounded: to bfloat16 by a TPU, to the
  10 bits of TF32 by a GPU.
  """
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
