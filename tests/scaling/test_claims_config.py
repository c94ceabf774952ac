"""The points of configs/sweeps/claims.py."""

import pytest

from configs.sweeps import claims as config_file
from metastone_jax.scaling import claims_list, plan
from metastone_jax.scaling.runs import fit, law, runners

ARGUMENTS = (
  *('', 'smoke', 'seeds=2'),
  *('smollm2', 'smollm2,smoke', 'smollm2,large'),
)


def points_of(argument):
  return config_file.get_config(argument).to_dict()['points']


@pytest.mark.parametrize('argument', ARGUMENTS)
def test_points_are_valid_and_a_set_is_whole(argument):
  config = config_file.get_config(argument).to_dict()
  found = plan.Plan.of(config['points']).points
  name = 'smollm2' if 'smollm2' in argument else 'tiny'
  assert {p['set'] for p in found.values()} == {name}
  assert config['kind'] in runners.PAGES
  assert {p['kind'] for p in found.values()} <= set(runners.RUNNERS)
  arms = [p for p in found.values() if p['kind'] == 'arm']
  left_out = {'lm-only', 'outcome'} if argument == 'smollm2' else set()
  assert {p['arm'] for p in arms} == claims_list.arms_of(name) - left_out
  # Every arm of every seed once; no seed leans on another.
  assert len({(p['arm'], p['seed']) for p in arms}) == len(arms)
  for one in found.values():
    assert one['name'].endswith(f'-s{one["seed"]}')
    assert {found[need]['seed'] for need in one['needs']} <= {one['seed']}
  assert set(config['options']['commands']) == set(claims_list.SETS)


def test_all_arms_of_a_seed_branch_from_one_checkpoint():
  found = plan.Plan.of(points_of('seeds=1')).points

  def origin(name):
    needs = found[name]['needs']
    return {name} if not needs else set.union(*map(origin, needs))

  arms = [p['name'] for p in found.values() if p['kind'] == 'arm']
  assert {frozenset(origin(arm)) for arm in arms} == {
    frozenset({'tiny-base-s0'})
  }


def test_seeds_and_sets_are_only_added_to_a_folder(tmp_path):
  for argument in ('seeds=1', 'smollm2', 'seeds=3', ''):
    plan.keep(plan.Plan.of(points_of(argument)), tmp_path)
  kept = plan.kept(tmp_path).points
  assert {p['set'] for p in kept.values()} == set(claims_list.SETS)
  names = {config_file.get_config(a).name for a in ('', 'smollm2', 'seeds=2')}
  assert names == {'claims'}
  assert config_file.get_config('smoke').name == 'claims_smoke'


@pytest.mark.parametrize('argument', ['', 'smollm2', 'smoke', 'smollm2,smoke'])
def test_what_points_ask_for_can_be_done(argument):
  found = plan.Plan.of(points_of(argument)).points
  for one in found.values():
    if one['kind'] == 'base':
      assert law.recipe_of(one).seed == one['seed']
    elif one['kind'] == 'material':
      recipe = law.recipe_of(found[one['base']])
      assert one['task'] in recipe.data.tasks
    elif one['judge'] in ('head', 'prm'):
      material = found[one['material']]
      options = fit.FitOptions.of(one)
      rows = material['train_problems'] * material['train_samples']
      assert options.updates(rows) >= 1
      moves = one['gradient_scale'] > 0 or one.get('lm_alone', False)
      assert options.moves_backbone == moves


@pytest.mark.parametrize('bad', ['seeds=0', 'seeds=x', 'tiny', 'smoke=1'])
def test_unknown_arguments_are_named(bad):
  with pytest.raises(ValueError, match=f'{bad}.* unknown'):
    config_file.get_config(bad)
