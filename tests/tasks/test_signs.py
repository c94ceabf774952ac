"""Signs: brute-force oracles, the split, hostile answers."""

import collections
import itertools
import re

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, registry, signs

PROBLEM = base.Problem(
  task='signs',
  id='p',
  question='Make -6 using 7, 7, 1, 5.',
  answer='+ 7 - 7 - 1 - 5',
  data={'numbers': [7, 7, 1, 5], 'goal': -6},
)


@pytest.fixture(scope='module')
def task():
  return signs.Signs(seed=3)


def brute_force(numbers, goal):
  """All right signings, as tuples of +-1."""
  return {
    s
    for s in itertools.product((1, -1), repeat=len(numbers))
    if np.dot(s, numbers) == goal
  }


def response(content, thinking=''):
  return f'{thinking}</think>\n\n\\boxed{{{content}}}<|im_end|>'


def test_question_states_the_data(task):
  for index in range(300):
    problem = task.problem(index, 'train')
    goal, numbers = re.fullmatch(
      r'Make (-?\d+) using ((?:\d, )*\d)\.', problem.question
    ).groups()
    assert int(goal) == problem.data['goal']
    numbers = [int(n) for n in numbers.split(', ')]
    assert numbers == problem.data['numbers']
    assert len(numbers) in (5, 6) and set(numbers) <= set(range(1, 10))
    assert brute_force(numbers, problem.data['goal'])


def test_demonstrations_are_right_and_keep_their_arithmetic(task):
  step = re.compile(r' ([+-]) (\d) leaves (-?\d+)\.\n\n')
  for index in range(300):
    problem = task.problem(index, 'train')
    text = task.demonstration(problem)
    assert text == task.demonstration(problem)
    thinking, answer = text.split('</think>\n\n')
    remaining, terms = problem.data['goal'], []
    for sign, number, left in step.findall(thinking):
      remaining -= int(sign + number)
      assert remaining == int(left)
      terms.append(f'{sign} {number}')
    assert remaining == 0
    assert step.sub('', thinking) == ''
    assert answer == f'\\boxed{{ {" ".join(terms)} }}<|im_end|>'
    assert task.verify(problem, text) == base.Verdict(
      1.0, True, ''.join(terms).replace(' ', '')
    )
    assert task.verify(problem, response(problem.answer)).reward == 1.0


def test_demonstrations_are_uniform_over_all_right_signings(task):
  numbers, goal = [1, 2, 3, 4, 5, 6], 1
  right = brute_force(numbers, goal)
  counts = collections.Counter()
  draws = 4000
  for i in range(draws):
    problem = base.Problem(
      'signs', f'p{i}', 'q', '', {'numbers': numbers, 'goal': goal}
    )
    verdict = task.verify(problem, task.demonstration(problem))
    counts[verdict.answer_key] += 1
  assert len(counts) == len(right) > 3
  expected = draws / len(right)
  chi2 = sum((c - expected) ** 2 / expected for c in counts.values())
  # Chi-square with k-1 degrees of freedom: mean k-1, variance 2(k-1).
  freedom = len(right) - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_verifier_agrees_with_brute_force(task):
  numbers, goal = PROBLEM.data['numbers'], PROBLEM.data['goal']
  right = brute_force(numbers, goal)
  keys = set()
  for s in itertools.product((1, -1), repeat=4):
    terms = [
      f'{"+" if x > 0 else "-"} {n}' for x, n in zip(s, numbers, strict=True)
    ]
    verdict = task.verify(PROBLEM, response(' ' + ' '.join(terms) + ' '))
    assert verdict.parsed
    assert verdict.reward == float(s in right)
    keys.add(verdict.answer_key)
  assert len(keys) == 16


@pytest.mark.parametrize(
  'content',
  [
    ' + 7 - 7 - 1 - 5 ',
    '+7-7-1-5',
    '7 - 7 - 1 - 5',
    '7-7-1-5',
    ' + 7 \N{MINUS SIGN} 7 - 1\n- 5',
  ],
)
def test_equal_answers_share_a_key(task, content):
  verdict = task.verify(PROBLEM, response(content))
  assert verdict == base.Verdict(1.0, True, '+7-7-1-5')


@pytest.mark.parametrize(
  'content',
  [
    '- 7 + 7 - 1 + 5',  # Wrong sum.
    '+ 7 - 7 - 5 - 1',  # Wrong order.
    '+ 7 - 7 - 1 - 5 + 1 - 1',  # Extra numbers.
    '- 1 - 5',  # Too few.
    '- 6',  # The goal itself.
    '+ 7 - 7 - 3 - 3',  # Other numbers with the right sum.
    '+ 0 + 7 - 7 - 1 - 5',
    '+ 77 - 7 - 1 - 5',
  ],
)
def test_wrong_answers_are_parsed_and_get_nothing(task, content):
  verdict = task.verify(PROBLEM, response(content))
  assert verdict.parsed and verdict.reward == 0.0 and verdict.answer_key


GOOD = '+ 7 - 7 - 1 - 5'


@pytest.mark.parametrize(
  'text',
  [
    '',
    'no box',
    f'</think> {GOOD}',  # No box.
    f'\\boxed{{{GOOD}}}',  # Thinking never ended.
    f'\\boxed{{{GOOD}}}</think>',  # Box in the thinking only.
    f'\\boxed{{{GOOD}}}</think>\\boxed{{',  # Last box cut.
    f'</think>\\boxed{{{GOOD}}} \\boxed{{}}',  # The last box is empty.
    f'<|im_end|></think>\\boxed{{{GOOD}}}',  # After the turn.
    response(f'{{{GOOD}}}'),
    response(f'{GOOD} = -6'),
    response('+ 7 - 7 - 1 - 2*2-1'),
    response('+ 7 - 7 - 1 - (5)'),
    response('+ + 7 - 7 - 1 - 5'),
    response('+ 7 - 7 - 1 5'),
    response('+ 7 - 7 - 1 - 5 -'),
    response('+ 7 - 7 - 1 - 5.0'),
    response('+ 7 - 7 - 1 - \N{ARABIC-INDIC DIGIT FIVE}'),
    response('+ 7 - 7 - 1 - \N{SUPERSCRIPT TWO}'),
    response('__import__("os").system("true")'),
    response('9' * 5000),
    response('9**9**9**9'),
    response('+ 1 ' * 1_000_000),
    response('{' * 500_000 + '}' * 500_000),
    '\\boxed{' * 200_000,
    '</think>' * 200_000,
  ],
)
def test_unparsed(task, text):
  assert task.verify(PROBLEM, text) == base.UNPARSED


def test_only_the_text_after_the_thinking_counts(task):
  wrong, right = '\\boxed{+ 7 + 7 - 1 - 5}', f'\\boxed{{{GOOD}}}'
  assert task.verify(PROBLEM, f'{wrong}</think>{right}').reward == 1.0
  assert task.verify(PROBLEM, f'{right}</think>{wrong}').reward == 0.0
  assert task.verify(PROBLEM, f'</think>{right}{wrong}').reward == 0.0
  end = f'</think>{wrong}<|im_end|>{right}'
  assert task.verify(PROBLEM, end).reward == 0.0
  # A false trace does not hurt a right answer.
  thinking = ' + 7 leaves 99.\n\n'
  assert task.verify(PROBLEM, response(GOOD, thinking)).reward == 1.0


def test_splits_share_no_problem_not_even_reordered_or_negated():
  train = signs.Signs(seed=0)
  shared_out = signs.Signs(seed=1)
  heldout = [train.problem(i, 'heldout') for i in range(2048)]
  heldout += [shared_out.problem(i, 'heldout') for i in range(500)]

  def content(problem):
    return (
      tuple(sorted(problem.data['numbers'])),
      abs(problem.data['goal']),
    )

  train_contents = {content(train.problem(i, 'train')) for i in range(20_000)}
  assert not train_contents & {content(p) for p in heldout}


def test_heldout_problems_are_distinct_and_do_not_depend_on_access_order():
  task = signs.Signs(seed=0)
  problems = [task.problem(i, 'heldout') for i in range(2048)]
  assert len({p.key for p in problems}) == 2048
  assert len({p.id for p in problems}) == 2048
  late = signs.Signs(seed=0)
  assert late.problem(777, 'heldout') == problems[777]
  assert late.problem(3, 'heldout') == problems[3]


def test_problems_are_a_pure_function_of_seed_split_index():
  a, b = signs.Signs(seed=5), signs.Signs(seed=5)
  other = signs.Signs(seed=6)
  for i in (0, 1, 10, 2**70):
    assert a.problem(i, 'train') == b.problem(i, 'train')
  same = sum(
    a.problem(i, 'train').key == other.problem(i, 'train').key
    for i in range(200)
  )
  assert same < 5
  # Pinned: a change here changes every data set made before.
  assert signs.Signs(seed=0).problem(3, 'train').question == (
    'Make -13 using 3, 3, 4, 4, 7, 2.'
  )


def test_a_too_small_task_says_so():
  task = registry.get_task(
    'signs', min_terms=2, max_terms=2, min_number=1, max_number=5
  )
  with pytest.raises(errors.UserError, match='distinct held-out problems'):
    task.problem(1000, 'heldout')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'min_terms': 5, 'max_terms': 4}, 'min_terms'),
    ({'min_terms': 0}, 'min_terms'),
    ({'min_number': 0}, 'min_number'),
    ({'max_terms': 99}, 'max_terms'),
    ({'terms': 5}, "no option 'terms'.*min_terms"),
  ],
)
def test_bad_options_name_the_option(options, message):
  with pytest.raises(errors.UserError, match=message):
    registry.get_task('signs', **options)


def test_bad_index_and_split(task):
  with pytest.raises(errors.UserError, match='negative'):
    task.problem(-1, 'train')
  with pytest.raises(errors.UserError, match='test.*train, heldout'):
    task.problem(0, 'test')


def test_unknown_task_names_the_known_ones():
  with pytest.raises(errors.UserError, match='sings.*chain_sum.*signs'):
    registry.get_task('sings')
