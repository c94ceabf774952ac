"""Recipes: every key typed, known or refused by its full path."""

import dataclasses
import importlib
import json
import re

import pytest

from metastone_jax.errors import UserError
from metastone_jax.training import loop
from tests.launch import small
from tests.training.loop import parts


def test_types_defaults_and_order():
  def edit(config):
    del config.mesh, config.sampling
    config.phase_order = ('joint', 'warmup')
    with config.unlocked():
      config.evaluation.ks = [4, 2]

  recipe = parts.recipe(edit)
  assert [phase.name for phase in recipe.phases] == ['joint', 'warmup']
  assert recipe.evaluation.ks == (4, 2)
  assert recipe.mesh == {'fsdp': -1}
  assert recipe.sampling == type(recipe.sampling)()
  assert recipe.optimiser.weight_decay == 0.01
  joint = recipe.phases[0]
  assert joint.lm_coefficient == 0.0 and joint.updates_per_rollout == 1
  assert joint.rollouts_per_step == 16 == joint.rows_per_update


def test_whole_numbers_become_floats():
  def edit(config):
    with config.unlocked(), config.ignore_type():
      config.data.tasks = dict(signs=2)
      config.phases.joint.policy_coefficient = 1
      config.optimiser = dict(clip_norm=2)

  recipe = parts.recipe(edit)
  for value in (
    recipe.data.tasks['signs'],
    recipe.phases[2].policy_coefficient,
    recipe.optimiser.clip_norm,
  ):
    assert isinstance(value, float)


def test_round_trip_through_json():
  recipe = parts.recipe()
  tree = json.loads(json.dumps(loop.config_dict(recipe)))
  assert loop.recipe_from_dict(tree) == recipe


def _changed(path: str, value) -> dict:
  """The small config as a plain dict with one value replaced or (...) gone."""
  config = small.get_config().to_dict()
  *way, last = path.split('.')
  node = config
  for name in way:
    node = node[name]
  if value is ...:
    del node[last]
  else:
    node[last] = value
  return config


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    # Unknown and missing.
    ('seeed', 1, 'config key seeed is unknown'),
    ('data.marks', (), 'config key data.marks is unknown'),
    ('phases.head.stepz', 1, 'config key phases.head.stepz is unknown'),
    ('name', ..., 'config key name is missing'),
    ('phases.head.steps', ..., 'config key phases.head.steps is missing'),
    # Types.
    ('seed', '3', "config key seed='3' must be of type int"),
    ('seed', True, 'config key seed=True must be of type int'),
    ('data.tokenizer', 3, 'config key data.tokenizer=3 must be of type str'),
    (
      'phases.head.steps',
      3.0,
      'config key phases.head.steps=3.0 must be of type int',
    ),
    (
      'phases.joint.drop_zero_variance',
      0,
      'config key phases.joint.drop_zero_variance=0 must be of type bool',
    ),
    (
      'phases.head.head_learning_rate',
      '1e-3',
      "config key phases.head.head_learning_rate='1e-3' must be of type float",
    ),
    ('data', 3, 'config key data=3 must be a mapping'),
    ('phases', 3, 'config key phases=3 must be a mapping'),
    ('phases.head', 3, 'config key phases.head=3 must be a mapping'),
    ('data.tasks', ['signs'], 'config key data.tasks=.* must be a mapping'),
    (
      'data.tasks.signs',
      'much',
      "config key data.tasks.signs='much' must be of type float",
    ),
    ('mesh.fsdp', 1.5, 'config key mesh.fsdp=1.5 must be of type int'),
    ('data.step_marks', '.', "config key data.step_marks='.' must be a list"),
    ('phase_order', 'head', "config key phase_order='head' must be a list"),
    (
      'evaluation.ks',
      (1, 'all'),
      r"config key evaluation.ks\[1\]='all' must be of type int",
    ),
    # Values.
    ('seed', -1, 'seed=-1 must be in'),
    ('phase_order', (), 'phases is empty'),
    ('phase_order', ('head', 'none'), "phase_order names 'none'"),
    ('phase_order', ('head', 'head'), 'names a phase twice'),
    ('phases.head.steps', 0, 'phases.head.steps=0 must be >= 1'),
    ('phases.head.samples_per_prompt', 0, 'phases.head.samples_per_prompt=0'),
    ('phases.head.schedule', 'linear', "phases.head.schedule='linear'"),
    ('phases.joint.objective', 'ppo', "phases.joint.objective='ppo'"),
    (
      'phases.joint.objective_options',
      {'kl': 1.0},
      r"phases.joint.objective_options: .*'kl'",
    ),
    (
      'phases.joint.score_loss',
      'mse',
      "phases.joint: loss='mse' is unknown; use one of",
    ),
    (
      'phases.joint.updates_per_rollout',
      3,
      'phases.joint.updates_per_rollout=3 must divide prompts_per_step=4',
    ),
    (
      'phases.head.sequences_per_microbatch',
      8,
      'phases.head.sequences_per_microbatch=8 must divide the 20 sequences',
    ),
    ('phases.head.prompts_per_step', 0, 'phases.head: .* need rollouts'),
    (
      'phases.joint.lm_coefficient',
      0.1,
      'phases.joint: lm_coefficient=0.1 and demonstrations_per_step=0',
    ),
    (
      'phases.head.lm_coefficient',
      0.0,
      'phases.head: lm_coefficient=0.0 and demonstrations_per_step=4',
    ),
    (
      'phases.joint.objective',
      'dr_grpo',
      'phases.joint.objective_options: dr_grpo .* fixed_length=28',
    ),
    (
      'phases.joint.overlong_buffer',
      29,
      'phases.joint.overlong_buffer=29 must be between 0',
    ),
    ('evaluation.ks', (), 'evaluation.ks is empty'),
    ('evaluation.ks', (0, 1), 'k must be at least 1, got 0'),
    ('evaluation.ks', (-2,), 'k must be at least 1, got -2'),
    ('evaluation.ks', (8,), 'evaluation.stage_samples=4 is below every k'),
    ('evaluation.problems', 0, 'evaluation.problems=0 must be at least 1'),
    ('checkpoint.every', 0, 'checkpoint.every=0 must be at least 1'),
    ('checkpoint.max_to_keep', 0, 'checkpoint.max_to_keep=0 must be at least'),
  ],
)
def test_refused_by_path(path, value, message):
  with pytest.raises(UserError, match=message):
    loop.parse_recipe(_changed(path, value))


def test_nothing_to_learn_is_refused():
  config = small.get_config()
  config.phases.warmup.lm_coefficient = 0.0
  config.phases.warmup.demonstrations_per_step = 0
  with pytest.raises(UserError, match='phases.warmup: every loss term is'):
    loop.parse_recipe(config)


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    ({}, 'model.preset is missing'),
    ({'preset': 'huge'}, "model.preset='huge' is unknown"),
    ({'preset': 'tiny', 'depth': 2}, 'model.depth is no model option'),
    ({'preset': 'tiny', 'width': '16'}, "model.width='16' must be of type int"),
    (
      {'preset': 'tiny', 'feature_layer': 'last'},
      "model.feature_layer='last' must be of type int",
    ),
    ({'source': ''}, 'model.preset is missing'),
  ],
)
def test_model_refused(model, message):
  recipe = dataclasses.replace(parts.recipe(), model=model)
  with pytest.raises(UserError, match=message):
    recipe.model_config(324)


def test_vocabulary_smaller_than_the_tokenizers_is_refused():
  def edit(config):
    config.model.vocab_size = 8

  with pytest.raises(UserError, match='vocab_size=8, fewer than the .* tokens'):
    parts.setup(edit)


def test_source():
  recipe = parts.recipe()
  assert recipe.source is None
  given = dataclasses.replace(recipe, model={'source': 'folder'})
  assert given.source == 'folder' and given.model_choices == {}
  empty = dataclasses.replace(recipe, model={'source': '', 'preset': 'tiny'})
  with pytest.raises(UserError, match='needs model.source, a Hugging Face'):
    _ = empty.source


def test_vocabulary_comes_from_the_tokenizer_unless_given():
  recipe = parts.recipe()
  assert recipe.model_config(324).vocab_size == 324
  wide = dataclasses.replace(recipe, model={**recipe.model, 'vocab_size': 512})
  assert wide.model_config(324).vocab_size == 512


@pytest.mark.parametrize(
  ('init', 'losses', 'start_from', 'refused'),
  [
    ('zero', ('spr', 'spr'), '', 'head'),
    ('zero', ('bce', 'spr'), '', None),
    ('zero', ('soft', 'spr'), '', None),
    ('zero', ('spr', 'bce'), '', 'head'),
    ('zero', (None, 'spr'), '', 'joint'),  # The head phase trains no head.
    ('zero', ('spr', 'spr'), 'runs/x/checkpoints', None),
    ('torch', ('spr', 'spr'), '', None),
  ],
)
def test_cold_zero_head(init, losses, start_from, refused):
  config = small.get_config()
  config.model.score_init = init
  config.start_from = start_from
  for name, loss in zip(('head', 'joint'), losses, strict=True):
    if loss is None:
      config.phases[name].score_coefficient = 0.0
    else:
      config.phases[name].score_loss = loss
  if refused is None:
    loop.parse_recipe(config)
  else:
    message = re.escape(f"phases.{refused}.score_loss='spr'")
    with pytest.raises(UserError, match=message):
      loop.parse_recipe(config)


def test_batch_words():
  config = small.get_config()
  config.phases.joint.prompts_per_step = 6
  config.phases.joint.updates_per_rollout = 3
  config.phases.joint.lm_coefficient = 0.1
  config.phases.joint.demonstrations_per_step = 4
  config.phases.joint.sequences_per_microbatch = 4
  joint = loop.parse_recipe(config).phases[2]
  assert joint.rollouts_per_step == 6 * 4
  assert joint.rows_per_update == 6 * 4 // 3 + 4
  assert joint.update_config.num_micro_batches == 3
  assert joint.update_config.objective.kl_coefficient == 1e-2


def test_everything_that_is_missing_is_named_at_once():
  config = _changed('data.tasks', ...)
  config['model'] = {'source': ''}
  recipe = loop.parse_recipe(config)
  with pytest.raises(UserError) as caught:
    recipe.check_complete()
  assert '--config.model.source=' in str(caught.value)
  assert '--config.data.source=' in str(caught.value)
  config['data'] = {**config['data'], 'source': 'signs'}
  assert loop.parse_recipe(config).data.tasks == {'signs': 1.0}


def test_a_layout_changes_what_it_names():
  layouts = {
    'two': {
      'mesh': {'tensor': 2},
      'checkpoint': {'every': 7},
    },
    'wrong': {'checkpoint': {'evry': 7}},
    'flat': {'checkpoint': 3},
    'deep': {'name': {'first': 'x'}},
  }
  plain = loop.parse_recipe(_changed('layouts', layouts))
  assert plain == parts.recipe()
  config = _changed('layouts', layouts)
  two = loop.parse_recipe({**config, 'layout': 'two'})
  assert two.mesh == {'tensor': 2}
  assert two.checkpoint.every == 7
  assert two.checkpoint.max_to_keep == plain.checkpoint.max_to_keep
  assert loop.parse_recipe(config, layout='two') == two
  assert loop.parse_recipe(config, layout='elsewhere') == plain
  for name, message in (
    ('three', "layout='three' is not in this recipe; it has .*deep"),
    ('wrong', 'layouts.wrong.checkpoint.evry is unknown'),
    ('flat', 'checkpoint=3 must be a mapping'),
    ('deep', 'layouts.deep.name is a table, and one value'),
  ):
    with pytest.raises(UserError, match=message):
      loop.parse_recipe({**config, 'layout': name})


@pytest.mark.parametrize('name', ['tiny', '1p5b', '7b', '32b', 'smollm2_135m'])
def test_recipes_have_what_messages_say_to_change(name):
  """--config.verify.memory_gb=8 is refused where the recipe has no such key."""
  config = importlib.import_module(f'configs.{name}').get_config()
  assert set(config.verify) == {
    field.name for field in dataclasses.fields(loop.parse_recipe(config).verify)
  }
  parts = {'format_reward', 'truncation_penalty', 'overlong_buffer'}
  assert parts | {'mask_truncated'} <= set(config.phases.joint)


@pytest.mark.parametrize('name', ['1p5b', '7b', '32b'])
def test_large_recipes_name_what_is_missing(name):
  module = importlib.import_module(f'configs.{name}')
  recipe = loop.parse_recipe(module.get_config())
  with pytest.raises(UserError, match='model.source.* and data.source'):
    recipe.check_complete()
  config = module.get_config('source=X,data=signs,runlocal')
  local = loop.parse_recipe(config)
  assert local.source == 'X' and local.data.tasks == {'signs': 1.0}
  assert local.data.max_response_length == 128
  for target in config.layouts:
    there = loop.parse_recipe(module.get_config(f'mesh={target}'))
    assert there.phases[-1].steps == recipe.phases[-1].steps
    assert there.mesh != recipe.mesh
  with pytest.raises(ValueError, match='argument .foo. .*use mesh=NAME'):
    module.get_config('foo')
