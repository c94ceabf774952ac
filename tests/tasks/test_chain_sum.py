"""Chain sums from reasoning-gym: both verifiers, the split, the extra."""

import pickle
import re
import sys

import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, chain_sum, registry

reasoning_gym = pytest.importorskip(
  'reasoning_gym', reason='reasoning-gym (extra "gym") is not installed'
)


@pytest.fixture(scope='module')
def task():
  return chain_sum.ChainSum(seed=3)


def evaluate(expression):
  """Oracle: Python's own arithmetic on digits, blanks and signs."""
  assert re.fullmatch(r'[0-9 +-]+', expression)
  return eval(expression)


def response(content):
  return f'</think>\n\n\\boxed{{{content}}}<|im_end|>'


def test_problems_are_reasoning_gyms_own(task):
  for index in range(200):
    problem = task.problem(index, 'train')
    expression = re.fullmatch(
      'State the final answer to the following arithmetic problem: (.*) =',
      problem.question,
    )[1]
    assert expression == problem.data['expression']
    assert evaluate(expression) == int(problem.answer)
    assert len(expression.split()) in (5, 7, 9)


def test_demonstrations_keep_running_sums(task):
  for index in range(300):
    problem = task.problem(index, 'train')
    text = task.demonstration(problem)
    thinking = text.split('</think>')[0]
    steps = re.findall(r' (-?\d+ [+-] \d+) is (-?\d+)\.\n\n', thinking)
    assert re.sub(r' -?\d+ [+-] \d+ is -?\d+\.\n\n', '', thinking) == ''
    left = problem.data['expression'].split()[0]
    for sum_text, value in steps:
      assert sum_text.split()[0] == left
      assert evaluate(sum_text) == int(value)
      left = value
    assert left == problem.answer
    assert task.verify(problem, text) == base.Verdict(1.0, True, left)
  assert task.demonstration(
    base.Problem('chain_sum', 'p', 'q', '5', {'expression': '4 + 3 - 2'})
  ) == (' 4 + 3 is 7.\n\n 7 - 2 is 5.\n\n</think>\n\n\\boxed{ 5 }<|im_end|>')


@pytest.mark.parametrize(
  ('content', 'key', 'reward'),
  [
    (' -4 ', '-4', 1.0),
    ('- 4', '-4', 1.0),
    ('\N{MINUS SIGN}4', '-4', 1.0),
    ('-4.0', '-4', 1.0),
    ('-04', '-4', 1.0),
    ('4', '4', 0.0),
    ('+5', '5', 0.0),
    ('-0', '0', 0.0),
  ],
)
def test_verdicts(task, content, key, reward):
  problem = base.Problem(
    'chain_sum', 'p', 'q', '-4', {'expression': '4 - 1 - 7'}
  )
  verdict = task.verify(problem, response(content))
  assert verdict == base.Verdict(reward, True, key)


@pytest.mark.parametrize(
  'text',
  [
    '',
    '</think>-4',
    '\\boxed{-4}',
    '\\boxed{-4}</think>',
    response(''),
    response('-'),
    response('--4'),
    response('-4.5'),
    response('-4 '.join('ab')),
    response('4 - 1 - 7'),
    response('-4e0'),
    response('NaN'),
    response('Infinity'),
    response('9^9^9^9'),
    response('9' * 1_000_000),
    response('1.' + '0' * 1_000_000),
    response('\N{ARABIC-INDIC DIGIT FOUR}'),
  ],
)
def test_unparsed(task, text):
  problem = base.Problem(
    'chain_sum', 'p', 'q', '-4', {'expression': '4 - 1 - 7'}
  )
  assert task.verify(problem, text) == base.UNPARSED


def test_both_verifiers_must_agree(task):
  # reasoning-gym reads the stored answer, ours the expression.
  problem = base.Problem(
    'chain_sum', 'p', 'q', '5', {'expression': '4 - 1 - 7'}
  )
  assert task.verify(problem, response('5')).reward == 0.0
  assert task.verify(problem, response('-4')).reward == 0.0


def test_splits_share_no_problem_and_heldout_is_distinct(task):
  def content(problem):
    first, *rest = problem.data['expression'].split()
    pairs = zip(['+', *rest[0::2]], [first, *rest[1::2]], strict=True)
    return tuple(sorted(pairs))

  heldout = [task.problem(i, 'heldout') for i in range(2048)]
  other = chain_sum.ChainSum(seed=4)
  train = [task.problem(i, 'train') for i in range(10_000)]
  train += [other.problem(i, 'train') for i in range(10_000)]
  assert not {content(p) for p in train} & {content(p) for p in heldout}
  assert len({p.key for p in heldout}) == 2048


def test_neighbouring_seeds_are_not_shifts_of_each_other():
  # In reasoning-gym alone, seed 0 item 1 == seed 1 item 0, and so on.
  zero, one = chain_sum.ChainSum(seed=0), chain_sum.ChainSum(seed=1)
  shifted = sum(
    zero._candidate('train', 0, i + 1).key == one._candidate('train', 0, i).key
    for i in range(100)
  )
  assert shifted < 5


def test_pure_in_seed_split_index(task):
  again = chain_sum.ChainSum(seed=3)
  for i in (0, 7, 2**70):
    assert again.problem(i, 'train') == task.problem(i, 'train')
  assert again.problem(100, 'heldout') == task.problem(100, 'heldout')


def test_missing_package_names_the_extra(monkeypatch):
  for name in list(sys.modules):
    if name.split('.')[0] == 'reasoning_gym':
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  with pytest.raises(errors.UserError, match=r'metastone_jax\[gym\]'):
    registry.get_task('chain_sum')


def test_bad_options():
  with pytest.raises(errors.UserError, match='min_terms >= 2'):
    chain_sum.ChainSum(min_terms=1)
  with pytest.raises(errors.UserError, match='min_digits'):
    chain_sum.ChainSum(min_digits=3, max_digits=2)


def test_tasks_can_be_sent_to_another_process(task):
  copy = pickle.loads(pickle.dumps(task))
  assert copy.problem(9, 'heldout') == task.problem(9, 'heldout')
