"""The sweep's config: what it asks for can be trained and drawn."""

import pathlib

import pytest

from metastone_jax.scaling.runs import law

PATH = pathlib.Path(__file__).parents[3] / 'configs/sweeps/scaling_law.py'


@pytest.mark.parametrize(
  'arg, widths, seeds, budgets, k',
  [
    ('', 3, 2, 3, 64),
    ('seeds=3', 3, 3, 3, 64),
    ('smoke', 2, 1, 2, 16),
    ('seeds=3,smoke', 2, 3, 2, 16),
  ],
)
def test_points(arg, widths, seeds, budgets, k):
  config = law.load_config(f'{PATH}:{arg}')
  assert config.kind == 'scaling_law'
  points = {point['name']: point for point in config.points}
  assert len(points) == len(config.points)
  train = [p for p in config.points if p['kind'] == 'train']
  sample = [p for p in config.points if p['kind'] == 'sample']
  assert len(train) == widths * seeds
  assert len(sample) == len(train) * budgets
  for point in train:
    recipe = law.recipe_of(point)
    shape = recipe.model_config(vocab_size=300)
    assert (shape.width, recipe.seed) == (point['width'], point['seed'])
    # The shape of the tiny preset: 4 layers, 4 heads of a quarter each.
    assert shape.num_layers == 4 and shape.head_width * 4 == shape.width
  for point in sample:
    model = points[point['train']]
    assert point['needs'] == (model['name'],)
    assert (model['width'], model['seed']) == (point['width'], point['seed'])
    assert max(point['ks']) == k and 2 * k <= point['samples']
    recipe = law.recipe_of(model)
    assert 0 <= point['budget'] < recipe.data.max_response_length
    assert point['task'] in recipe.data.tasks


@pytest.mark.parametrize('arg', ['smokey', 'seeds=0', 'seeds=x', 'seeds'])
def test_unknown_arguments_are_named(arg):
  with pytest.raises(ValueError, match=f"argument '{arg}'"):
    law.load_config(f'{PATH}:{arg}')
