"""Folders of transformers against transformers: logits, features, scores."""

import json

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import Pretrained, export_folder, tensor_reader
from metastone_jax.checkpoints.huggingface.safetensors_files import (
  SafetensorsFile,
  SafetensorsFolder,
)
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder, make_mesh
from tests.checkpoints.huggingface import parts


@pytest.mark.parametrize('name', parts.MODELS)
def test_logits_features_and_scores_equal_torch(name, tmp_path):
  model = parts.save_folder(tmp_path, name)
  import torch

  config, params = parts.load(tmp_path)
  # Beyond YaRN's and Llama 3's original 64 positions.
  token, real = parts.prompts(100)
  with torch.no_grad():
    want = model(
      input_ids=torch.tensor(token, dtype=torch.long),
      attention_mask=torch.tensor(real.astype(np.int64)),
      output_hidden_states=True,
    )
    feature = want.hidden_states[-2]
    step_logit = parts.torch_score_module()(feature)[..., 0]
  got = parts.forward(config, params, token, real.astype(np.int32))
  for ours, theirs in zip(got, (want.logits, feature, step_logit), strict=True):
    np.testing.assert_allclose(
      ours[real], theirs.numpy()[real], rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize(
  'name', ['qwen2', 'qwen2_tied', 'qwen2_yarn', 'qwen3', 'llama']
)
def test_greedy_tokens_equal_torch(name, tmp_path):
  model = parts.save_folder(tmp_path, name)
  import torch

  from metastone_jax.sampling import SamplingConfig, sample

  config, params = parts.load(tmp_path)
  prompt = np.arange(3, 12, dtype=np.int32)[None]
  drawn = jax.jit(
    lambda params: sample(
      params,
      prompt,
      np.array([9], np.int32),
      np.int32(0),
      np.zeros(1, np.int32),
      np.zeros(1, np.int32),
      model_config=config,
      config=SamplingConfig(
        max_response_length=64,
        eos_id=-1,  # never: 64 tokens are compared
        pad_id=0,
        step_ids=(5,),
        think_start_id=-1,
        think_end_id=-1,
        temperature=0.0,
      ),
      sharder=Sharder(),
    )
  )(params)
  with torch.no_grad():
    want = model.generate(
      torch.tensor(prompt, dtype=torch.long),
      attention_mask=torch.ones(1, 9, dtype=torch.long),
      max_new_tokens=64,
      min_new_tokens=64,
      do_sample=False,
      eos_token_id=None,
    )
  assert np.asarray(drawn.token_PNR)[0, 0].tolist() == want[0, 9:].tolist()


def test_shards_of_a_mesh_hold_the_same_parameters(tmp_path):
  parts.save_folder(tmp_path, 'qwen2', dtype='bfloat16')
  _, whole = parts.load(tmp_path, vocab_multiple=8)
  sharder = Sharder(make_mesh({'fsdp': 4, 'tensor': 2}))
  config, split = parts.load(tmp_path, sharder, vocab_multiple=8)
  assert config.padded_vocab_size == 48
  jax.tree.map(np.testing.assert_array_equal, whole, split)
  shards = split['embedding'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(24, 6)}
  shards = split['low']['q_kernel'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(2, 6, 2, 6)}


@pytest.mark.parametrize(
  'mesh', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}, {'data': 2, 'fsdp': 4}]
)
def test_each_byte_is_read_once_whatever_the_mesh(mesh, tmp_path, monkeypatch):
  parts.save_folder(tmp_path, 'qwen2', dtype='bfloat16', head=False)
  read, largest = [], []
  plain = SafetensorsFile.read

  def counted(self, name, index=None):
    array = plain(self, name, index)
    read.append(array.nbytes)
    largest.append(array.nbytes)
    return array

  monkeypatch.setattr(SafetensorsFile, 'read', counted)
  parts.load(tmp_path, Sharder(make_mesh(mesh)))
  with SafetensorsFolder(tmp_path) as source:
    sizes = [info.nbytes for info in source.tensors.values()]
  assert sum(read) == sum(sizes)
  assert max(largest) <= max(sizes)


def test_a_head_of_another_layer_is_refused(tmp_path):
  source, out = tmp_path / 'source', tmp_path / 'out'
  source.mkdir()
  parts.save_folder(source, 'qwen2')
  config, params = parts.load(source, feature_layer=1)
  export_folder(out, config, tensor_reader(params), dtype='float32')
  with pytest.raises(UserError, match='set model.feature_layer=1'):
    parts.load(out)
  again, _ = parts.load(out, feature_layer=1)
  assert again.split == 1


def test_vocabulary_padding_changes_nothing(tmp_path):
  parts.save_folder(tmp_path, 'qwen2')
  token, real = parts.prompts()
  segment = real.astype(np.int32)
  plain = parts.forward(*parts.load(tmp_path), token, segment)
  padded = parts.forward(
    *parts.load(tmp_path, vocab_multiple=32), token, segment
  )
  assert padded[0].shape[-1] == 64
  np.testing.assert_array_equal(plain[0], padded[0][..., : parts.V])
  assert (padded[0][..., parts.V :] < -1e29).all()


def test_the_older_config_style_gives_the_same_model(tmp_path):
  parts.save_folder(tmp_path, 'qwen2_yarn')
  config, _ = parts.load(tmp_path)
  path = tmp_path / 'config.json'
  tree = json.loads(path.read_text())
  rope = tree.pop('rope_parameters')
  tree['rope_theta'] = rope.pop('rope_theta')
  tree['rope_scaling'] = {'type': rope.pop('rope_type'), **rope}
  for name in ('layer_types', 'head_dim'):
    tree.pop(name, None)
  path.write_text(json.dumps(tree))
  again, _ = parts.load(tmp_path)
  assert again == config
  assert config.rope_scaling.kind == 'yarn'


def test_a_fresh_head_depends_on_the_seed(tmp_path):
  parts.save_folder(tmp_path, head=False)
  with Pretrained(tmp_path) as pretrained:
    assert not pretrained.has_score_head()
    heads = [
      pretrained.load(pretrained.config, Sharder(), seed=seed)['score_head']
      for seed in (0, 0, 1)
    ]
  kernels = [np.asarray(head['hidden_kernel']) for head in heads]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert (kernels[0] != kernels[2]).all()
  assert np.abs(kernels[0]).max() <= parts.D**-0.5


def _edit(path, **changes):
  tree = json.loads(path.read_text())
  tree.update(changes)
  path.write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))


def _truncate(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:50])


def _not_safetensors(folder):
  (folder / 'model.safetensors').write_bytes(b'version https://git-lfs')


def _only_bin(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def _missing_shard(folder):
  index = {'weight_map': {'a': 'model.safetensors', 'b': 'gone.safetensors'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def _head_of_another_width(folder):
  import torch

  torch.save(
    parts.torch_score_module(parts.D + 2).state_dict(),
    folder / 'score_module.pt',
  )


def _whole_module(folder):
  import torch

  torch.save(parts.torch_score_module(), folder / 'score_module.pt')


def _list_of_numbers(folder):
  import torch

  torch.save([1, 2], folder / 'score_module.pt')


def _text_file(folder):
  (folder / 'score_module.pt').write_text('no pickle')


def _damaged_pickle(folder):
  path = folder / 'score_module.pt'
  path.write_bytes(path.read_bytes()[:300])


def _head_without_bias(folder):
  import torch

  state = parts.torch_score_module().state_dict()
  del state['3.bias']
  torch.save(state, folder / 'score_module.pt')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_truncate, r'model.safetensors is truncated: tensor .* copy it again'),
    (_cut_header, r'truncated inside its header'),
    (_not_safetensors, r'is no safetensors file'),
    (_only_bin, r'as .bin or .pt only.*save_pretrained'),
    (_missing_shard, r'gone.safetensors is missing \(1 of 2 shards'),
    (_head_of_another_width, r'0.weight has shape .*another width'),
    (_whole_module, r'no plain state dict.*can run code'),
    (_list_of_numbers, r'holds a list, not a state dict'),
    (_text_file, r'score_module.pt is no plain state dict'),
    (_damaged_pickle, r'score_module.pt is no plain state dict'),
    (_head_without_bias, r'has no 3.bias'),
    (
      lambda f: _edit(f / 'config.json', vocab_size=50),
      r'embed_tokens.weight has shape \(47, 24\).*vocab_size=50',
    ),
    (
      lambda f: _edit(f / 'config.json', num_hidden_layers=4),
      r'has no tensor model.layers.3.input_layernorm.weight',
    ),
    (
      lambda f: _edit(f / 'config.json', num_hidden_layers=2),
      r'unexpected tensor model.layers.2',
    ),
    (
      lambda f: _edit(f / 'config.json', tie_word_embeddings=True),
      r'lm_head.weight of its own.*tie_word_embeddings',
    ),
    (
      lambda f: _edit(f / 'config.json', model_type='mamba'),
      r"model_type='mamba' is not supported; use .* qwen2, qwen3, llama",
    ),
    (
      lambda f: _edit(f / 'config.json', hidden_size=None),
      r'hidden_size=None must be a whole number',
    ),
    (
      lambda f: _edit(
        f / 'config.json',
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
        layer_types=None,
      ),
      r'sliding_window=16.*use_sliding_window to false',
    ),
    (
      lambda f: _edit(
        f / 'config.json', layer_types=['full_attention', 'sliding_attention']
      ),
      r'sliding-window attention',
    ),
    (
      lambda f: _edit(
        f / 'config.json',
        rope_parameters=dict(rope_type='longrope', rope_theta=1.0),
      ),
      r"rope_type='longrope' is not supported",
    ),
    (
      lambda f: _edit(f / 'config.json', quantization_config={'bits': 4}),
      r'quantization_config is set',
    ),
    (lambda f: (f / 'config.json').unlink(), r'config.json does not exist'),
    (lambda f: (f / 'config.json').write_text('{'), r'is no JSON object'),
  ],
  ids=lambda value: getattr(value, '__name__', 'x').strip('_<>'),
)
def test_bad_folders_are_refused_by_name(damage, message, tmp_path):
  parts.save_folder(tmp_path, 'qwen2')
  damage(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    parts.load(tmp_path)
  assert '\n' not in str(caught.value)


def test_a_head_of_parameters_is_a_state_dict_too(tmp_path):
  import torch

  parts.save_folder(tmp_path, 'qwen2')
  _, want = parts.load(tmp_path)
  module = parts.torch_score_module()
  torch.save(dict(module.named_parameters()), tmp_path / 'score_module.pt')
  _, got = parts.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  with Pretrained(tmp_path) as pretrained:
    assert pretrained.has_score_head()
  with pytest.raises(UserError, match='no score head file /gone'):
    Pretrained(tmp_path, score_module_path='/gone')


def test_what_the_weights_fix_cannot_be_chosen(tmp_path):
  parts.save_folder(tmp_path, 'qwen2')
  with Pretrained(tmp_path) as pretrained:
    with pytest.raises(UserError, match='model.width=32, but the weights'):
      pretrained.configure(width=32)
    with pytest.raises(UserError, match='model.depth is no model option'):
      pretrained.configure(depth=2)
    assert pretrained.configure(remat='full').remat == 'full'
  with pytest.raises(UserError, match='there is no .*nowhere'):
    Pretrained(tmp_path / 'nowhere')
