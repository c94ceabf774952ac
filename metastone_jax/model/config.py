"""Shapes of the backbone and its two heads, with presets.

Letters: D width, V vocabulary, H query heads, K key/value heads, h head width,
F feed-forward width, L layers, E hidden units of the score head.
"""

import dataclasses

from kernels.attention import KINDS as ATTENTION_KINDS
from kernels.decode_attention import KINDS as DECODE_KINDS
from kernels.scoring_head import KINDS as HEAD_KINDS
from kernels.token_log_prob import KINDS as LOG_PROB_KINDS
from metastone_jax.errors import UserError
from metastone_jax.model.rope import RopeScaling

REMAT_POLICIES = ('none', 'full', 'dots', 'attention', 'offload')
DTYPES = ('float32', 'bfloat16', 'float64')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Qwen2/Qwen3-style decoder with a policy head and a score head.

  Attributes:
    vocab_size: V, rows of the embedding.
    width: D, the residual stream.
    num_layers: L.
    num_heads: H query heads.
    num_kv_heads: K key/value heads; divides H.
    head_width: h.
    feed_forward: F, SwiGLU inner width.
    vocab_multiple: embedding rows are padded to a multiple of it, so that a
      mesh axis divides them; padding is never a token and never exported.
    rope_theta: base of the rotary embedding.
    rope_scaling: frequencies of longer contexts (YaRN, ...); None = as
      pretrained.
    norm_eps: epsilon of every RMSNorm.
    qkv_bias: biases on q, k and v (Qwen2: True, Qwen3: False).
    qk_norm: RMSNorm on each query and key head (Qwen3: True).
    tied_embeddings: the policy head is the transposed embedding.
    feature_layer: f; the score feature is the residual stream entering block
      f (0-based). None = L - 1, the last block, as released (SPEC 1).
    score_width: E, hidden units of the score head; None = 2 D, as released.
    score_dropout: dropout rate inside the score head (released: 0.5).
    score_init: 'torch' (uniform +-1/sqrt(fan_in), as nn.Linear) or 'zero'
      (last layer zero: every trace scores 0.5 until a bce/soft warm-up).
    dtype: activations, key/value cache and the matmul operands.
    param_dtype: master parameters.
    remat: what the backward pass finds in memory: 'none' (everything), 'full'
      (each block's input; the rest is recomputed), 'attention' (that and the
      attention outputs), 'dots' (the outputs of matrix products) or 'offload'
      (each block's input, in the host's memory).
    attention: the kind of `kernels.attention`; 'auto' picks by platform.
    decode_attention: the kind of `kernels.decode_attention`, likewise.
    token_log_prob: the kind of `kernels.token_log_prob`, likewise.
    scoring_head: the kind of `kernels.scoring_head` that training runs on step
      marks, likewise.
    interpret_kernels: run Pallas kernels in interpret mode (tests on a CPU).
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_width: int
  feed_forward: int
  vocab_multiple: int = 1
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  qkv_bias: bool = True
  qk_norm: bool = False
  tied_embeddings: bool = False
  feature_layer: int | None = None
  score_width: int | None = None
  score_dropout: float = 0.5
  score_init: str = 'torch'
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'auto'
  decode_attention: str = 'auto'
  token_log_prob: str = 'auto'
  scoring_head: str = 'auto'
  interpret_kernels: bool = False

  def __post_init__(self):
    for name in (
      'vocab_size',
      'width',
      'num_layers',
      'num_heads',
      'num_kv_heads',
      'head_width',
      'feed_forward',
      'vocab_multiple',
    ):
      if int(getattr(self, name)) < 1:
        raise UserError(f'model.{name}={getattr(self, name)} must be >= 1')
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f'model.num_kv_heads={self.num_kv_heads} must divide '
        f'model.num_heads={self.num_heads}'
      )
    if self.head_width % 2:
      raise UserError(
        f'model.head_width={self.head_width} must be even (rotary pairs)'
      )
    if not 1 <= self.split < self.num_layers:
      raise UserError(
        f'model.feature_layer={self.feature_layer} must lie in '
        f'[1, {self.num_layers - 1}] with {self.num_layers} layers (at least '
        'one block on each side of the score feature)'
      )
    if self.score_units < 1:
      raise UserError(
        f'model.score_width={self.score_width} must be >= 1, or left out for '
        'twice the width'
      )
    if not 0 <= self.score_dropout < 1:
      raise UserError(
        f'model.score_dropout={self.score_dropout} must lie in [0, 1)'
      )
    for name, allowed in (
      ('remat', REMAT_POLICIES),
      ('attention', ATTENTION_KINDS),
      ('decode_attention', DECODE_KINDS),
      ('token_log_prob', LOG_PROB_KINDS),
      ('scoring_head', HEAD_KINDS),
      ('dtype', DTYPES),
      ('param_dtype', DTYPES),
      ('score_init', ('torch', 'zero')),
    ):
      if getattr(self, name) not in allowed:
        raise UserError(
          f'model.{name}={getattr(self, name)!r}; use one of '
          f'{", ".join(allowed)}'
        )

  @property
  def split(self) -> int:
    """f: blocks [0, f) make the score feature, blocks [f, L) follow it."""
    if self.feature_layer is None:
      return self.num_layers - 1
    return self.feature_layer

  @property
  def score_units(self) -> int:
    """E: hidden units of the score head."""
    return 2 * self.width if self.score_width is None else self.score_width

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the embedding: V rounded up to `vocab_multiple`."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @property
  def num_score_parameters(self) -> int:
    """E*D + 2E + 1: 2D*D + 4D + 1 as released (SPEC 1)."""
    return self.score_units * (self.width + 2) + 1

  @property
  def num_backbone_parameters(self) -> int:
    """Everything but the score head; a tied embedding counts once."""
    D, H, K, h = (
      self.width,
      self.num_heads,
      self.num_kv_heads,
      self.head_width,
    )
    block = D * h * (2 * H + 2 * K) + 3 * D * self.feed_forward + 2 * D
    if self.qkv_bias:
      block += h * (H + 2 * K)
    if self.qk_norm:
      block += 2 * h
    embeddings = self.vocab_size * D * (1 if self.tied_embeddings else 2)
    return self.num_layers * block + embeddings + D

  def score_flops(self, tokens: int) -> float:
    """FLOPs of the score head at so many positions, forward.

    2 E (D + 1) each: 4 D (D + 1) as released.
    """
    return 2.0 * tokens * self.score_units * (self.width + 1)

  def forward_flops(self, tokens: int, context: float) -> float:
    """FLOPs of one forward pass over `tokens` tokens, causal, no recompute.

    2 a multiply-add: matmuls of the blocks and the policy head, and attention
    at an average context of `context` tokens. The score head, at step marks
    alone, is under 0.1 % of a training pass and left out.
    """
    D, H, K, h = (
      self.width,
      self.num_heads,
      self.num_kv_heads,
      self.head_width,
    )
    block = D * h * (2 * H + 2 * K) + 3 * D * self.feed_forward
    matmul = self.num_layers * block + D * self.vocab_size
    attention = 2 * self.num_layers * H * h * context
    return 2.0 * tokens * (matmul + attention)

  def prefill_flops(self, tokens: int) -> float:
    """FLOPs of reading so many tokens; the policy head draws none of them."""
    head = 2.0 * tokens * self.width * self.vocab_size
    return self.forward_flops(tokens, (tokens + 1) / 2) - head

  def decode_flops(self, tokens: int, read: int) -> float:
    """FLOPs of writing `tokens` one by one behind `read` others.

    Each attends to all before it and to itself. As in `forward_flops` the score
    head is left out.
    """
    return self.forward_flops(tokens, read + (tokens + 1) / 2)


_PRESETS: dict[str, dict] = {
  # 0.4 M parameters: the size a 2-core CPU trains in minutes.
  'tiny': dict(
    vocab_size=512,
    width=96,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_width=24,
    feed_forward=256,
    qkv_bias=False,
    qk_norm=True,
    tied_embeddings=True,
  ),
  # DeepScaleR-1.5B / DeepSeek-R1-Distill-Qwen-1.5B (Qwen2.5-Math-1.5B shape).
  '1.5b': dict(
    vocab_size=151_936,
    width=1536,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_width=128,
    feed_forward=8960,
    rope_theta=10_000.0,
    dtype='bfloat16',
    remat='full',
  ),
  # DeepSeek-R1-Distill-Qwen-7B (Qwen2.5-Math-7B shape).
  '7b': dict(
    vocab_size=152_064,
    width=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_width=128,
    feed_forward=18_944,
    rope_theta=10_000.0,
    dtype='bfloat16',
    remat='full',
  ),
  # QwQ-32B (Qwen2.5-32B shape).
  '32b': dict(
    vocab_size=152_064,
    width=5120,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
    head_width=128,
    feed_forward=27_648,
    rope_theta=1_000_000.0,
    norm_eps=1e-5,
    dtype='bfloat16',
    remat='full',
  ),
}


def preset(name: str, **overrides) -> ModelConfig:
  """A named shape: tiny, 1.5b, 7b, 32b.

  Raises:
    UserError: an unknown name or field.
  """
  if name not in _PRESETS:
    raise UserError(
      f'model.preset={name!r} is unknown; use one of {", ".join(_PRESETS)}'
    )
  fields = {field.name for field in dataclasses.fields(ModelConfig)}
  unknown = sorted(set(overrides) - fields)
  if unknown:
    raise UserError(
      f'model.{unknown[0]} is no model option; options: '
      f'{", ".join(sorted(fields))}'
    )
  return ModelConfig(**{**_PRESETS[name], **overrides})
