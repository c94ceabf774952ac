"""Presets, parameter counts, and shapes that cannot be."""

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, abstract_params, preset


def _counts(config):
  params = abstract_params(config)
  head = params.pop('score_head')
  return tuple(
    sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    for tree in (params, head)
  )


@pytest.mark.parametrize('name', ['tiny', '1.5b', '7b', '32b'])
@pytest.mark.parametrize(
  'options',
  [
    dict(),
    dict(qkv_bias=True, qk_norm=True, tied_embeddings=True, feature_layer=2),
    dict(score_width=40),
  ],
  ids=['as it is', 'options', 'score_width'],
)
def test_the_formula_counts_the_actual_parameters(name, options):
  config = preset(name, **options)
  assert _counts(config) == (
    config.num_backbone_parameters,
    config.num_score_parameters,
  )


@pytest.mark.parametrize(
  ('name', 'backbone', 'head'),
  [
    # Backbones: the released checkpoints. Heads: SPEC section 1.
    ('1.5b', 1_777_088_000, 4.72e6),
    ('7b', 7_615_616_512, 25.7e6),
    ('32b', 32_763_876_352, 52.4e6),
  ],
)
def test_published_sizes(name, backbone, head):
  config = preset(name)
  assert config.num_backbone_parameters == backbone
  assert round(config.num_score_parameters / head, 2) == 1


def test_a_mark_costs_two_operations_a_weight_of_the_head():
  """And none of its biases."""
  for options in ({}, dict(score_width=40)):
    config = preset('tiny', **options)
    units = options.get('score_width', 2 * 96)
    assert config.score_units == units
    assert config.num_score_parameters == 96 * units + units + units + 1
    assert config.score_flops(7) == 7 * 2 * (96 * units + units)


def test_tiny_is_about_400_thousand():
  assert 0.35e6 < sum(_counts(preset('tiny'))) < 0.5e6


def test_forward_flops_is_two_per_weight_and_attention():
  """No biases, norms or score head, untied: 2 x weights a token."""
  config = ModelConfig(
    vocab_size=20,
    width=8,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_width=4,
    feed_forward=16,
    qkv_bias=False,
  )
  backbone, _ = _counts(config)
  embedding, norms = 20 * 8, (2 * 3 + 1) * 8
  weights = backbone - embedding - norms
  attention = 3 * 2 * (2 * 4)  # layers x heads x (q.k and p.v) a read position
  want = 2 * 100 * (weights + attention * 50)
  assert config.forward_flops(100, 50) == want


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(num_heads=4, num_kv_heads=3), 'num_kv_heads=3 must divide'),
    (dict(head_width=5), 'head_width=5 must be even'),
    (dict(num_layers=1), 'feature_layer'),
    (dict(feature_layer=4), 'feature_layer=4 must lie in'),
    (dict(feature_layer=0), 'feature_layer=0 must lie in'),
    (dict(width=0), 'width=0'),
    (dict(score_dropout=1.0), 'score_dropout=1.0'),
    (dict(score_width=0), 'score_width=0 must be >= 1'),
    (dict(remat='some'), "remat='some'"),
    (dict(dtype='int8'), "dtype='int8'"),
    (dict(score_init='one'), "score_init='one'"),
    (dict(depth=3), 'model.depth is no model option'),
  ],
)
def test_bad_shapes_are_named(options, message):
  with pytest.raises(UserError, match=message):
    preset('tiny', **options)


def test_unknown_preset_lists_the_known():
  with pytest.raises(UserError, match="'3b' is unknown; use one of tiny, 1.5b"):
    preset('3b')
