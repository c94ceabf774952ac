"""The verifier of mathematics against a table of pairs decided without it.

`math_pairs.jsonl`: one pair a line, what is equal decided by hand. Where both
sides have a value in plain Python (a fraction, or a formula of `math`), the
decision is checked against these values too. `repeat` is [text, times] before
the answer; `missed` marks the equal pairs that the verifier cannot tell.
"""

import fractions
import json
import math
import pathlib
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from metastone_jax.tasks import base
from metastone_jax.tasks.verifiers import math_answer, mathematics

pytest.importorskip('math_verify', reason='needs the extra math')

TABLE = pathlib.Path(__file__).parent / 'math_pairs.jsonl'
PAIRS = [json.loads(line) for line in TABLE.read_text().splitlines()]
# Of all pairs that are equal.
MOST_MISSED = 0.03


def _answer(pair):
  text, times = pair.get('repeat', ('', 0))
  return text * times + pair['answer']


def _verdict(gold, answer, **options):
  problem = base.Problem('t', 't/0', 'What?', gold, {})
  return mathematics.Mathematics(**options).verify(problem, answer)


def _boxed(gold, answer, **options):
  return _verdict(gold, f'x</think>\\boxed{{{answer}}}', **options)


@pytest.fixture(scope='module')
def verdicts():
  found = []
  for pair in PAIRS:
    start = time.perf_counter()
    verdict = _boxed(pair['gold'], _answer(pair))
    found.append((verdict, time.perf_counter() - start))
  return found


def test_the_table_itself():
  assert len(PAIRS) >= 300
  names = {
    name: getattr(math, name)
    for name in ('sqrt', 'pi', 'e', 'log', 'sin', 'cos', 'atan')
  }
  checked = 0
  for pair in PAIRS:
    if 'gold_value' not in pair:
      continue
    checked += 1
    values = pair['gold_value'], pair['answer_value']
    if pair['kind'] == 'closed form':
      one, other = (eval(value, names) for value in values)
      equal = math.isclose(one, other, rel_tol=1e-12)
    else:
      one, other = map(fractions.Fraction, values)
      equal = one == other
    assert equal == pair['equal'], pair
  assert checked > 200
  equal = [pair for pair in PAIRS if pair['equal']]
  assert 0.3 < len(equal) / len(PAIRS) < 0.7


def test_no_false_positive(verdicts):
  wrong = [
    pair
    for pair, (verdict, _) in zip(PAIRS, verdicts, strict=True)
    if verdict.reward and not pair['equal']
  ]
  assert not wrong


def test_false_negatives_are_few_and_known(verdicts):
  equal = [pair for pair in PAIRS if pair['equal']]
  missed = [
    (pair['gold'], pair['answer'])
    for pair, (verdict, _) in zip(PAIRS, verdicts, strict=True)
    if pair['equal'] and not verdict.reward
  ]
  known = [(p['gold'], p['answer']) for p in PAIRS if p.get('missed')]
  assert missed == known
  assert len(missed) <= MOST_MISSED * len(equal)


def test_nothing_takes_long(verdicts):
  """Far below the deadline, hostile answers too; a first one may import."""
  slow = [
    (pair['gold'], pair['answer'][:40], seconds)
    for pair, (_, seconds) in zip(PAIRS, verdicts, strict=True)
    if seconds > 5
  ]
  assert not slow


def test_right_answers_are_read(verdicts):
  for pair, (verdict, _) in zip(PAIRS, verdicts, strict=True):
    if pair['equal']:
      assert verdict.parsed and verdict.answer_key, pair
    assert verdict.failure == ''


@pytest.mark.parametrize(
  ('response', 'reward', 'parsed'),
  [
    ('x</think>\\boxed{42}', 1, True),
    ('x</think>\\boxed{41} no, \\boxed{42}', 1, True),
    ('x</think>\\boxed{42} no, \\boxed{41}', 0, True),
    # Several answers, to be right in any case.
    ('x</think>\\boxed{42}\\boxed{43}', 0, True),
    ('x</think>\\boxed{41}, \\boxed{42} and \\boxed{43}', 0, True),
    ('x</think>\\boxed{42 \\boxed{43}}', 0, True),
    # What the thinking says does not count, nor what follows the turn.
    ('\\boxed{42}</think>', 0, False),
    ('\\boxed{42}', 0, False),
    ('\\boxed{42}</think>\\boxed{41}', 0, True),
    ('\\boxed{41}</think>\\boxed{42}', 1, True),
    ('x</think>\\boxed{41}<|im_end|>\\boxed{42}', 0, True),
    ('x</think>\\boxed{41}<|im_end|></think>\\boxed{42}', 0, True),
    # Cut off.
    ('x</think>\\boxed{42', 0, False),
    ('x</think>\\boxed{42} \\boxed{4', 0, False),
    # Without a box.
    ('x</think>The answer is 42.', 1, True),
    ('x</think>**Final answer:** $42$', 1, True),
    ('x</think>So the answer is $x = 42$.', 1, True),
    ('x</think>答案是42。', 1, True),
    ('x</think>答案：42', 1, True),
    ('x</think>The answer is 41. The answer is 42.', 1, True),
    ('x</think>The answer is 42. The answer is 41.', 0, True),
    ('x</think>The answer is 42 or 43', 0, True),
    ('x</think>The answer is 42. I checked it.', 1, True),
    ('x</think>The answer is:\n42\nand that is it', 1, True),
    ('x</think>The answer is 42.0', 1, True),
    ('x</think>The answer is not 42', 0, True),
    ('x</think>42', 0, False),
    ('x</think>It is 42', 0, False),
    ('x</think>', 0, False),
    ('', 0, False),
  ],
)
def test_where_the_answer_stands(response, reward, parsed):
  verdict = _verdict('42', response)
  assert (verdict.reward, verdict.parsed) == (reward, parsed)


def test_only_boxes_where_asked():
  text = 'x</think>The answer is 42.'
  assert _verdict('42', text, boxed_only=True) == base.UNPARSED


def test_tolerance():
  for answer, right in (('0.33', 1), ('1/3', 1), ('0.34', 0), ('-0.33', 0)):
    assert _boxed('0.333', answer, tolerance=0.01).reward == right
  assert _boxed('1/3', '0.33').reward == 0


def test_percent_as_a_unit():
  for gold, answer, plain, unit in (
    ('50\\%', '50', 0, 1),
    ('50', '50\\%', 0, 1),
    ('50\\%', '0.5', 1, 1),
    ('50\\%', '5', 0, 0),
  ):
    assert _boxed(gold, answer).reward == plain
    assert _boxed(gold, answer, percent_as_unit=True).reward == unit


@pytest.mark.parametrize(
  ('gold', 'group'),
  [
    ('7', ['1/2', '0.5', '\\frac{2}{4}', '\\frac12', '.50', 'x = 0.5']),
    ('7', ['1,234', '1234', '1{,}234', '1234.0']),
    ('7', ['1, 2', '2 and 1', '\\{1, 2.0\\}']),
    ('7', ['(1, 2)', '(1.0, \\frac42)']),
    ('7', ['\\text{even}', 'Even']),
    ('7', ['\\sqrt{ 2 }', '\\sqrt{2}', '\\left(\\sqrt{2}\\right)']),
    # With such a reference closed forms are worked out anyway.
    ('\\sqrt{3}', ['\\sqrt{8}', '2\\sqrt{2}', '\\sqrt2 \\cdot 2']),
  ],
)
def test_equal_answers_vote_together(gold, group):
  keys = {_boxed(gold, answer).answer_key for answer in group}
  assert len(keys) == 1 and keys != {''}


def test_other_answers_vote_apart():
  answers = ['1', '-1', '1/2', '2', '(1, 2)', '(2, 1)', '1, 2', '[1, 2]', 'x',
    'y', '50\\%', '5 cm', '5 m', '\\sqrt{2}', 'even', 'x=1,y=2', 'x=2,y=1',
    '(1,2)\\cup(3,4)']  # fmt: skip
  keys = [_boxed('7', answer).answer_key for answer in answers]
  assert len(set(keys)) == len(keys)


def test_the_key_does_not_know_the_reference():
  for gold in ('1/2', '0.5', '3', '(1,2)'):
    assert _boxed(gold, '0.50').answer_key == '1/2'


def test_a_bad_row_is_named():
  verifier = mathematics.Mathematics()

  def check(answer):
    return verifier.check(base.Problem('t', 't/0', 'q', answer, {}))

  assert check('\\frac{1}{2}') is None
  assert check(' ') == 'its answer is empty'
  assert 'cannot be read' in check('\\frac{1}{2')
  assert 'cannot be read' in check('9' * 10_000)


_PIECES = st.sampled_from(
  list('0123456789abxyXe+-*/^_=<>()[]{}|!,.;:%$& ')
  + ['\\frac', '\\sqrt', '\\pi', '\\left(', '\\right)', '\\{', '\\}', '\\cup',
    '\\text{', '\\pm', '\\infty', '\\le', '\\in', ' and ', '\\\\', '\\begin',
    '\\begin{pmatrix}', '\\end{pmatrix}', '\\boxed{', '\\circ', 'π', '½', '×']
)  # fmt: skip


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(_PIECES, max_size=25).map(''.join))
def test_any_text_is_read_or_refused(text):
  """Never an exception; and what is read is equal to itself."""
  answer = math_answer.read_answer(text)
  verdict = _boxed('42', text)
  assert verdict.failure == ''
  if answer is None or text.count('{') != text.count('}'):
    return
  assert isinstance(answer.key, str)
  verifier = mathematics.Mathematics()
  if not answer.also and answer.kind in ('number', 'words', 'expression'):
    assert verifier.same(answer, answer)
  if answer.kind == 'number' and not answer.also:
    other = math_answer.read_answer('123456789')
    assert verifier.same(other, answer) == (answer.value == 123456789)
