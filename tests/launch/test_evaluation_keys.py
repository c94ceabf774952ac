"""Names of draws and verdicts: what changes which. And how many problems."""

import dataclasses

import pytest
from etils import epath

from launch.evaluation_files import Files, plain
from launch.evaluation_keys import Keys
from launch.evaluation_model import num_problems
from metastone_jax.checkpoints import write_json_atomic
from metastone_jax.tasks import base, finite
from metastone_jax.training.loop.recipe_verify import VerifyConfig
from tests.training.loop import parts


def _problem(i, question='?', answer='1', **data):
  return base.Problem('signs', f'signs/{i}', question, answer, data)


class Listed(finite.FiniteTask):
  """As `signs` a list of problems."""

  demonstration = verify = None

  def __init__(self, *problems):
    super().__init__('signs', 0, problems, problems)


def _model(root, digest):
  files = {'state/d/x': {'size': 1, 'sha256': digest}}
  write_json_atomic(
    epath.Path(root) / 'checkpoints' / 'integrity' / '7.json',
    {'format': 1, 'state': 'complete', 'step': 7, 'files': files, 'arrays': {}},
  )
  return epath.Path(root)


@pytest.fixture(scope='module')
def setup():
  return parts.setup()


def _changed(setup, **changes):
  """The setup with other fields of its recipe."""
  recipe = dataclasses.replace(setup.recipe, **changes)
  return dataclasses.replace(setup, recipe=recipe)


def _with_data(setup, **changes):
  return _changed(setup, data=dataclasses.replace(setup.recipe.data, **changes))


def test_of_a_list_of_problems(setup, tmp_path, monkeypatch):
  root = _model(tmp_path / 'a', 'one')
  sampling = setup.evaluation_sampling

  def keys(setup=setup, root=root, split='heldout', sampling=sampling):
    return Keys.of(root, 7, setup, 'signs', split, sampling)

  def listed(*problems):
    monkeypatch.setitem(setup.mixture.tasks, 'signs', Listed(*problems))

  listed(_problem(0), _problem(1))
  first = keys()
  # A copy of the folder, another place of the same problems, more processes.
  assert keys(root=_model(tmp_path / 'b', 'one')) == first
  assert (
    keys(_with_data(setup, task_options={'signs': {'path': 'x'}})).draws
    == first.draws
  )
  assert keys(_changed(setup, verify=VerifyConfig(workers=3))) == first

  other = [
    keys(root=_model(tmp_path / 'c', 'two')),
    keys(split='train'),
    keys(_changed(setup, seed=99)),
    keys(_with_data(setup, instruction='Think.')),
    keys(dataclasses.replace(setup, files={'tokenizer.json': b'x'})),
    keys(sampling=dataclasses.replace(sampling, temperature=0.25)),
  ]
  listed(_problem(0), _problem(1, 'other?'))
  other.append(keys())
  listed(_problem(0), _problem(1), _problem(2))
  other.append(keys())
  assert len({k.draws for k in [first, *other]}) == 1 + len(other)
  assert len({k.verdicts for k in [first, *other]}) == 1 + len(other)


def test_of_verdicts_alone(setup, tmp_path, monkeypatch):
  root = _model(tmp_path, 'one')

  def keys(setup=setup, *problems):
    monkeypatch.setitem(setup.mixture.tasks, 'signs', Listed(*problems))
    sampling = setup.evaluation_sampling
    return Keys.of(root, 7, setup, 'signs', 'heldout', sampling)

  first = keys(setup, _problem(0))
  options = {'signs': {'verifier_options': {'tolerance': 0.1}}}
  other = [
    keys(setup, _problem(0, answer='2')),
    keys(setup, _problem(0, tests=[1])),
    keys(_with_data(setup, task_options=options), _problem(0)),
    keys(_changed(setup, verify=VerifyConfig(deadline_s=99.0)), _problem(0)),
  ]
  assert {k.draws for k in other} == {first.draws}
  assert len({k.verdicts for k in [first, *other]}) == 5


def test_options_count_where_problems_have_no_end(setup, tmp_path):
  root = _model(tmp_path, 'one')
  found = [
    Keys.of(root, 7, some, 'signs', 'heldout', setup.evaluation_sampling)
    for some in (
      _with_data(setup, task_options={}),
      _with_data(setup, task_options={'signs': {'max_count': 3}}),
      _with_data(setup, task_options={'signs': {'verifier': 'exact'}}),
    )
  ]
  assert found[0].draws != found[1].draws
  assert found[0].draws == found[2].draws
  assert found[0].verdicts != found[2].verdicts


def test_names_of_files():
  assert plain('gym:base_conversion') == 'gym-base_conversion'
  assert plain('aime24') == 'aime24'
  some = Files(
    epath.Path('out'), 'a-train', '4x8', 7, '-effort_low', Keys('d', 'v'), True
  )
  other = dataclasses.replace(some, kind='-effort_high', size='4x16')
  assert some.samples.name == 'a-train-4x8-step7-effort_low-d-v.npz'
  for name in ('samples', 'results', 'pass_rates', 'summary', 'report'):
    assert getattr(some, name) != getattr(other, name)
  # How many are wanted is no part of what is kept.
  assert some.kept == other.kept
  assert some.kept.name == 'a-train-step7-d-token_ids-responses'
  judged = dataclasses.replace(some, keys=Keys('d', 'w'))
  assert judged.samples != some.samples and judged.kept == some.kept


@pytest.mark.parametrize(
  ('asked', 'split', 'limit', 'expected'),
  [
    (None, 'heldout', None, 512),
    (None, 'heldout', 30, 30),
    (None, 'heldout', 5000, 512),
    (None, 'train', None, 512),
    (None, 'train', 5000, 5000),  # pass rates of all of them
    (8, 'train', 5000, 8),
    (8, 'heldout', 5, 5),
    (600, 'heldout', None, 600),
  ],
)
def test_number_of_problems(asked, split, limit, expected):
  assert num_problems(asked, split, limit) == expected
