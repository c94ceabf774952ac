"""A .gguf file as a pretrained model: Hugging Face names, layout and config.

Architectures llama, qwen2 and qwen3. Tensors are float32, dequantised as they
are read; only the rows that a slice needs are. What changes the mathematics
and has no place in config.json is refused by name, never ignored.
"""

import functools
import json
import math
import re
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.checkpoints.huggingface import gguf_tokenizer
from metastone_jax.checkpoints.huggingface.gguf_file import GGUFFile
from metastone_jax.checkpoints.huggingface.source import (
  TensorInfo,
  TensorSource,
)
from metastone_jax.errors import UserError

_CLASSES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
_NAMES = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER_NAMES = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_LAYER_TENSOR = re.compile(r'blk\.(\d+)\.(\w+)\.(weight|bias)')
_ROPE_FACTORS = 'rope_freqs.weight'

# Keys below the architecture's name that are translated, or say nothing that
# the computation needs. Any other key with a value that is not "off" may
# change the result (experts, soft-capping, scales, windows): refused.
_KNOWN_KEYS = frozenset(
  {
    'attention.causal',
    'attention.head_count',
    'attention.head_count_kv',
    'attention.key_length',
    'attention.layer_norm_rms_epsilon',
    'attention.value_length',
    'block_count',
    'context_length',
    'embedding_length',
    'feed_forward_length',
    'rope.dimension_count',
    'rope.freq_base',
    'rope.scale_linear',
    'rope.scaling.factor',
    'rope.scaling.finetuned',
    'rope.scaling.original_context_length',
    'rope.scaling.type',
    'rope.scaling.yarn_beta_fast',
    'rope.scaling.yarn_beta_slow',
    'tensor_data_layout',
    'vocab_size',
  }
)
# Values that mean "as if the key were absent", besides 0, false and ''.
_NEUTRAL = {
  'rope.scaling.attn_factor': (1.0,),
  'rope.scaling.yarn_attn_factor': (1.0,),
  'rope.scaling.yarn_ext_factor': (1.0, -1.0),
}
# Of every published Llama 3.x: low and high frequency factor, context before.
_LLAMA3 = (1.0, 4.0, 8192)
_AGAIN = 'convert the model again with a current llama.cpp'


class GGUFSource(TensorSource):
  """A pretrained model in one .gguf file; a context manager.

  `tensors` holds what the file holds; a tensor that no name is known for keeps
  its GGUF name. `files` is built on first use, and then raises UserError where
  the tokenizer is of a kind that cannot be rebuilt as a tokenizer.json.
  """

  def __init__(self, path: epath.PathLike, *, tokenizer: bool = True):
    """Opens a file; reads no weights yet.

    Args:
      path: the .gguf file.
      tokenizer: False leaves the tokenizer out of `files`, for a run that
        takes it from elsewhere.

    Raises:
      UserError: no GGUF file, a damaged one, an architecture or feature that
        is not supported, a missing key, or no `gguf` package.
    """
    self._file = GGUFFile(path)
    self.name = self._file.name
    self._with_tokenizer = tokenizer
    try:
      self._architecture = self._check_architecture()
      self.config = self._config()
      self._stored: dict[str, str] = {}  # Hugging Face name -> GGUF name
      self.tensors: dict[str, TensorInfo] = {}
      for stored, entry in self._file.entries.items():
        if stored == _ROPE_FACTORS:
          continue  # it is rope_scaling in the config
        name = hugging_face_name(stored)
        if name in self._stored:
          raise UserError(
            f'{self.name}: {stored} and {self._stored[name]} are the same '
            f'tensor {name}: {_AGAIN}'
          )
        self._stored[name] = stored
        self.tensors[name] = TensorInfo(entry.shape, np.dtype(np.float32))
        self._check_heads(stored)
    except BaseException:
      self._file.close()
      raise

  @functools.cached_property
  def files(self) -> dict[str, bytes]:
    """config.json and, from the metadata, tokenizer and generation files."""
    found = {'config.json': json.dumps(self.config, indent=2).encode()}
    if self._with_tokenizer:
      found |= gguf_tokenizer.tokenizer_files(self._file.metadata, self.name)
    return found

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """A tensor, or the part of it that `index` (one slice a dimension) names.

    Returns:
      float32; only the rows in the slice of the first dimension (in the llama
      architecture whole heads of q and k) are read and dequantised.

    Raises:
      UserError: the file ends inside the tensor.
    """
    stored = self._stored[name]
    entry = self._file.entries[stored]
    rest = (slice(None),) if index is None else tuple(index)
    heads = self._interleaved_heads(stored)
    if len(entry.shape) == 1:
      whole = self._file.rows(stored, 0, 1)[0]
      return (_uninterleave(whole, heads) if heads else whole)[rest]
    first, *rest = rest
    start, stop, step = first.indices(entry.shape[0])
    if step != 1:
      raise ValueError(f'slices have step 1, not {step}')
    stop = max(start, stop)
    unit = entry.shape[0] // heads if heads else 1  # rows that go together
    low, high = start // unit * unit, -(-stop // unit) * unit
    inner = math.prod(entry.shape[1:-1])
    part = self._file.rows(stored, low * inner, high * inner)
    part = part.reshape(high - low, *entry.shape[1:])
    if heads:
      part = _uninterleave(part, (high - low) // unit)
    return part[(slice(start - low, stop - low), *rest)]

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _interleaved_heads(self, stored: str) -> int:
    """Heads of a tensor whose rows are in the order of interleaved RoPE, or 0.

    llama.cpp rotates neighbouring elements in the llama architecture, so its
    converter reorders the rows of q and k; in qwen2 and qwen3 it does not.
    """
    match = _LAYER_TENSOR.fullmatch(stored)
    if self._architecture != 'llama' or not match:
      return 0
    key = {'attn_q': 'num_attention_heads', 'attn_k': 'num_key_value_heads'}
    return self.config[key[match[2]]] if match[2] in key else 0

  def _check_heads(self, stored: str) -> None:
    heads = self._interleaved_heads(stored)
    rows = self._file.entries[stored].shape[0]
    if heads and rows != heads * self.config['head_dim']:
      raise UserError(
        f'{self.name}: {stored} has {rows} rows, not {heads} heads of '
        f'{self.config["head_dim"]}: {_AGAIN}'
      )

  def _check_architecture(self) -> str:
    metadata = self._file.metadata
    found = metadata.get('general.architecture')
    if not isinstance(found, str) or found not in _CLASSES:
      raise UserError(
        f'{self.name}: general.architecture={found!r} is not supported; use a '
        f'model of architecture {", ".join(_CLASSES)}'
      )
    parts = metadata.get('split.count', 1)
    if isinstance(parts, int) and parts > 1:
      raise UserError(
        f'{self.name} is one of {parts} parts; join them first with: '
        'llama-gguf-split --merge FIRST_PART WHOLE.gguf'
      )
    for key, value in metadata.items():
      name = key.removeprefix(f'{found}.')
      off = name == key or not value or value in _NEUTRAL.get(name, ())
      if name not in _KNOWN_KEYS and not off:
        raise UserError(
          f'{self.name}: {key}={value!r:.60} is not supported; use the '
          "model's Hugging Face folder if its config.json is"
        )
    if metadata.get(f'{found}.attention.causal') is False:
      raise UserError(
        f'{self.name}: {found}.attention.causal=false is not supported: this '
        'model does not generate text'
      )
    return found

  def _get(self, key: str, kind: type = int, default: Any = None) -> Any:
    """A key of the architecture: a number above 0, or a text."""
    full = f'{self._architecture}.{key}'
    value = self._file.metadata.get(full, default)
    if value is None:
      raise UserError(f'{self.name}: the key {full} is missing: {_AGAIN}')
    right = isinstance(value, (int, float) if kind is float else kind)
    if (
      not right
      or isinstance(value, bool)
      or (kind is not str and not value > 0)
    ):
      raise UserError(
        f'{self.name}: {full}={value!r:.60} must be a single '
        f'{"text" if kind is str else "number above 0"}: {_AGAIN}'
      )
    return kind(value)

  def _config(self) -> dict[str, Any]:
    """The config.json that says what the metadata says."""
    family, entries = self._architecture, self._file.entries
    if 'token_embd.weight' not in entries:
      raise UserError(
        f'{self.name} has no tensor token_embd.weight; give a whole model, '
        'not an adapter or a part of one'
      )
    width = self._get('embedding_length')
    heads = self._get('attention.head_count')
    head_dim = self._get('attention.key_length', default=width // heads)
    for key in ('attention.value_length', 'rope.dimension_count'):
      if (found := self._get(key, default=head_dim)) != head_dim:
        raise UserError(
          f'{self.name}: {family}.{key}={found} differs from the head width '
          f'{head_dim}, which is not supported; use another model'
        )
    if head_dim % 2:
      raise UserError(
        f'{self.name}: the head width {head_dim} is odd, which rotary position '
        f'embeddings cannot be: {_AGAIN}'
      )
    theta = self._get('rope.freq_base', float, default=10_000.0)
    config = {
      'architectures': [_CLASSES[family]],
      'model_type': family,
      # The rows there are; the tokenizer may have fewer tokens.
      'vocab_size': entries['token_embd.weight'].shape[0],
      'hidden_size': width,
      'intermediate_size': self._get('feed_forward_length'),
      'num_hidden_layers': self._get('block_count'),
      'num_attention_heads': heads,
      'num_key_value_heads': self._get('attention.head_count_kv', int, heads),
      'head_dim': head_dim,
      'hidden_act': 'silu',
      'rms_norm_eps': self._get('attention.layer_norm_rms_epsilon', float),
      'rope_theta': theta,
      'max_position_embeddings': self._get('context_length'),
      'tie_word_embeddings': 'output.weight' not in entries,
      'attention_dropout': 0.0,
      'use_cache': True,
      'torch_dtype': 'float32',
    }
    # The biases of qwen2 go without saying; read_config refuses all others.
    if family != 'qwen2':
      config['attention_bias'] = any(
        re.fullmatch(r'blk\.\d+\.attn_\w+\.bias', name) for name in entries
      )
    if family == 'llama':
      config['mlp_bias'] = any(
        re.fullmatch(r'blk\.\d+\.ffn_\w+\.bias', name) for name in entries
      )
    else:
      config['use_sliding_window'] = False
    if scaling := self._rope_scaling(theta, head_dim):
      config['rope_scaling'] = scaling
    ids = gguf_tokenizer.special_ids(self._file.metadata)
    return config | {f'{name}_token_id': token for name, token in ids.items()}

  def _rope_scaling(self, theta: float, width: int) -> dict[str, Any] | None:
    """`rope_scaling` of config.json, or None."""
    prefix = f'{self._architecture}.rope'
    factor = 1.0
    for key in ('rope.scale_linear', 'rope.scaling.factor'):
      # 0 means "none" in llama.cpp.
      if self._file.metadata.get(f'{self._architecture}.{key}'):
        factor = self._get(key, float)
    # llama.cpp takes a factor without a type for a linear one.
    kind = self._get('rope.scaling.type', str, default='linear')
    if kind not in ('none', 'linear', 'yarn'):
      raise UserError(
        f'{self.name}: {prefix}.scaling.type={kind!r} is not supported; '
        'supported: none, linear, yarn'
      )
    scaled = kind == 'yarn' or (kind == 'linear' and factor != 1.0)
    if _ROPE_FACTORS in self._file.entries:
      factors = self._file.rows(_ROPE_FACTORS, 0, 1)[0]
      if not np.all(factors == 1.0):
        return self._llama3_scaling(factors, theta, width, scaled)
    if not scaled:
      return None
    scaling = {'rope_type': kind, 'factor': factor}
    if kind == 'yarn':
      scaling['original_max_position_embeddings'] = self._get(
        'rope.scaling.original_context_length',
        default=self._get('context_length'),
      )
      for ours, theirs in (
        ('beta_fast', 'rope.scaling.yarn_beta_fast'),
        ('beta_slow', 'rope.scaling.yarn_beta_slow'),
      ):
        if f'{self._architecture}.{theirs}' in self._file.metadata:
          scaling[ours] = self._get(theirs, float)
    return scaling

  def _llama3_scaling(self, factors, theta, width, scaled) -> dict[str, Any]:
    """The Llama 3 scaling that made a tensor of RoPE factors.

    llama.cpp stores what each frequency is divided by, not the four numbers it
    came from: the largest is the factor, the others are those of Llama 3.x,
    and the result is compared with the tensor.
    """
    low, high, original = _LLAMA3
    factor = float(factors.max())
    turns = original * theta ** (-np.arange(0, width, 2) / width) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    same = factors.shape == expected.shape and np.allclose(
      factors, expected, rtol=1e-4, atol=0
    )
    if scaled or not same:
      raise UserError(
        f'{self.name}: {_ROPE_FACTORS} is not the scaling of Llama 3.x '
        f'(factors {low:g} and {high:g} over {original} positions) alone; use '
        "the model's Hugging Face folder"
      )
    return {
      'rope_type': 'llama3',
      'factor': factor,
      'low_freq_factor': low,
      'high_freq_factor': high,
      'original_max_position_embeddings': original,
    }


def hugging_face_name(stored: str) -> str:
  """The Hugging Face name of a tensor; an unknown name is returned as it is."""
  match = _LAYER_TENSOR.fullmatch(stored)
  if match and match[2] in _LAYER_NAMES:
    return f'model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}'
  return _NAMES.get(stored, stored)


def _uninterleave(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows of whole heads from interleaved RoPE order to half-split order.

  Row 2 i + j of a head (element j of rotated pair i) becomes row
  j * (head / 2) + i. Source: `permute` of llama.cpp's convert_hf_to_gguf.py,
  whose inverse this is.
  """
  pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
