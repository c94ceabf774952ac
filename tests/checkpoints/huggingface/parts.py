"""Random small models of transformers, as folders, for the tests beside."""

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import Pretrained
from metastone_jax.model import ReflectiveModel
from metastone_jax.parallel import Sharder
from tests import quick

V, D, L, H, K, h, F = 47, 24, 3, 4, 2, 6, 40

YARN = dict(
  rope_type='yarn',
  rope_theta=1000.0,
  factor=4.0,
  original_max_position_embeddings=64,
)
LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=1000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=64,
)
# name -> (family, options of its config class)
MODELS = {
  'qwen2': ('qwen2', {}),
  'qwen2_tied': ('qwen2', dict(tie_word_embeddings=True)),
  'qwen2_yarn': (
    'qwen2',
    dict(rope_parameters=YARN, max_position_embeddings=256),
  ),
  'qwen3': ('qwen3', dict(head_dim=10)),
  'qwen3_tied': ('qwen3', dict(head_dim=h, tie_word_embeddings=True)),
  'llama': ('llama', {}),
  'llama3': (
    'llama',
    dict(rope_parameters=LLAMA3, max_position_embeddings=512),
  ),
}


def transformers_model(name: str, **options):
  """A random model whose every weight differs from its start."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  family, more = MODELS[name]
  prefix = {'qwen2': 'Qwen2', 'qwen3': 'Qwen3', 'llama': 'Llama'}[family]
  torch.manual_seed(0)
  config = getattr(transformers, f'{prefix}Config')(
    **{
      'vocab_size': V,
      'hidden_size': D,
      'num_hidden_layers': L,
      'num_attention_heads': H,
      'num_key_value_heads': K,
      'intermediate_size': F,
      'max_position_embeddings': 128,
      'rms_norm_eps': 1e-5,
      'pad_token_id': 0,
      'bos_token_id': 1,
      'eos_token_id': 2,
      'attn_implementation': 'eager',
      **more,
      **options,
    }
  )
  model = getattr(transformers, f'{prefix}ForCausalLM')(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def torch_score_module(width: int = D, seed: int = 1, units: int | None = None):
  """The released head, as the released code builds it (2 x width units)."""
  torch = pytest.importorskip('torch')
  torch.manual_seed(seed)
  return torch.nn.Sequential(
    torch.nn.Linear(width, units or 2 * width),
    torch.nn.ReLU(),
    torch.nn.Dropout(0.5),
    torch.nn.Linear(units or 2 * width, 1),
  ).eval()


def save_folder(path, name='qwen2', *, dtype='float32', head=True, **options):
  """Saves a random model (and head) as transformers does; returns it."""
  import torch

  model = transformers_model(name, **options)
  model = model.to(getattr(torch, dtype))
  model.save_pretrained(path)
  if head:
    torch.save(torch_score_module().state_dict(), path / 'score_module.pt')
  return model


def load(path, sharder=None, **choices):
  """(config, params) of a folder."""
  with Pretrained(path) as pretrained:
    config = pretrained.configure(**choices)
    return config, pretrained.load(config, sharder or Sharder())


def forward(config, params, token_BT, segment_BT):
  """(logits, feature, step logits) of our model as numpy arrays."""

  @quick.jit
  def run(params):
    model = ReflectiveModel.bind(config, params)
    position = np.broadcast_to(
      np.arange(token_BT.shape[1], dtype=np.int32), token_BT.shape
    )
    hidden, feature, _ = model(
      token_BT, position, segment_BT, sharder=Sharder()
    )
    return model.logits(hidden), feature, model.score(feature)

  return jax.tree.map(np.asarray, run(params))


def prompts(length=13, vocab=V):
  """Three prompts of unequal length: tokens and which of them are real."""
  rng = np.random.default_rng(0)
  length_B = np.array([length, length // 2, 1])
  token_BT = rng.integers(0, vocab, (3, length)).astype(np.int32)
  real_BT = np.arange(length)[None] < length_B[:, None]
  return token_BT, real_BT
