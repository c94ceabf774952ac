"""Hugging Face `config.json` to ModelConfig and back: qwen2, qwen3, llama.

Reads both styles: `rope_theta` + `rope_scaling` (transformers 4) and
`rope_parameters` (transformers 5). Whatever would change the mathematics and is
not built here is refused by name, never ignored. Defaults of absent keys are
transformers' own.
"""

from collections.abc import Mapping
from typing import Any

from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, RopeScaling

FAMILIES = ('qwen2', 'qwen3', 'llama')
_ARCHITECTURE = {
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'llama': 'LlamaForCausalLM',
}
# Original context of a config that names none: only YaRN and Llama 3 need it.
_MAX_POSITIONS = {'qwen2': 32_768, 'qwen3': 32_768, 'llama': 2048}


def read_config(
  config: Mapping[str, Any], *, where: str, **overrides: Any
) -> ModelConfig:
  """The ModelConfig of a `config.json`.

  Args:
    config: its content.
    where: its path, for messages.
    **overrides: ModelConfig fields that a checkpoint does not fix, such as
      dtype, remat, vocab_multiple, feature_layer, score_dropout.

  Raises:
    UserError: another architecture, a missing key, or a feature that is not
      supported (sliding windows, biases elsewhere, quantised weights, ...).
  """
  family = config.get('model_type')
  if family not in FAMILIES:
    raise UserError(
      f'{where}: model_type={family!r} is not supported; use a model of type '
      f'{", ".join(FAMILIES)}'
    )
  _refuse(config, family, where)

  def size(name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise UserError(
        f'{where}: {name}={value!r} must be a whole number above 0; copy the '
        'file again from where the model is published'
      )
    return value

  width, heads = size('hidden_size'), size('num_attention_heads')
  head_width = config.get('head_dim')
  if head_width is None:
    head_width = 128 if family == 'qwen3' else width // heads
    if family != 'qwen3' and width % heads:
      raise UserError(
        f'{where}: hidden_size={width} is no multiple of '
        f'num_attention_heads={heads} and there is no head_dim'
      )
  # transformers' default of qwen2 and qwen3 is 32, whatever the heads; every
  # published config has the key.
  kv_heads = config.get('num_key_value_heads')
  theta, scaling = _rope(config, family, where)
  return ModelConfig(
    **{
      'vocab_size': size('vocab_size'),
      'width': width,
      'num_layers': size('num_hidden_layers'),
      'num_heads': heads,
      'num_kv_heads': heads if kv_heads is None else kv_heads,
      'head_width': head_width,
      'feed_forward': size('intermediate_size'),
      'rope_theta': theta,
      'rope_scaling': scaling,
      'norm_eps': float(config.get('rms_norm_eps', 1e-6)),
      'qkv_bias': family == 'qwen2',
      'qk_norm': family == 'qwen3',
      'tied_embeddings': bool(config.get('tie_word_embeddings', False)),
      **overrides,
    }
  )


def _refuse(config: Mapping[str, Any], family: str, where: str) -> None:
  """Raises UserError on what would silently compute something else."""
  if config.get('quantization_config'):
    raise UserError(
      f'{where}: quantization_config is set; use the unquantised weights'
    )
  if config.get('hidden_act', 'silu') != 'silu':
    raise UserError(
      f'{where}: hidden_act={config["hidden_act"]!r} is not supported, only '
      'silu'
    )
  for name in ('attention_bias', 'mlp_bias'):
    # qwen2 has its q, k, v biases without saying so.
    if config.get(name) and family != 'qwen2':
      raise UserError(
        f'{where}: {name}=true is not supported (biases on o_proj or the MLP)'
      )
  layers = config.get('num_hidden_layers')
  types = config.get('layer_types')
  if types is None:
    first = config.get('max_window_layers', 28)
    slides = config.get('use_sliding_window', family == 'llama') and (
      config.get('sliding_window') is not None
    )
    slides = slides and (family == 'llama' or first < (layers or 0))
  else:
    slides = any(kind != 'full_attention' for kind in types)
  if slides:
    raise UserError(
      f'{where}: sliding-window attention (sliding_window='
      f'{config.get("sliding_window")}) is not supported; if your sequences '
      'stay within the window the result is the same without it: set '
      'use_sliding_window to false and remove sliding_window and layer_types'
    )


def _rope(config: Mapping[str, Any], family: str, where: str):
  """(theta, RopeScaling or None) of either style."""
  new = config.get('rope_parameters')
  if new is not None and 'full_attention' in new:
    new = new['full_attention']  # one entry a layer type; others are refused
  values = dict(new if new is not None else config.get('rope_scaling') or {})
  theta = values.pop('rope_theta', None)
  theta = float(config.get('rope_theta', 10_000.0) if theta is None else theta)
  partial = values.pop('partial_rotary_factor', None)
  partial = config.get('partial_rotary_factor') if partial is None else partial
  if partial not in (None, 1, 1.0):
    raise UserError(
      f'{where}: partial_rotary_factor={partial} is not supported'
    )
  kind = values.pop('rope_type', None) or values.pop('type', None) or 'default'
  values.pop('type', None)
  if kind == 'default':
    return theta, None
  known = {
    'linear': ('factor',),
    'yarn': (
      'factor',
      'original_max_position_embeddings',
      'beta_fast',
      'beta_slow',
      'attention_factor',
      'truncate',
      'mscale',
      'mscale_all_dim',
    ),
    'llama3': (
      'factor',
      'original_max_position_embeddings',
      'low_freq_factor',
      'high_freq_factor',
    ),
  }
  if kind not in known:
    raise UserError(
      f'{where}: rope_type={kind!r} is not supported; supported: default, '
      f'{", ".join(known)}'
    )
  unknown = sorted(set(values) - set(known[kind]))
  if unknown:
    raise UserError(
      f'{where}: {unknown[0]} is not known for rope_type={kind!r}'
    )
  if values.get('mscale') or values.get('mscale_all_dim'):
    raise UserError(
      f'{where}: mscale of YaRN is not supported; give attention_factor'
    )
  if 'factor' not in values:
    raise UserError(f'{where}: rope_type={kind!r} needs a factor')
  original = values.get('original_max_position_embeddings')
  if original is None:
    original = config.get('max_position_embeddings', _MAX_POSITIONS[family])
  attention_factor = values.get('attention_factor')
  return theta, RopeScaling(
    kind=kind,
    factor=float(values['factor']),
    original_length=0 if kind == 'linear' else int(original),
    beta_fast=float(values.get('beta_fast') or 32),
    beta_slow=float(values.get('beta_slow') or 1),
    attention_factor=None
    if attention_factor is None
    else float(attention_factor),
    truncate=bool(values.get('truncate', True)),
    low_frequency_factor=float(values.get('low_freq_factor', 1.0)),
    high_frequency_factor=float(values.get('high_freq_factor', 4.0)),
  )


def write_config(
  config: ModelConfig,
  dtype: str,
  *,
  base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The `config.json` of an export.

  Args:
    config: of the model.
    dtype: of the exported tensors.
    base: the config.json the model came with; everything in it that the
      ModelConfig does not fix is kept.

  Returns:
    JSON-able content; without a base in the style of transformers 4, which
    both generations read.

  Raises:
    UserError: no architecture of transformers computes this model.
  """
  if base is not None:
    tree = dict(base)
    # One of the two names; transformers 5 reads both, 4 only the older one.
    name = 'dtype' if 'dtype' in tree else 'torch_dtype'
    tree[name] = dtype
    return tree
  if config.qkv_bias and config.qk_norm:
    raise UserError(
      'a model with both qkv_bias and qk_norm is no architecture of '
      'transformers: it cannot be exported'
    )
  family = (
    'qwen2' if config.qkv_bias else 'qwen3' if config.qk_norm else 'llama'
  )
  tree = {
    'architectures': [_ARCHITECTURE[family]],
    'model_type': family,
    'vocab_size': config.vocab_size,
    'hidden_size': config.width,
    'intermediate_size': config.feed_forward,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_width,
    'hidden_act': 'silu',
    'rms_norm_eps': config.norm_eps,
    'rope_theta': config.rope_theta,
    'max_position_embeddings': _MAX_POSITIONS[family],
    'tie_word_embeddings': config.tied_embeddings,
    'attention_dropout': 0.0,
    'use_cache': True,
    'torch_dtype': dtype,
  }
  if family != 'qwen2':
    tree['attention_bias'] = False
  if family == 'llama':
    tree['mlp_bias'] = False
  else:
    tree['use_sliding_window'] = False
  if config.rope_scaling is not None:
    tree['rope_scaling'] = _write_scaling(config.rope_scaling)
  return tree


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
  tree: dict[str, Any] = {
    'rope_type': scaling.kind,
    'factor': scaling.factor,
  }
  if scaling.kind != 'linear':
    tree['original_max_position_embeddings'] = scaling.original_length
  if scaling.kind == 'llama3':
    tree['low_freq_factor'] = scaling.low_frequency_factor
    tree['high_freq_factor'] = scaling.high_frequency_factor
  if scaling.kind == 'yarn':
    tree['beta_fast'] = scaling.beta_fast
    tree['beta_slow'] = scaling.beta_slow
    tree['truncate'] = scaling.truncate
    if scaling.attention_factor is not None:
      tree['attention_factor'] = scaling.attention_factor
  return tree
