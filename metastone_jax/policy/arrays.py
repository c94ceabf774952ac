"""One formula, two array libraries, and the guards that every term shares.

numpy in, numpy out (in the precision given); jax in, jax out, traced or not.
Rooms at the bottom of the house import nothing from each other, so `sprm`
keeps its own few lines of this kind.
"""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # jax.Array (traced or not) or numpy.ndarray

# exp(20) = 5e8: far outside any clip, far from overflow in float32. Without a
# bound, exp gives inf and its gradient 0 * inf = nan even where the clipped
# branch is the one chosen.
MAX_LOG_RATIO = 20.0


def namespace(*arrays: Any) -> types.ModuleType:
  """`jax.numpy` if any argument is a jax array or tracer, else `numpy`."""
  return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def as_float(xp: types.ModuleType, x: Any) -> Array:
  """`x` as a float array of at least float32; float64 stays float64."""
  x = xp.asarray(x)
  if not xp.issubdtype(x.dtype, xp.floating):
    return x.astype(jnp.result_type(float) if xp is jnp else np.float64)
  return x.astype(xp.float32) if x.dtype.itemsize < 4 else x


def constant(xp: types.ModuleType, x: Array) -> Array:
  """`stop_gradient`, for either library."""
  return jax.lax.stop_gradient(x) if xp is jnp else x


def masked_difference(
  xp: types.ModuleType, a_BT: Array, b_BT: Array, mask_BT: Array
) -> Array:
  """a - b inside the bool mask, 0 outside whatever the arrays hold there.

  Both inputs are masked before the subtraction, so that padding (even inf or
  nan) reaches neither the value nor the gradient.
  """
  a_BT = xp.where(mask_BT, as_float(xp, a_BT), 0)
  return a_BT - xp.where(mask_BT, as_float(xp, b_BT), 0)


def divide(xp: types.ModuleType, total: Array, denominator: Array) -> Array:
  """total / denominator, and 0 for an empty batch (total and denominator 0)."""
  return total / xp.where(denominator > 0, denominator, 1)


def per_token(xp: types.ModuleType, x: Any) -> Array:
  """What is one a row, (B,), or one a token, (B, T): as (B, 1) or (B, T)."""
  x = xp.asarray(x)
  return x[:, None] if x.ndim == 1 else x


def segment_sums(
  xp: types.ModuleType, x_BT: Array, segment_BT: Any, num_segments: int
) -> Array:
  """Sum of x over each segment of each row: (B, num_segments).

  Segments are numbered from 1; places of segment 0 are left out. A comparison
  with every number, not a scatter: it fuses into the sum, and a length split
  over devices needs one small all-reduce.
  """
  number_M = xp.arange(1, num_segments + 1)
  own_BTM = xp.asarray(segment_BT)[:, :, None] == number_M
  return xp.where(own_BTM, x_BT[:, :, None], 0).sum(1)


def on_segments(xp: types.ModuleType, x_BM: Array, segment_BT: Any) -> Array:
  """Each segment's value at all its places, 0 at segment 0: (B, T)."""
  number_M = xp.arange(1, x_BM.shape[1] + 1)
  own_BTM = xp.asarray(segment_BT)[:, :, None] == number_M
  return xp.where(own_BTM, x_BM[:, None, :], 0).sum(-1)
