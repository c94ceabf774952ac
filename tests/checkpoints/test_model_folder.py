"""Folders of ours: written, read, and laid out anew."""

import dataclasses

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import (
  CheckpointManager,
  Pretrained,
  write_folder,
)
from metastone_jax.errors import UserError
from metastone_jax.model import init_params, preset
from metastone_jax.parallel import Sharder, make_mesh

CONFIG = preset(
  'tiny',
  vocab_size=37,
  width=16,
  num_layers=4,
  num_heads=2,
  num_kv_heads=1,
  head_width=8,
  feed_forward=32,
  tied_embeddings=False,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """(folder, parameters): a bfloat16 backbone and a float32 head."""
  root = tmp_path_factory.mktemp('ours') / 'model'
  config = dataclasses.replace(CONFIG, param_dtype='bfloat16')
  params = init_params(config, jax.random.key(0))
  params['score_head'] = init_params(CONFIG, jax.random.key(1))['score_head']
  with CheckpointManager(root / 'checkpoints') as manager:
    manager.save(0, {'train': {'params': params}}, {'phase': 'ingested'})
  write_folder(root, config, {'a.txt': b'x'}, trained_score_head=False)
  return root, jax.tree.map(np.asarray, params)


def test_what_was_written_is_read(folder):
  root, params = folder
  with Pretrained(root) as pretrained:
    assert pretrained.is_ours and not pretrained.has_score_head()
    assert pretrained.files == {'a.txt': b'x'}
    assert pretrained.source_dtype == 'bfloat16'
    got = pretrained.load(pretrained.config, Sharder(), head_dtype='float32')
  for want, found in zip(
    jax.tree.leaves(params), jax.tree.leaves(got), strict=True
  ):
    assert want.dtype == found.dtype
    np.testing.assert_array_equal(want, found)


@pytest.mark.parametrize('mesh', [None, {'fsdp': 4, 'tensor': 2}])
def test_another_padding_split_and_dtype(folder, mesh):
  root, params = folder
  sharder = Sharder(make_mesh(mesh) if mesh else None)
  with Pretrained(root) as pretrained:
    config = pretrained.configure(
      vocab_multiple=8, feature_layer=2, param_dtype='float32'
    )
    got = jax.tree.map(np.asarray, pretrained.load(config, sharder))
  for name, axis in (('embedding', 0), ('policy_kernel', 1)):
    whole = np.moveaxis(got[name], axis, 0)
    assert whole.dtype == np.float32 and len(whole) == 40
    np.testing.assert_array_equal(
      whole[:37], np.moveaxis(params[name], axis, 0)
    )
    np.testing.assert_array_equal(whole[37:], 0)
  for name, stack in params['low'].items():
    both = np.concatenate([stack, params['high'][name]])
    assert len(got['low'][name]) == len(got['high'][name]) == 2
    np.testing.assert_array_equal(
      np.concatenate([got['low'][name], got['high'][name]]), both
    )


def test_how_a_machine_computes_is_chosen_anew(tmp_path):
  """A model of a TPU pod opens on a CPU, and the other way round."""
  write_folder(
    tmp_path,
    dataclasses.replace(
      CONFIG,
      attention='splash',
      decode_attention='pallas_tpu',
      token_log_prob='pallas_tpu',
      scoring_head='pallas_tpu',
      remat='offload',
    ),
    {},
  )
  with Pretrained(tmp_path) as pretrained:
    assert pretrained.config == CONFIG
    kinds = dict(attention='triton', token_log_prob='pallas_gpu', remat='full')
    assert pretrained.configure(**kinds) == dataclasses.replace(CONFIG, **kinds)


def test_damage_is_named(folder, tmp_path):
  import shutil

  root = tmp_path / 'copy'
  shutil.copytree(folder[0], root)
  (root / 'model.json').write_text('{"model": {}}')
  with pytest.raises(UserError, match='model.json is damaged'):
    Pretrained(root)
