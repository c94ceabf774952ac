"""Equal to transformers on random small Qwen2 and Qwen3 models."""

import jax
import numpy as np
import pytest

from metastone_jax.model import ModelConfig, ReflectiveModel
from metastone_jax.parallel import Sharder
from tests import quick
from tests.model import naive

V, D, L, H, K, h, F = 37, 24, 3, 4, 2, 6, 40


def hugging_face_model(family, tied):
  """A random transformers model whose every weight differs from its start."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  config_class, model_class = {
    'qwen2': (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    'qwen3': (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
  }[family]
  torch.manual_seed(0)
  options = dict(head_dim=h) if family == 'qwen3' else {}
  model = model_class(
    config_class(
      vocab_size=V,
      hidden_size=D,
      num_hidden_layers=L,
      num_attention_heads=H,
      num_key_value_heads=K,
      intermediate_size=F,
      max_position_embeddings=64,
      rms_norm_eps=1e-5,
      tie_word_embeddings=tied,
      attn_implementation='eager',
      **options,
    )
  )
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def params_of(model, config):
  """Our parameters from a transformers state dict."""
  state = {k: v.detach().numpy() for k, v in model.state_dict().items()}

  def layer(i):
    def get(name):
      return state[f'model.layers.{i}.{name}']

    p = {
      'attention_norm': get('input_layernorm.weight'),
      'feed_forward_norm': get('post_attention_layernorm.weight'),
      'o_kernel': get('self_attn.o_proj.weight').T.reshape(H, h, D),
      'gate_kernel': get('mlp.gate_proj.weight').T,
      'up_kernel': get('mlp.up_proj.weight').T,
      'down_kernel': get('mlp.down_proj.weight').T,
    }
    for name, heads in (('q', H), ('k', K), ('v', K)):
      weight = get(f'self_attn.{name}_proj.weight')
      p[f'{name}_kernel'] = weight.T.reshape(D, heads, h)
      if config.qkv_bias:
        bias = get(f'self_attn.{name}_proj.bias')
        p[f'{name}_bias'] = bias.reshape(heads, h)
    if config.qk_norm:
      p['q_norm'] = get('self_attn.q_norm.weight')
      p['k_norm'] = get('self_attn.k_norm.weight')
    return p

  layers = [layer(i) for i in range(L)]
  low, high = layers[: config.split], layers[config.split :]
  params = {
    'embedding': state['model.embed_tokens.weight'],
    'final_norm': state['model.norm.weight'],
    'low': jax.tree.map(lambda *x: np.stack(x), *low),
    'high': jax.tree.map(lambda *x: np.stack(x), *high),
    'score_head': naive.random_params(config)['score_head'],
  }
  if not config.tied_embeddings:
    params['policy_kernel'] = state['lm_head.weight'].T
  return params


@pytest.mark.parametrize(
  ('family', 'tied'), [('qwen2', False), ('qwen2', True), ('qwen3', True)]
)
def test_logits_and_feature_equal_transformers(family, tied):
  model = hugging_face_model(family, tied)
  import torch

  config = ModelConfig(
    vocab_size=V,
    width=D,
    num_layers=L,
    num_heads=H,
    num_kv_heads=K,
    head_width=h,
    feed_forward=F,
    norm_eps=1e-5,
    qkv_bias=family == 'qwen2',
    qk_norm=family == 'qwen3',
    tied_embeddings=tied,
  )
  params = params_of(model, config)
  rng = np.random.default_rng(0)
  length_B = np.array([11, 7, 1])
  token = rng.integers(0, V, (3, 11)).astype(np.int32)
  real = np.arange(11)[None] < length_B[:, None]
  with torch.no_grad():
    want = model(
      input_ids=torch.tensor(token, dtype=torch.long),
      attention_mask=torch.tensor(real.astype(np.int64)),
      output_hidden_states=True,
    )

  @quick.jit
  def run(params):
    bound = ReflectiveModel.bind(config, params)
    position = np.broadcast_to(np.arange(11, dtype=np.int32), token.shape)
    hidden, feature, _ = bound(
      token, position, real.astype(np.int32), sharder=Sharder()
    )
    return bound.logits(hidden), feature

  logits, feature = run(params)
  np.testing.assert_allclose(
    np.asarray(logits)[real], want.logits.numpy()[real], rtol=2e-4, atol=2e-4
  )
  np.testing.assert_allclose(
    np.asarray(feature)[real],
    want.hidden_states[-2].numpy()[real],
    rtol=2e-4,
    atol=2e-4,
  )
