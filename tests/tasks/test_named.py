"""Named sets: layouts, where files are, and the released files themselves."""

import json
import pathlib

import pytest

from metastone_jax import errors
from metastone_jax.tasks import (
  build_mixture,
  named,
  overlap,
  registry,
  takes_folder,
)
from metastone_jax.training import loop
from tests.launch import small
from tests.tasks.sources import files

# Question files that are not ours to ship lie beside the repository.
SHARED = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'


def folder_of_sets(folder):
  aime = [{'prompt': f'Find {i}.', 'answer': i} for i in range(30)]
  files.write_lines(folder / 'aime24.jsonl', aime)
  files.write_lines(folder / 'aime25.jsonl', aime[:20])
  ceval = [
    {
      'model_input': f'\u95ee{i % 5}',
      'answer': 'A',
      'sub': f's{i % 2}',
      'id': i // 2,
    }
    for i in range(12)
  ]
  (folder / 'ceval.json').write_text(json.dumps(ceval))
  return folder


def heldout(task):
  return [task.problem(i, 'heldout') for i in range(task.num_heldout)]


def test_sets_in_a_folder(tmp_path):
  folder = str(folder_of_sets(tmp_path))
  task = registry.get_task('aime24', folder=folder)
  assert task.num_train == 0
  assert [p.answer for p in heldout(task)] == [str(i) for i in range(30)]
  assert [p.id for p in heldout(task)][:2] == ['aime24/0', 'aime24/1']
  ceval = registry.get_task('ceval', folder=folder)
  assert ceval.num_heldout == 12  # equal questions stay
  assert heldout(ceval)[3].id == 'ceval/s1/1'
  assert heldout(ceval)[3].data == {'sub': 's1'}
  by_path = registry.get_task('aime25', path=f'{folder}/aime25.jsonl')
  assert by_path.num_heldout == 20


def test_without_a_file_the_layout_and_the_fix_are_named():
  for name in ('aime24', 'aime25', 'ceval'):
    with pytest.raises(
      errors.UserError, match=f'{name}.*data.folder.*--data.*{name}.json.*path'
    ):
      registry.get_task(name)


def test_trained_on_only_if_asked_for(tmp_path):
  folder = str(folder_of_sets(tmp_path))
  task = registry.get_task('aime24', folder=folder, heldout='hash')
  assert task.num_train + task.num_heldout == 30 and task.num_train > 20
  other = registry.get_task(
    'aime24', folder=folder, heldout_path='aime25.jsonl'
  )
  assert (other.num_train, other.num_heldout) == (10, 20)


def test_champ_needs_no_file():
  task = registry.get_task('champ')
  assert task.num_heldout == 128
  problem = task.problem(0, 'heldout')
  assert problem.id == 'champ/P_Combinatorics_1'
  assert problem.data == {'category': 'Combinatorics'}
  assert 'Thus, in total' in task.demonstration(problem)


def test_a_folder_for_all_tasks_of_a_recipe(tmp_path):
  folder = str(folder_of_sets(tmp_path))
  config = small.get_config()
  config.data.folder = folder
  config.data.tasks = {'signs': 1.0, 'aime24': 0.0, 'mine': 1.0, 'x': 0.0}
  config.data.task_options.mine = dict(source='jsonl', path='aime25.jsonl')
  config.data.task_options.x = dict(
    source='jsonl', path='aime24.jsonl', folder='elsewhere'
  )
  options = loop.parse_recipe(config).data.task_options
  assert options['aime24'] == {'folder': folder}
  assert options['mine']['folder'] == folder
  assert options['x']['folder'] == 'elsewhere'
  assert 'folder' not in options['signs']


def test_what_takes_a_folder():
  assert all(
    takes_folder(name, {}) == bool(found.file)
    for name, found in named.NAMED_SETS.items()
  )
  assert takes_folder('mine', {'source': 'parquet'})
  assert not takes_folder('signs', {}) and not takes_folder('gym:products', {})
  assert not takes_folder('mine', {'source': 'champ'})
  assert not takes_folder('mine', {'source': 'nonsense'})
  assert not takes_folder('mine', {'source': ['jsonl']})


def test_folder_of_a_task_is_that_of_its_evaluation_sets(tmp_path):
  folder = str(folder_of_sets(tmp_path))
  files.write_lines(
    tmp_path / 'mine.jsonl',
    [{'question': f'Find {i}.', 'answer': i} for i in range(100)],
  )
  mixture = build_mixture(
    {'mine': 1.0},
    seed=0,
    options={
      'mine': dict(
        source='jsonl',
        path='mine.jsonl',
        folder=folder,
        heldout='none',
        overlap_with=['aime24', {'task': 'aime25'}],
      )
    },
  )
  task = mixture.tasks['mine']
  assert task.num_train == 70 and task.counts['overlapping'] == 30


def shared(name):
  path = SHARED / name
  if not path.exists():
    pytest.skip(f'{name} is not beside the repository (../shared/data)')
  return str(path)


@pytest.mark.parametrize('name', ['aime24', 'aime25'])
def test_the_released_aime_files(name):
  task = registry.get_task(name, path=shared(f'{name}.jsonl'))
  assert task.num_heldout == 30
  for problem in heldout(task):
    assert 0 <= int(problem.answer) <= 999
    assert problem.question.endswith('\\boxed{}.')


def test_the_released_ceval_file():
  task = registry.get_task('ceval', path=shared('ceval.json'))
  assert task.num_heldout == 1346 and task.counts['bad'] == 0
  assert {p.answer for p in heldout(task)} == set('ABCD')
  assert len({p.data['sub'] for p in heldout(task)}) == 52


def test_the_released_sets_share_no_problem():
  """Some share the words around their answer, which 30 rows are too few to
  tell from a leak."""
  for one, other in (('aime24', 'aime25'), ('aime25', 'aime24')):
    paths = [shared(f'{name}.jsonl') for name in (one, other)]
    task = registry.get_task(one, path=paths[0], heldout='none')
    everything = [task.problem(i, 'train').question for i in range(30)]
    theirs = registry.get_task(other, path=paths[1])
    index = overlap.EvaluationQuestions(
      {other: [(p.id, p.question) for p in heldout(theirs)]}
    )
    matches = [m for m in index.matches(everything) if m is not None]
    assert not any(match.exact for match in matches) and len(matches) < 9
    again = index.matches([p.question for p in heldout(theirs)])
    assert [m.id for m in again] == [p.id for p in heldout(theirs)]
