"""Folder -> our parameters -> folder: bit-equal, and what torch makes of it."""

import errno
import json
import logging

import numpy as np
import pytest

from metastone_jax.checkpoints import export_folder, tensor_reader
from metastone_jax.checkpoints.huggingface.safetensors_files import (
  SafetensorsFolder,
)
from metastone_jax.errors import UserError
from metastone_jax.telemetry import files
from tests.checkpoints.huggingface import parts


def _round_trip(tmp_path, name='qwen2', dtype='float32', **options):
  source, out = tmp_path / 'source', tmp_path / 'out'
  source.mkdir()
  model = parts.save_folder(source, name, dtype=dtype)
  config, params = parts.load(source, vocab_multiple=8)
  with SafetensorsFolder(source) as opened:
    carried = opened.files
  export_folder(
    out, config, tensor_reader(params), dtype=dtype, files=carried, **options
  )
  return source, out, model, config, params


def _tensors(folder):
  with SafetensorsFolder(folder) as source:
    return {name: source.read(name) for name in source.tensors}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', ['qwen2', 'qwen2_tied', 'qwen3', 'llama3'])
def test_round_trip_is_bit_equal(name, dtype, tmp_path):
  import torch

  source, out, _, _, _ = _round_trip(tmp_path, name, dtype)
  before, after = _tensors(source), _tensors(out)
  assert before.keys() == after.keys()
  for key, value in before.items():
    assert after[key].dtype == value.dtype
    np.testing.assert_array_equal(
      after[key].view(np.uint8), value.view(np.uint8), err_msg=key
    )
  old = torch.load(source / 'score_module.pt', weights_only=True)
  new = torch.load(out / 'score_module.pt', weights_only=True)
  assert list(new) == ['0.weight', '0.bias', '3.weight', '3.bias']
  for key, value in old.items():
    torch.testing.assert_close(new[key], value, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['qwen2_tied', 'qwen2_yarn', 'qwen3', 'llama'])
def test_transformers_loads_the_export_without_a_warning(
  name, tmp_path, caplog, monkeypatch
):
  import torch
  import transformers

  _, out, model, _, _ = _round_trip(tmp_path, name)
  caplog.set_level('WARNING', 'transformers')
  # transformers keeps its records to itself.
  monkeypatch.setattr(logging.getLogger('transformers'), 'propagate', True)
  loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
    out, output_loading_info=True
  )
  assert not any(info.values()), info
  assert not [record.getMessage() for record in caplog.records]
  token = torch.arange(3, 15)[None]
  with torch.no_grad():
    torch.testing.assert_close(
      loaded.eval()(token).logits, model(token).logits, rtol=0, atol=1e-6
    )


def test_a_model_from_scratch_exports_for_transformers(tmp_path):
  """No config.json to carry over: the one written here must say it all."""
  import torch
  import transformers

  for name in ('qwen2_yarn', 'qwen3', 'llama3'):
    source, out = tmp_path / name, tmp_path / f'{name}-out'
    source.mkdir()
    model = parts.save_folder(source, name)
    config, params = parts.load(source)
    export_folder(out, config, tensor_reader(params), dtype='float32')
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    token = torch.arange(100)[None] % parts.V
    with torch.no_grad():
      torch.testing.assert_close(
        loaded(token).logits, model(token).logits, rtol=0, atol=1e-5
      )


def test_the_released_sequential_gives_the_same_scores(tmp_path):
  import torch

  _, out, _, config, params = _round_trip(tmp_path)
  module = torch.nn.Sequential(
    torch.nn.Linear(parts.D, 2 * parts.D),
    torch.nn.ReLU(),
    torch.nn.Dropout(0.5),
    torch.nn.Linear(2 * parts.D, 1),
  ).eval()
  module.load_state_dict(torch.load(out / 'score_module.pt', weights_only=True))
  token, real = parts.prompts()
  _, feature, step_logit = parts.forward(
    config, params, token, real.astype(np.int32)
  )
  with torch.no_grad():
    want = module(torch.from_numpy(feature))[..., 0].numpy()
  np.testing.assert_allclose(step_logit, want, rtol=1e-5, atol=1e-5)
  import safetensors.numpy

  safe = safetensors.numpy.load_file(out / 'score_module.safetensors')
  assert (safe['0.weight'] == module[0].weight.detach().numpy()).all()


def test_shards_have_an_index_that_transformers_reads(tmp_path):
  import transformers

  source, out, model, _, _ = _round_trip(tmp_path, shard_bytes=20_000)
  index = json.loads((out / 'model.safetensors.index.json').read_text())
  names = sorted(set(index['weight_map'].values()))
  assert len(names) > 2
  assert all((out / name).exists() for name in names)
  before, after = _tensors(source), _tensors(out)
  for key, value in before.items():
    np.testing.assert_array_equal(after[key], value)
  transformers.AutoModelForCausalLM.from_pretrained(out)


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
  source, out = tmp_path / 'source', tmp_path / 'out'
  source.mkdir()
  parts.save_folder(source)
  config, params = parts.load(source)
  whole = tensor_reader(params)

  def full_disk(tensor):
    if tensor.layer == 1:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return whole(tensor)

  with pytest.raises(UserError, match=r'disk of .*out is full: nothing was'):
    export_folder(out, config, full_disk, dtype='float32')
  assert [path.name for path in tmp_path.iterdir()] == ['source']

  def killed(tensor):
    if tensor.layer == 1:
      raise KeyboardInterrupt
    return whole(tensor)

  with pytest.raises(KeyboardInterrupt):
    export_folder(out, config, killed, dtype='float32')
  assert not out.exists()
  # kill -9 leaves the unfinished folder under its other name; the next export
  # replaces it.
  left = tmp_path / '.out.incomplete'
  left.mkdir()
  (left / 'old').write_text('')
  export_folder(out, config, whole, dtype='float32')
  assert not left.exists() and not (out / 'old').exists()
  with pytest.raises(UserError, match='exists already; give .* --overwrite'):
    export_folder(out, config, whole)
  export_folder(out, config, whole, overwrite=True)
  # Somebody's work is never replaced.
  with pytest.raises(UserError, match='exists already and is no export'):
    export_folder(source, config, whole, overwrite=True)
  (out / 'model.json').write_text('{}')
  with pytest.raises(UserError, match='exists already and is no export'):
    export_folder(out, config, whole, overwrite=True)
  (out / 'model.json').unlink()
  assert json.loads((out / 'config.json').read_text())['torch_dtype'] == (
    'bfloat16'
  )
  with pytest.raises(UserError, match='--dtype=int8'):
    export_folder(tmp_path / 'x', config, whole, dtype='int8')


def test_config_json_is_written_last(tmp_path, monkeypatch):
  """On gs:// there is no rename: what is unfinished must not load."""
  source, out = tmp_path / 'source', tmp_path / 'out'
  source.mkdir()
  parts.save_folder(source)
  config, params = parts.load(source)
  monkeypatch.setattr(files, 'is_remote', lambda path: True)
  whole = tensor_reader(params)
  seen = []

  def read(tensor):
    seen.append((out / 'config.json').exists())
    return whole(tensor)

  export_folder(out, config, read, dtype='float32')
  assert not any(seen) and (out / 'config.json').exists()
