"""Score heads of another width than the released one, in and out."""

import jax
import numpy as np
import pytest

from launch import model_card
from metastone_jax.checkpoints import (
  CheckpointManager,
  Pretrained,
  export_folder,
  tensor_reader,
  write_folder,
)
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder
from tests.checkpoints.huggingface import parts

UNITS = 10


@pytest.fixture
def source(tmp_path):
  """A published model whose head has UNITS hidden units."""
  import torch

  folder = tmp_path / 'source'
  folder.mkdir()
  parts.save_folder(folder, 'qwen2')
  head = parts.torch_score_module(units=UNITS)
  torch.save(head.state_dict(), folder / 'score_module.pt')
  return folder


def _export(folder, out):
  config, params = parts.load(folder)
  export_folder(out, config, tensor_reader(params), dtype='float32')
  return config, params


def test_the_file_says_its_width_and_torch_gives_the_same_scores(source):
  import torch

  config, params = parts.load(source)
  assert config.score_width == UNITS
  token, real = parts.prompts()
  _, feature, step_logit = parts.forward(
    config, params, token, real.astype(np.int32)
  )
  with torch.no_grad():
    head = parts.torch_score_module(units=UNITS)
    want = head(torch.tensor(feature))[..., 0].numpy()
  np.testing.assert_allclose(step_logit, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('file', ['safetensors', 'pt'])
def test_it_survives_export_and_load(source, tmp_path, file):
  import torch

  out = tmp_path / 'out'
  config, params = _export(source, out)
  other = {'safetensors': 'pt', 'pt': 'safetensors'}[file]
  (out / f'score_module.{other}').unlink()
  again, got = parts.load(out)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, got, params)
  if file == 'pt':
    parts.torch_score_module(units=UNITS).load_state_dict(
      torch.load(out / 'score_module.pt', weights_only=True)
    )
    card = model_card.write(tmp_path, config, 0, {})
    assert f'Linear({parts.D}, {UNITS})' in card


def test_the_released_width_stays_unsaid(tmp_path):
  parts.save_folder(tmp_path, 'qwen2')
  with Pretrained(tmp_path) as pretrained:
    assert pretrained.config.score_width is None
    assert pretrained.configure(score_width=2 * parts.D).score_units == 48
    with pytest.raises(UserError, match='score_width=10, but .* have 48'):
      pretrained.configure(score_width=10)


def test_a_fresh_head_has_the_width_that_is_asked_for(tmp_path):
  parts.save_folder(tmp_path, 'qwen2', head=False)
  _, params = parts.load(tmp_path, score_width=UNITS)
  assert params['score_head']['hidden_kernel'].shape == (parts.D, UNITS)


@pytest.mark.parametrize('trained', [False, True])
def test_folders_of_ours(source, tmp_path, trained):
  """A head nobody trained may be replaced by one of another width."""
  config, params = parts.load(source)
  root = tmp_path / 'ours'
  with CheckpointManager(root / 'checkpoints') as manager:
    manager.save(0, {'train': {'params': params}}, {'phase': 'ingested'})
  write_folder(root, config, {}, trained_score_head=trained)
  again, got = parts.load(root)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, got, params)
  if trained:
    with pytest.raises(UserError, match='score_width=12, but .* have 10'):
      parts.load(root, score_width=12)
    return
  _, got = parts.load(root, score_width=12)
  assert got['score_head']['hidden_kernel'].shape == (parts.D, 12)
  np.testing.assert_array_equal(got['embedding'], params['embedding'])


def test_a_given_head_replaces_that_of_a_folder_of_ours(source, tmp_path):
  config, params = parts.load(source)
  root = tmp_path / 'ours'
  with CheckpointManager(root / 'checkpoints') as manager:
    manager.save(0, {'train': {'params': params}}, {'phase': 'ingested'})
  write_folder(root, config, {})
  import torch

  head = parts.torch_score_module(units=7)
  torch.save(head.state_dict(), tmp_path / 'other.pt')
  with Pretrained(root, score_module_path=tmp_path / 'other.pt') as opened:
    assert opened.config.score_width == 7
    got = opened.load(opened.config, Sharder())['score_head']
  np.testing.assert_array_equal(
    np.asarray(got['hidden_kernel']).T, head[0].weight.detach().numpy()
  )
