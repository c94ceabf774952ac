"""One formula, two array libraries: numpy in, numpy out; jax in, jax out.

The functions of this room are written once against `namespace(...)`, so that
the trainer can trace them and the host can call them without a device. With
numpy they compute in the precision they are given (float64 stays float64
whatever `jax_enable_x64` says).
"""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # jax.Array (traced or not) or numpy.ndarray


def namespace(*arrays: Any) -> types.ModuleType:
  """`jax.numpy` if any argument is a jax array or tracer, else `numpy`."""
  return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def as_float(xp: types.ModuleType, x: Any) -> Array:
  """`x` as a float array of at least float32; float64 stays float64."""
  x = xp.asarray(x)
  if not xp.issubdtype(x.dtype, xp.floating):
    return x.astype(jnp.result_type(float) if xp is jnp else np.float64)
  # bfloat16 and float16 hold neither a sum over a batch nor a log.
  return x.astype(xp.float32) if x.dtype.itemsize < 4 else x


def constant(xp: types.ModuleType, x: Array) -> Array:
  """`stop_gradient`, for either library."""
  return jax.lax.stop_gradient(x) if xp is jnp else x


def log_sigmoid(xp: types.ModuleType, x: Array) -> Array:
  """log(sigmoid(x)) without overflow at either end."""
  return -xp.logaddexp(xp.zeros((), x.dtype), -x)


def sigmoid(xp: types.ModuleType, x: Array) -> Array:
  """1 / (1 + exp(-x)) without overflow at either end."""
  if xp is jnp:
    return jax.nn.sigmoid(x)
  return np.exp(log_sigmoid(np, x))


def per_token(xp: types.ModuleType, x: Any) -> Array:
  """What is one a row, (B,), or one a token, (B, T): as (B, 1) or (B, T)."""
  x = xp.asarray(x)
  return x[:, None] if x.ndim == 1 else x
