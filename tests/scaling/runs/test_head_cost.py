"""Real sizes: parameters as they are made, FLOPs as ModelConfig counts them."""

import dataclasses

import jax
import numpy as np
import pytest

from metastone_jax.model import abstract_params, preset
from metastone_jax.scaling import compute
from metastone_jax.scaling.runs import head_cost


def _count(tree):
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', list(head_cost.presets()))
def test_parameters_are_those_that_are_made(name):
  config = head_cost.presets()[name]
  params = abstract_params(config)
  (row,) = head_cost.head_against_prm({name: config})
  head = _count(params['score_head'])
  assert row['head_parameters'] == head
  assert row['prm_parameters'] == _count(params)
  assert row['backbone_parameters'] == _count(params) - head
  assert row['prm_bytes'] == 2 * _count(params)


@pytest.mark.parametrize(
  'name,percent',
  [
    ('1.5B, tied embeddings', 0.31),
    ('1.5B', 0.27),
    ('7B', 0.34),
    ('32B', 0.16),
  ],
)
def test_the_papers_claim(name, percent):
  """Hand: 4.724737 / 1548.4, 4.724737 / 1781.8, 25.7 / 7641, 52.4 / 32816."""
  rows = {row['model']: row for row in head_cost.head_against_prm()}
  row = rows[name]
  assert round(100 * row['share'], 2) == percent
  # Over the backbone alone it is the same to two digits.
  alone = row['head_parameters'] / row['backbone_parameters']
  assert round(100 * alone, 2) == percent
  assert row['saved'] == 1 - row['share'] > 0.99
  assert row['flops_saved'] > 0.9999


@pytest.mark.parametrize(
  'config',
  [preset('tiny'), preset('tiny', score_width=40, feature_layer=2)],
  ids=['tiny', 'options'],
)
def test_flops_are_those_of_model_config(config):
  """Which evaluations count with; a PRM is a shorter model that reads."""
  shape = head_cost.shape_of(config)
  tokens, marks, prompt = np.array([11, 30]), np.array([1, 4]), 7
  got = compute.of_samples(
    shape,
    prompt=prompt,
    tokens_N=tokens,
    thinking_N=tokens,
    judge=compute.of_head(shape, marks),
  )
  want = config.prefill_flops(prompt) + config.score_flops(5)
  want += sum(config.decode_flops(int(n), prompt) for n in tokens)
  np.testing.assert_allclose(got.flops, want, rtol=1e-12)
  short = dataclasses.replace(config, num_layers=config.split, feature_layer=1)
  prm = compute.of_prm(shape, prompt=prompt, tokens=tokens, marks=marks)
  np.testing.assert_allclose(
    prm.flops,
    [
      short.prefill_flops(prompt + int(n)) + config.score_flops(int(m))
      for n, m in zip(tokens, marks, strict=True)
    ],
    rtol=1e-12,
  )


def test_load_and_table():
  """Judging follows the traces; twice the marks, twice the head's FLOPs."""
  models = {'tiny': preset('tiny')}
  traces = head_cost.Traces(prompt=10, tokens=64, step=16, candidates=3)
  (one,) = head_cost.head_against_prm(models, traces)
  denser = dataclasses.replace(traces, step=8)
  (two,) = head_cost.head_against_prm(models, denser)
  assert one['flops_head'] == 3 * models['tiny'].score_flops(4)
  assert two['flops_head'] == 2 * one['flops_head']
  assert two['flops_policy'] == one['flops_policy']
  lines = head_cost.table([one])
  assert len(lines) == 3 and lines[2].startswith('| tiny | 0.02 | 0.47 |')
  assert len({line.count('|') for line in lines}) == 1
