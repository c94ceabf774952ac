"""One decoder block: RMSNorm, grouped-query attention, SwiGLU.

Parameter leaves carry the standard names; kernels are stored input-first, as
they are multiplied: q_kernel (D, H, h), o_kernel (H, h, D), gate_kernel (D, F).
A block runs in two forms over the same parameters: `__call__` over whole
sequences (training, prefill, returning its keys and values) and `decode` for
one new token a slot (a candidate that is being written).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from kernels.attention import Layout, Split, attention, attention_to_past
from kernels.decode_attention import Split as DecodeSplit
from kernels.decode_attention import decode_attention
from metastone_jax.model.config import ModelConfig
from metastone_jax.model.rope import rotate
from metastone_jax.parallel import Sharder

# Logical axes of the residual stream between and inside blocks.
RESIDUAL = ('batch', 'residual_length', 'activation')


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """RMSNorm over the last axis, in float32 or better; dtype of x is kept."""
  acc = jnp.promote_types(x.dtype, jnp.float32)
  y = x.astype(acc)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return y.astype(x.dtype) * scale.astype(x.dtype)


def normal_init(key, shape, fan_in: int, dtype, gain: float = 1.0):
  """Truncated normal with standard deviation gain / sqrt(fan_in)."""
  # 0.8796 is the standard deviation of a unit normal cut at +-2.
  std = gain * fan_in**-0.5 / 0.87962566
  return jax.random.truncated_normal(key, -2, 2, shape, dtype) * jnp.asarray(
    std, dtype
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
  """Keys and values of one layer during decoding, already rotated.

  Attributes:
    prompt_k_PKhS, prompt_v_PKSh: the prompts' cache, one a PROBLEM.
    own_k_BKhR, own_v_BKRh: what each slot wrote, R columns.
  """

  prompt_k_PKhS: jax.Array
  prompt_v_PKSh: jax.Array
  own_k_BKhR: jax.Array
  own_v_BKRh: jax.Array

  @classmethod
  def open(
    cls, k_PSKh: jax.Array, v_PSKh: jax.Array, slots: int, columns: int
  ) -> 'LayerCache':
    """The cache of prefilled prompts, no slot's token written yet."""
    K, h = k_PSKh.shape[2:]
    return cls(
      prompt_k_PKhS=jnp.transpose(k_PSKh, (0, 2, 3, 1)),
      prompt_v_PKSh=jnp.transpose(v_PSKh, (0, 2, 1, 3)),
      own_k_BKhR=jnp.zeros((slots, K, h, columns), k_PSKh.dtype),
      own_v_BKRh=jnp.zeros((slots, K, columns, h), v_PSKh.dtype),
    )

  def write(
    self, k_BKh: jax.Array, v_BKh: jax.Array, column: jax.Array
  ) -> 'LayerCache':
    """Puts one new key and value a slot at `column`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return dataclasses.replace(
      self,
      own_k_BKhR=update(self.own_k_BKhR, k_BKh[..., None], column, axis=3),
      own_v_BKRh=update(self.own_v_BKRh, v_BKh[:, :, None], column, axis=2),
    )

  def select(self, slot_P: jax.Array, extra: int) -> 'LayerCache':
    """One slot a prompt, with room for `extra` more columns."""
    return dataclasses.replace(
      self,
      own_k_BKhR=jnp.pad(
        self.own_k_BKhR[slot_P], ((0, 0), (0, 0), (0, 0), (0, extra))
      ),
      own_v_BKRh=jnp.pad(
        self.own_v_BKRh[slot_P], ((0, 0), (0, 0), (0, extra), (0, 0))
      ),
    )


class Block(nnx.Module):
  """Pre-norm attention and feed-forward with residual connections."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    D, H, K, h, F = (
      config.width,
      config.num_heads,
      config.num_kv_heads,
      config.head_width,
      config.feed_forward,
    )
    dtype = jnp.dtype(config.param_dtype)
    # Residual branches start small, so that depth does not blow up the stream.
    out_gain = (2 * config.num_layers) ** -0.5

    def normal(shape, fan_in, gain=1.0):
      return nnx.Param(normal_init(rngs.params(), shape, fan_in, dtype, gain))

    self.attention_norm = nnx.Param(jnp.ones((D,), dtype))
    self.q_kernel = normal((D, H, h), D)
    self.k_kernel = normal((D, K, h), D)
    self.v_kernel = normal((D, K, h), D)
    self.o_kernel = normal((H, h, D), H * h, out_gain)
    if config.qkv_bias:
      self.q_bias = nnx.Param(jnp.zeros((H, h), dtype))
      self.k_bias = nnx.Param(jnp.zeros((K, h), dtype))
      self.v_bias = nnx.Param(jnp.zeros((K, h), dtype))
    if config.qk_norm:
      self.q_norm = nnx.Param(jnp.ones((h,), dtype))
      self.k_norm = nnx.Param(jnp.ones((h,), dtype))
    self.feed_forward_norm = nnx.Param(jnp.ones((D,), dtype))
    self.gate_kernel = normal((D, F), D)
    self.up_kernel = normal((D, F), D)
    self.down_kernel = normal((F, D), F, out_gain)

  def _cast(self, param: nnx.Param) -> jax.Array:
    return param[...].astype(self.config.dtype)

  def _qkv(self, x, cos, sin):
    """Normalised, projected, rotated q, k and v of x (B, T, D)."""
    config = self.config
    y = rms_norm(x, self.attention_norm[...], config.norm_eps)
    q = jnp.einsum('BTD,DHh->BTHh', y, self._cast(self.q_kernel))
    k = jnp.einsum('BTD,DKh->BTKh', y, self._cast(self.k_kernel))
    v = jnp.einsum('BTD,DKh->BTKh', y, self._cast(self.v_kernel))
    if config.qkv_bias:
      q = q + self._cast(self.q_bias)
      k = k + self._cast(self.k_bias)
      v = v + self._cast(self.v_bias)
    if config.qk_norm:
      q = rms_norm(q, self.q_norm[...], config.norm_eps)
      k = rms_norm(k, self.k_norm[...], config.norm_eps)
    return rotate(q, cos, sin), rotate(k, cos, sin), v

  def _feed_forward(self, x, sharder: Sharder):
    y = rms_norm(x, self.feed_forward_norm[...], self.config.norm_eps)
    gate_kernel, up_kernel, down_kernel = (
      self._cast(kernel)
      for kernel in (self.gate_kernel, self.up_kernel, self.down_kernel)
    )
    if sharder.mesh is None:
      # One contracted axis: XLA's CPU backend computes the weight gradients
      # 2.5x faster than over (batch, length).
      y = y.reshape(-1, y.shape[-1])
      out = (jax.nn.silu(y @ gate_kernel) * (y @ up_kernel)) @ down_kernel
      return x + out.reshape(x.shape)
    inner = jax.nn.silu(y @ gate_kernel) * (y @ up_kernel)
    inner = sharder.constrain(inner, 'batch', 'length', 'feed_forward')
    return x + inner @ down_kernel

  def __call__(
    self,
    x_BTD: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    segment_BT: jax.Array,
    sharder: Sharder,
    layout: Layout,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Whole sequences; `layout` says what the places of a row are.

    Returns:
      the residual stream (B, T, D) and this layer's (k, v), each (B, T, K, h).
    """
    x_BTD = checkpoint_name(x_BTD, 'block_input')
    q, k, v = self._qkv(x_BTD, cos, sin)
    split = None
    if sharder.mesh is not None:
      split = Split(
        sharder.mesh,
        *sharder.mesh_axes(('batch', 'length', 'heads'), q.shape[:3]),
      )
    out = attention(
      q,
      k,
      v,
      segment_BT,
      layout=layout,
      kind=self.config.attention,
      split=split,
      interpret=self.config.interpret_kernels,
    )
    out = checkpoint_name(out, 'attention')
    return self._after_attention(x_BTD, out, sharder), (k, v)

  def _after_attention(self, x_BTD, out_BTHh, sharder: Sharder):
    x = x_BTD + jnp.einsum('BTHh,HhD->BTD', out_BTHh, self._cast(self.o_kernel))
    x = sharder.constrain(x, *RESIDUAL)
    x = self._feed_forward(x, sharder)
    return sharder.constrain(x, *RESIDUAL)

  def extend(
    self,
    x_BTD: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    start: jax.Array,
    segment_BS: jax.Array,
    sharder: Sharder,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """A piece of sequences of which everything before was read.

    Args:
      x_BTD: the piece, at places [start, start + T).
      cos, sin: of its positions.
      cache: this layer's (k, v), each (B, S, K, h), filled up to `start`.
      start: int scalar.
      segment_BS: of whole sequences, 0 = padding.
      sharder: activation shardings.

    Returns:
      the residual stream (B, T, D) and the cache with the piece written.
    """
    q, *new = self._qkv(x_BTD, cos, sin)
    k, v = (
      jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=1)
      for old, x in zip(cache, new, strict=True)
    )
    split = None
    if sharder.mesh is not None:
      batch, heads = sharder.mesh_axes(
        ('batch', 'heads'), (q.shape[0], q.shape[2])
      )
      split = Split(sharder.mesh, batch, heads=heads)
    out = attention_to_past(q, k, v, segment_BS, start, split=split)
    return self._after_attention(x_BTD, out, sharder), (k, v)

  def decode(
    self,
    x_B1D: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    cache: LayerCache,
    column: jax.Array,
    prompt_valid_PS: jax.Array,
    own_valid_BR: jax.Array,
    prompt_B: jax.Array | None,
    sharder: Sharder,
  ) -> tuple[jax.Array, LayerCache]:
    """One token a slot, its keys and values written at `column`.

    Args:
      x_B1D: embedded tokens or the previous block's output.
      cos, sin: of each slot's position, (B, 1, h / 2).
      cache: this layer's cache.
      column: int scalar, the column of the own caches that is written.
      prompt_valid_PS: real prompt positions.
      own_valid_BR: columns that may be read, `column` included.
      prompt_B: see `kernels.decode_attention`.
      sharder: activation shardings.

    Returns:
      the residual stream (B, 1, D) and the cache with the column written.
    """
    q, k, v = self._qkv(x_B1D, cos, sin)
    cache = cache.write(k[:, 0], v[:, 0], column)
    split = None
    if sharder.mesh is not None:
      batch, heads = sharder.mesh_axes(
        ('batch', 'kv_heads'), cache.prompt_k_PKhS.shape[:2]
      )
      split = DecodeSplit(sharder.mesh, batch, heads=heads)
    out = decode_attention(
      q[:, 0],
      cache.prompt_k_PKhS,
      cache.prompt_v_PKSh,
      cache.own_k_BKhR,
      cache.own_v_BKRh,
      prompt_valid_PS,
      own_valid_BR,
      prompt_B=prompt_B,
      kind=self.config.decode_attention,
      split=split,
      interpret=self.config.interpret_kernels,
    )[:, None]
    x = x_B1D + jnp.einsum('BTHh,HhD->BTD', out, self._cast(self.o_kernel))
    return self._feed_forward(x, sharder), cache


class ScoreHead(nnx.Module):
  """SPRM: Linear(D, E) -> ReLU -> Dropout -> Linear(E, 1) (SPEC 1)."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    D, E = config.width, config.score_units
    dtype = jnp.dtype(config.param_dtype)

    def uniform(shape, fan_in):
      bound = fan_in**-0.5
      return nnx.Param(
        jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
      )

    self.hidden_kernel = uniform((D, E), D)
    self.hidden_bias = uniform((E,), D)
    if config.score_init == 'zero':
      self.output_kernel = nnx.Param(jnp.zeros((E, 1), dtype))
      self.output_bias = nnx.Param(jnp.zeros((1,), dtype))
    else:
      self.output_kernel = uniform((E, 1), E)
      self.output_bias = uniform((1,), E)

  def weights(self) -> tuple[Any, Any, Any, Any]:
    """The four masters in the order `kernels.scoring_head` takes them."""
    return tuple(
      param[...]
      for param in (
        self.hidden_kernel,
        self.hidden_bias,
        self.output_kernel,
        self.output_bias,
      )
    )
