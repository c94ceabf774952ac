"""Marks of one device, in any form: the custom gradient around the kernels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from kernels.scoring_head import (
  dropout,
  marks,
  pallas_gpu,
  pallas_tpu,
  pallas_tpu_backward,
  xla,
)

# Marks at a time in the `xla` form. On a CPU at most 256, which beat 128, 512
# and 1,024 at widths 96 and 1,536, and fewer where places are few: a chunk is
# computed whole, and the turns of a sampler hold few marks (26 of 1,024 places
# at width 96: 0.07 ms in chunks of 64, 0.22 in one of 256). Elsewhere enough to
# pay for reading the first layer.
_CPU_CHUNK, _CPU_LEAST = 256, 32
CHUNK = 2048


@dataclasses.dataclass(frozen=True)
class Form:
  """How a device scores its marks.

  Attributes:
    kind: see `op`; not auto.
    rate: share of hidden units dropped; 0 = no dropout.
    cores: TensorCores of the device.
    interpret: see `op.step_scores`.
  """

  kind: str
  rate: float
  cores: int = 1
  interpret: Any = False

  def logits(self, *args) -> jax.Array:
    """(N,) logits; see `xla.logits`."""
    if self.kind == 'pallas_tpu':
      return pallas_tpu.logits(*args, **self._options(cores=self.cores))
    if self.kind == 'pallas_gpu':
      return pallas_gpu.logits(*args, **self._options())
    return _by_platform(functools.partial(xla.logits, rate=self.rate), args)

  def gradients(self, *args) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Of features and weights; see `xla.gradients`."""
    if self.kind == 'pallas_tpu':
      return pallas_tpu_backward.gradients(
        *args, **self._options(cores=self.cores)
      )
    if self.kind == 'pallas_gpu':
      return pallas_gpu.gradients(*args, **self._options())
    return _by_platform(functools.partial(xla.gradients, rate=self.rate), args)

  def _options(self, **more):
    return dict(rate=self.rate, interpret=self.interpret, **more)


def _by_platform(function, args):
  """In chunks that suit the platform the program is compiled for."""
  expected = max(_CPU_LEAST, int(args[0].shape[0] * marks.EXPECTED_MARKS))
  return jax.lax.platform_dependent(
    *args,
    cpu=functools.partial(function, chunk=min(expected, _CPU_CHUNK)),
    default=functools.partial(function, chunk=CHUNK),
  )


def _slots(mark_N: jax.Array) -> marks.Slots:
  return jax.lax.platform_dependent(
    mark_N,
    tpu=functools.partial(marks.slots, sort=False),
    default=functools.partial(marks.slots, sort=True),
  )


def step_scores(
  feature_BTD: jax.Array,
  mark_BT: jax.Array,
  row_BT: jax.Array,
  position_BT: jax.Array,
  weights: tuple[jax.Array, ...],
  seed: jax.Array,
  *,
  form: Form,
) -> tuple[jax.Array, jax.Array]:
  """As `op.step_scores`, on one device; uint32 rows and positions."""
  hash_N = None
  if form.rate:
    hash_N = dropout.place_hash(seed, row_BT, position_BT).reshape(-1)
  feature_ND = feature_BTD.reshape(-1, feature_BTD.shape[-1])
  logit_N = _logits(form, feature_ND, weights, mark_BT.reshape(-1), hash_N)
  logit_BT = logit_N.reshape(mark_BT.shape)
  return logit_BT, jnp.where(mark_BT, jax.nn.log_sigmoid(logit_BT), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(form: Form, feature_ND, weights, mark_N, hash_N):
  """Logits of the marks, (N,); 0 elsewhere."""
  return _forward(form, feature_ND, weights, mark_N, hash_N)[0]


def _forward(form, feature_ND, weights, mark_N, hash_N):
  slots = _slots(mark_N)
  low = tuple(w.astype(feature_ND.dtype) for w in weights)
  logit_N = form.logits(feature_ND, low, hash_N, slots)
  saved = feature_ND, weights, mark_N, hash_N, slots
  return jnp.where(mark_N, logit_N, 0), saved


def _backward(form, saved, grad_N):
  feature_ND, weights, mark_N, hash_N, slots = saved
  low = tuple(w.astype(feature_ND.dtype) for w in weights)
  grad_N = jnp.where(mark_N, grad_N, 0)
  feature, grads = form.gradients(feature_ND, low, hash_N, slots, grad_N)
  grads = tuple(g.astype(w.dtype) for g, w in zip(grads, weights, strict=True))
  return feature, grads, None, None


_logits.defvjp(_forward, _backward)
