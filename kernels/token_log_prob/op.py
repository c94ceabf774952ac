"""Dispatch of the token log-prob; the only file others import.

| kind | where | what |
| --- | --- | --- |
| `pallas_tpu` | TPU | tiles of logits in vector memory, both passes |
| `pallas_gpu` | GPU | tiles of logits in registers; a bounded piece of their |
|              |     | gradient in the device's memory |
| `xla` | anywhere | chunks of tokens, recomputed backward |

`auto` takes a kernel where its compiled programs say that it pays: see
`_LEAST_TOKENS`. The chunked form reads the head, and reads and writes its
gradient, once a chunk of tokens, and moves every logit several times; a kernel
does the first once a block of tokens, which is larger, and the second never
(TPU) or in half the bytes (GPU): docs/kernels.md has the numbers.

With a mesh every device works on its own tokens and its own columns of the
vocabulary; the head is gathered once over the axes that split its rows, and
its gradient is summed and scattered once. (Left to the partitioner, both
happen in every chunk: 10 TB a device for the 32B step at 64 x 4,096 tokens.)
Every kind finds the same four numbers a token in a device's own columns; here
they are combined.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from kernels import platforms
from kernels import split as split_lib
from kernels.token_log_prob import (
  pallas_gpu,
  pallas_tpu,
  pallas_tpu_backward,
  xla,
)
from kernels.token_log_prob.xla import mask_padding as mask_padding

KINDS = ('auto', 'pallas_tpu', 'pallas_gpu', 'xla')
_AUTO = {'tpu': 'pallas_tpu', 'gpu': 'pallas_gpu'}

# Logits of a device alive at a time in the `xla` form: 64 MiB of float32 on a
# CPU, where a smaller piece stays in the cache, and 256 MiB on an accelerator,
# where a larger one reads the head less often.
_LOGITS_BUDGET = {'cpu': 2**24}
_ACCELERATOR_BUDGET = 2**26

# Fewer tokens are one chunk of the plain form, bound by reading the head: with
# 128 tokens at D = 1,536 a kernel's gradient moves 0.9 (v5p) and 2.2 times
# (H100) the bytes of it, with 512 tokens 0.3 and 0.7 times. Wider models leave
# a TPU with 64 MiB of vector memory blocks of less than 256 tokens, and more to
# read than the plain form has. Read from compiled programs; one H100 has run
# 32,768 tokens at D = 1,536 (docs/kernels.md).
_LEAST_TOKENS = 512
_WIDEST = 8192


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

  kind: str
  chunk: int
  vocab_size: int | None
  split: Split | None
  vmem: int
  interpret: bool | pltpu.InterpretParams

  @property
  def vocabulary(self) -> tuple[str, ...]:
    """Axes of the columns."""
    return self.split.vocabulary if self.split else ()

  @property
  def tokens(self) -> tuple[str, ...]:
    """Axes of the tokens."""
    return self.split.batch + self.split.length if self.split else ()


def choose(kind: str, *, platform: str, tokens: int, width: int, dtype) -> str:
  """The kind that `auto` stands for; any other kind is returned as it is.

  Args:
    kind: one of KINDS.
    platform: of `kernels.platforms.auto_platform`.
    tokens: of one device.
    width: D.
    dtype: of the hidden states.

  Raises:
    ValueError: an unknown kind, or one that cannot do the shapes.
  """
  if kind not in KINDS:
    raise ValueError(f'token_log_prob kind {kind!r}; use {", ".join(KINDS)}')
  if kind == 'auto':
    kind = _AUTO.get(platform, 'xla')
    # Products of float32 in a kernel take six passes or more.
    pays = tokens >= _LEAST_TOKENS and width <= _WIDEST
    pays &= dtype == jnp.bfloat16
    return kind if pays and not _refusal(kind, width, dtype) else 'xla'
  if reason := _refusal(kind, width, dtype):
    raise ValueError(f'token_log_prob kind {kind!r} {reason}')
  return kind


def _refusal(kind, width, dtype) -> str:
  """Why a kind cannot do the shapes, else ''."""
  if kind == 'xla':
    return ''
  multiple = {'pallas_tpu': 128, 'pallas_gpu': pallas_gpu.WIDTH_MULTIPLE}[kind]
  if width % multiple:
    return (
      f'needs hidden states of a multiple of {multiple} numbers, got D = '
      f"{width}; use kind='xla'"
    )
  if dtype not in (jnp.bfloat16, jnp.float32):
    return (
      f'computes in float32 and takes bfloat16 or float32 hidden states, got '
      f"{jnp.dtype(dtype).name}; use kind='xla'"
    )
  return ''


def token_log_prob(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  target_BT: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  chunk: int | None = None,
  vocab_size: int | None = None,
  split: Split | None = None,
  kind: str = 'auto',
  interpret: bool | pltpu.InterpretParams = False,
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
      token (B, T), above 0. It is a constant: no gradient. (SPEC 4: trainer,
      old and reference log-probs use the rollout temperature.)
    chunk: tokens of one device whose logits exist at a time in the `xla` form;
      default: what keeps them within 64 MiB of float32 (256 MiB on an
      accelerator).
    vocab_size: columns from here on are padding, never a token; None = V.
    split: mesh axes; None = one device.
    kind: see the module.
    interpret: run Pallas kernels in interpret mode (tests on a CPU).

  Returns:
    log_prob_BT (nats) and entropy_BT (nats), float32 or better.

  Raises:
    ValueError: an unknown kind, or one that cannot do the shapes.
  """
  B, T = target_BT.shape
  D, columns = kernel_DV.shape
  tokens = B * T
  device = jax.devices()[0]
  if split is not None:
    device = split.mesh.devices.flat[0]
    split = _without_single(split)
    columns //= split.size(split.vocabulary)
    tokens //= split.size(split.batch + split.length)
  kind = choose(
    kind,
    platform=platforms.auto_platform(device),
    tokens=tokens,
    width=D,
    dtype=hidden_BTD.dtype,
  )
  if not tokens:
    kind = 'xla'  # There is nothing to start a kernel for.
  if chunk is None:
    budget = _LOGITS_BUDGET.get(device.platform, _ACCELERATOR_BUDGET)
    chunk = max(1, budget // columns)
  acc = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
  temperature = jnp.asarray(temperature, acc)
  if temperature.ndim == 1:
    temperature = temperature[:, None]
  static = _Static(
    kind,
    int(chunk),
    kernel_DV.shape[1] if vocab_size is None else vocab_size,
    split,
    platforms.vector_memory(device),
    interpret,
  )
  return _token_log_prob(
    hidden_BTD,
    kernel_DV,
    target_BT,
    jnp.broadcast_to(temperature, (B, T)),
    static,
  )


def _without_single(split: Split) -> Split:
  """Without the axes of one device: nothing travels along these."""
  return dataclasses.replace(
    split,
    **{
      name: tuple(a for a in getattr(split, name) if split.mesh.shape[a] > 1)
      for name in ('batch', 'length', 'embed', 'vocabulary')
    },
  )


def _options(static: _Static, kernel_DV) -> dict:
  """Keyword arguments of both passes of the kind."""
  first = 0
  if static.vocabulary:
    first = jax.lax.axis_index(static.vocabulary) * kernel_DV.shape[1]
  options = dict(vocab_size=static.vocab_size, first=first)
  if static.kind == 'xla':
    options |= dict(chunk=static.chunk)
  else:
    options |= dict(interpret=static.interpret)
  if static.kind == 'pallas_tpu':
    options |= dict(vmem=static.vmem)
  return options


# (forward, backward): on one device's tokens and its columns.
_PASSES = {
  'pallas_tpu': (pallas_tpu.forward, pallas_tpu_backward.backward),
  'pallas_gpu': (pallas_gpu.forward, pallas_gpu.backward),
  'xla': (xla.forward, xla.backward),
}


def _head(kernel_DV, dtype, static: _Static):
  """The head as it enters the local computation.

  It travels in the dtype of the hidden states; the partitioner of a GPU may
  still send float32 and cast what arrives. A kernel casts tile by tile what
  does not travel, so that no cast copy of it exists (a tied embedding is
  transposed, which is one).
  """
  # Left to the partitioner, which takes it out of a loop over micro-batches.
  travels = static.split is not None and static.split.embed
  if static.kind == 'xla' or travels:
    return kernel_DV.astype(dtype)
  return kernel_DV


def _combine(top, total, mean, taken, axes):
  """Log-prob, entropy, log-normaliser: of what every device has found."""
  if axes:
    own = top
    top = jax.lax.pmax(own, axes)
    scale = jnp.exp(own - top)
    total, mean, taken = jax.lax.psum(
      (total * scale, mean * scale, taken), axes
    )
  log_z = top + jnp.log(total)
  # H = log Z - sum_v p_v l_v, from the same pass over the logits.
  return taken - log_z, log_z - mean / total, log_z


def _flat(x_BT):
  return x_BT.reshape(-1, *x_BT.shape[2:])


def _specs(split: Split):
  """(of (B, T) arrays, which is that of hidden states too; of the head)."""
  return (
    PartitionSpec(split.batch or None, split.length or None),
    PartitionSpec(None, split.vocabulary or None),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_log_prob(hidden_BTD, kernel_DV, target_BT, temperature_BT, static):
  out, _ = _fwd(hidden_BTD, kernel_DV, target_BT, temperature_BT, static)
  return out


def _fwd(hidden_BTD, kernel_DV, target_BT, temperature_BT, static):
  split = static.split

  def local(hidden, kernel, target, temperature):
    found = _PASSES[static.kind][0](
      _flat(hidden),
      kernel,
      _flat(target),
      _flat(temperature),
      **_options(static, kernel),
    )
    out = _combine(*found, static.vocabulary)
    return tuple(x.reshape(target.shape) for x in out)

  if split is not None:
    token, head = _specs(split)
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(token, head, token, token),
      out_specs=(token,) * 3,
      check_vma=False,
    )
  log_prob, entropy, log_z = local(
    hidden_BTD,
    _head(kernel_DV, hidden_BTD.dtype, static),
    target_BT,
    temperature_BT,
  )
  residuals = hidden_BTD, kernel_DV, target_BT, temperature_BT, log_z, entropy
  return (log_prob, entropy), residuals


def _bwd(static, residuals, cotangents):
  split = static.split
  hidden_BTD, kernel_DV, *rest = residuals

  def local(hidden, kernel, target, *rest):
    d_hidden, d_kernel = _PASSES[static.kind][1](
      _flat(hidden),
      kernel,
      _flat(target),
      *map(_flat, rest),
      **_options(static, kernel),
    )
    if static.vocabulary:
      d_hidden = jax.lax.psum(d_hidden, static.vocabulary)
    # Every device has its own tokens' share of the head's gradient.
    for axis in static.tokens:
      if axis in split.embed:
        d_kernel = jax.lax.psum_scatter(
          d_kernel, axis, scatter_dimension=0, tiled=True
        )
      else:
        d_kernel = jax.lax.psum(d_kernel, axis)
    return d_hidden.reshape(hidden.shape), d_kernel

  if split is not None:
    token, head = _specs(split)
    scattered = tuple(axis for axis in static.tokens if axis in split.embed)
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(token, head) + (token,) * 6,
      out_specs=(
        token,
        PartitionSpec(scattered or None, split.vocabulary or None),
      ),
      check_vma=False,
    )
  d_hidden, d_kernel = local(
    hidden_BTD, _head(kernel_DV, hidden_BTD.dtype, static), *rest, *cotangents
  )
  return d_hidden, d_kernel.astype(kernel_DV.dtype), None, None


_token_log_prob.defvjp(_fwd, _bwd)
