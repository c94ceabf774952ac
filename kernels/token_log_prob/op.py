"""Dispatch of the token log-prob; the only file others import.

With a mesh every device works on its own tokens and its own columns of the
vocabulary; the head is gathered once over the axes that split its rows, and
its gradient is summed and scattered once. (Left to the partitioner, both
happen in every chunk: 10 TB a device for the 32B step at 64 x 4,096 tokens.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels import split as split_lib
from kernels.token_log_prob import xla
from kernels.token_log_prob.xla import mask_padding as mask_padding

# Logits of a device alive at a time: 64 MiB of float32 on a CPU, where a
# smaller piece stays in the cache, and 256 MiB on an accelerator, where a
# larger one reads the head less often.
_LOGITS_BUDGET = {'cpu': 2**24}
_ACCELERATOR_BUDGET = 2**26


@dataclasses.dataclass(frozen=True)
class Split(split_lib.Split):
  """Mesh axes over which the arrays are split.

  Attributes:
    embed: axes of the head's rows D, where it is stored.
    vocabulary: axes of its columns V.
  """

  embed: tuple[str, ...] = ()
  vocabulary: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Static:
  """What is static under the custom gradient."""

  chunk: int
  vocab_size: int | None
  split: Split | None


def token_log_prob(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  target_BT: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  chunk: int | None = None,
  vocab_size: int | None = None,
  split: Split | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-prob of each taken token and entropy of its distribution.

  Differentiable in `hidden_BTD` and `kernel_DV`, through both outputs.

  Args:
    hidden_BTD: final hidden states, after the last norm.
    kernel_DV: the language-model head (the transposed embedding when tied),
      best the float32 master: it is cast to the dtype of the hidden states
      before it travels, and its gradient is never rounded.
    target_BT: int32, the token taken after each position, in [0, V).
    temperature: logits are divided by it; a number, one a row (B,) or one a
      token (B, T). It is a constant: no gradient. (SPEC 4: trainer, old and
      reference log-probs use the rollout temperature.)
    chunk: tokens of one device whose logits exist at a time; default: what
      keeps them within 64 MiB of float32 (256 MiB on an accelerator).
    vocab_size: columns from here on are padding, never a token; None = V.
    split: mesh axes; None = one device.

  Returns:
    log_prob_BT (nats) and entropy_BT (nats), float32 or better.
  """
  B, T = target_BT.shape
  platform, columns = jax.default_backend(), kernel_DV.shape[1]
  if split is not None:
    platform = split.mesh.devices.flat[0].platform
    columns //= split.size(split.vocabulary)
  if chunk is None:
    budget = _LOGITS_BUDGET.get(platform, _ACCELERATOR_BUDGET)
    chunk = max(1, budget // columns)
  acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
  temperature = jnp.asarray(temperature, acc)
  if temperature.ndim == 1:
    temperature = temperature[:, None]
  static = _Static(int(chunk), vocab_size or kernel_DV.shape[1], split)
  return _token_log_prob(
    hidden_BTD,
    kernel_DV,
    target_BT,
    jnp.broadcast_to(temperature, (B, T)),
    static,
  )


def _flat(x_BT):
  return x_BT.reshape(-1, *x_BT.shape[2:])


def _specs(split: Split):
  """(of (B, T) arrays, of hidden states, of the gathered head)."""
  batch, length, vocabulary = (
    axes or None for axes in (split.batch, split.length, split.vocabulary)
  )
  return (
    PartitionSpec(batch, length),
    PartitionSpec(batch, length, None),
    PartitionSpec(None, vocabulary),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_log_prob(hidden_BTD, kernel_DV, target_BT, temperature_BT, static):
  out, _ = _fwd(hidden_BTD, kernel_DV, target_BT, temperature_BT, static)
  return out


def _fwd(hidden_BTD, kernel_DV, target_BT, temperature_BT, static):
  split = static.split

  def local(hidden, kernel, target, temperature):
    out = xla.forward(
      _flat(hidden),
      kernel,
      _flat(target),
      _flat(temperature),
      chunk=static.chunk,
      vocab_size=static.vocab_size,
      axes=split.vocabulary if split else (),
    )
    return tuple(x.reshape(target.shape) for x in out)

  if split is not None:
    token, hidden_spec, head = _specs(split)
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(hidden_spec, head, token, token),
      out_specs=(token,) * 3,
      check_vma=False,
    )
  cast_DV = kernel_DV.astype(hidden_BTD.dtype)
  log_prob, entropy, log_z = local(
    hidden_BTD, cast_DV, target_BT, temperature_BT
  )
  residuals = hidden_BTD, kernel_DV, target_BT, temperature_BT, log_z, entropy
  return (log_prob, entropy), residuals


def _bwd(static, residuals, cotangents):
  split = static.split
  hidden_BTD, kernel_DV, *rest = residuals

  def local(hidden, kernel, target, *rest):
    d_hidden, d_kernel = xla.backward(
      _flat(hidden),
      kernel,
      _flat(target),
      *map(_flat, rest),
      chunk=static.chunk,
      vocab_size=static.vocab_size,
      axes=split.vocabulary if split else (),
    )
    if split is not None:
      # Every device has its own tokens' share of the head's gradient.
      for axis in split.batch + split.length:
        if axis in split.embed:
          d_kernel = jax.lax.psum_scatter(
            d_kernel, axis, scatter_dimension=0, tiled=True
          )
        else:
          d_kernel = jax.lax.psum(d_kernel, axis)
    return d_hidden.reshape(hidden.shape), d_kernel

  if split is not None:
    token, hidden_spec, head = _specs(split)
    scattered = tuple(
      axis for axis in split.batch + split.length if axis in split.embed
    )
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(hidden_spec, head) + (token,) * 6,
      out_specs=(
        hidden_spec,
        PartitionSpec(scattered or None, split.vocabulary or None),
      ),
      check_vma=False,
    )
  d_hidden, d_kernel = local(
    hidden_BTD, kernel_DV.astype(hidden_BTD.dtype), *rest, *cotangents
  )
  return d_hidden, d_kernel.astype(kernel_DV.dtype), None, None


_token_log_prob.defvjp(_fwd, _bwd)
