"""Tasks of reasoning-gym against the package itself."""

import pickle
import subprocess
import sys

import pytest

pytest.importorskip(
  'reasoning_gym', reason='the extra gym (reasoning-gym) is not installed'
)

import reasoning_gym
from reasoning_gym.factory import DATASETS

from metastone_jax import errors
from metastone_jax.tasks import base, gym, registry

NAMES = ('gsm_symbolic', 'products', 'base_conversion', 'countdown')


@pytest.mark.parametrize('name', NAMES)
def test_problems_and_answers_are_the_packages(name):
  task = registry.get_task(f'gym:{name}', seed=1)
  same = registry.get_task(f'gym:{name}', seed=1)
  other = registry.get_task(f'gym:{name}', seed=2)
  questions = {split: set() for split in base.SPLITS}
  for split in base.SPLITS:
    for i in range(6):
      problem = task.problem(i, split)
      assert problem == same.problem(i, split)
      assert problem.question != other.problem(i, split).question
      dataset = reasoning_gym.create_dataset(
        name, seed=problem.data['block'], size=64
      )
      entry = dataset[problem.data['item']]
      assert problem.question == entry['question']
      assert problem.answer == entry['answer']
      assert problem.id == f'gym:{name}/1/{split}/{i}'
      right = f'x</think>\\boxed{{ {problem.answer} }}'
      expected = dataset.score_answer(problem.answer, entry)
      assert expected == task.verify(problem, right).reward == 1.0
      assert task.verify(problem, right).answer_key == problem.answer
      wrong = f'</think>\\boxed{{{problem.answer}1}}'
      assert task.verify(problem, wrong).reward == 0.0
      questions[split].add(problem.question)
  assert not questions['train'] & questions['heldout']
  assert len(questions['heldout']) == 6


def test_part_of_a_point_is_wrong():
  task = registry.get_task('gym:products')
  problem = task.problem(0, 'train')
  dataset = reasoning_gym.create_dataset('products', seed=0, size=4)
  text = f'about {problem.answer}'
  assert 0 < dataset.score_answer(text, {'answer': problem.answer}) < 1
  verdict = task.verify(problem, f'</think>\\boxed{{{text}}}')
  assert (verdict.reward, verdict.parsed) == (0.0, True)


def test_what_is_no_answer():
  task = registry.get_task('gym:prime_factorization')
  problem = task.problem(0, 'train')
  for text in (
    problem.answer,
    f'\\boxed{{{problem.answer}}}',  # still thinking
    '</think>none',
    '</think>\\boxed{}',
    '</think>\\boxed{junk}',  # the package's verifier raises
  ):
    assert task.verify(problem, text) == base.UNPARSED


@pytest.mark.parametrize(
  'text, number',
  [
    ('So 12 + 30 = 42.', '42'),
    ('that is -1,234, as asked', '-1234'),
    ('10-7', '7'),
    ('about 3.50 dollars', '3.50'),
    ('x2 and v1.5b', None),
    ('none', None),
    ('7 or \\boxed{8}, not 9', '8'),
  ],
)
def test_the_last_number_counts_where_asked(text, number):
  task = registry.get_task('gym:products', last_number=True)
  problem = task.problem(0, 'train')
  verdict = task.verify(problem, f'5</think>{text}')
  assert verdict.answer_key == (number or '') and verdict.parsed == bool(number)
  right = task.verify(problem, f'5</think>It is {problem.answer}.')
  assert right.reward == 1.0
  plain = registry.get_task('gym:products')
  assert not plain.verify(problem, f'</think>It is {problem.answer}.').parsed


def test_the_verifier_travels_alone():
  task = registry.get_task('gym:countdown', seed=4, min_numbers=3)
  problem = task.problem(3, 'train')
  verifier = pickle.loads(pickle.dumps(task.verifier))
  assert verifier.isolated and verifier.check(problem) is None
  text = f'</think>\\boxed{{{problem.answer}}}'
  assert verifier.verify(problem, text).reward == 1.0


def test_demonstrations_of_gsm_symbolic():
  task = registry.get_task('gym:gsm_symbolic')
  assert task.demonstrates
  for i in range(30):
    problem = task.problem(i, 'train')
    text = task.demonstration(problem)
    assert task.verify(problem, text).reward == 1.0
    thinking, _, _ = text.partition('</think>')
    assert thinking.endswith('.\n\n') and '####' not in thinking
  plain = registry.get_task('gym:products')
  assert not plain.demonstrates
  with pytest.raises(errors.UserError, match='has no demonstrations'):
    plain.demonstration(plain.problem(0, 'train'))


def test_indices_share_no_items():
  task = registry.get_task('gym:products', min_digits=5, max_digits=5)
  assert len({task.problem(i, 'train').question for i in range(80)}) == 80


def test_far_indices():
  task = registry.get_task('gym:gsm_symbolic')
  assert task.problem(2**80, 'train').question


def test_problems_do_not_depend_on_the_hash_seed():
  """Sets whose items do are refused."""
  code = (
    'from metastone_jax.tasks import registry\n'
    'for name in ("products", "letter_jumble", "family_relationships"):\n'
    '  task = registry.get_task("gym:" + name)\n'
    '  print([task.problem(i, "train").question for i in range(5)])\n'
  )
  texts = {
    subprocess.run(
      [sys.executable, '-c', code],
      env={'PYTHONHASHSEED': seed, 'PATH': '', 'JAX_PLATFORMS': 'cpu'},
      check=True,
      capture_output=True,
      timeout=120,
    ).stdout
    for seed in ('1', '2')
  }
  assert len(texts) == 1
  assert gym._UNSTABLE < set(DATASETS)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('gym:nothing', {}, "no data set 'nothing'; it has .*gsm_symbolic"),
    ('gym:word_ladder', {}, 'differ from process to process'),
    ('gym:products', {'terms': 3}, "no option 'terms'.*min_terms"),
    ('gym:products', {'size': 3}, "no option 'size'"),
    ('gym:products', {'min_terms': 0}, 'does not take these options'),
  ],
)
def test_bad_names_and_options(name, options, message):
  with pytest.raises(errors.UserError, match=message):
    registry.get_task(name, **options)


def test_missing_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  with pytest.raises(errors.UserError, match=r'metastone_jax\[gym\]'):
    registry.get_task('gym:products')
