"""Which letter a response states, decided by hand."""

import time

import pytest

from metastone_jax import errors
from metastone_jax.tasks import base
from metastone_jax.tasks.verifiers import choice

STATED = [
  # The form that C-Eval's prompt asks for: 'ANSWER: $LETTER'.
  ('ANSWER: C', 'C'),
  ("'ANSWER: C'", 'C'),
  ('ANSWER：C', 'C'),
  ('ANSWER: $C$', 'C'),
  ('**ANSWER: C**', 'C'),
  ('**ANSWER:** C', 'C'),
  ('Answer: (C)', 'C'),
  ('answer: c', 'C'),
  ('ANSWER:C.', 'C'),
  ('ANSWER: C\n', 'C'),
  ('ANSWER: C. 3', 'C'),
  ('ANSWER: A', 'A'),
  ('ANSWER: A. 1', 'A'),
  ('ANSWER: \\text{C}', 'C'),
  ('The answer is (C).', 'C'),
  ('The answer is C because 3 is odd.', 'C'),
  ('The answer is A because 3 is odd.', 'A'),
  ('So the final answer is: C', 'C'),
  ('the correct option is D', 'D'),
  ('The correct answer is option B.', 'B'),
  ('The answer is A.', 'A'),
  ('The answer is \\boxed{C}.', 'C'),
  ('答案是C', 'C'),
  ('答案是 C。', 'C'),
  ('答案：C', 'C'),
  ('答案:C', 'C'),
  ('答案：（C）', 'C'),
  ('答案为C', 'C'),
  ('答案是：C', 'C'),
  ('正确答案是 **C**。', 'C'),
  ('正确答案应该是C', 'C'),
  ('因此，答案选C', 'C'),
  ('所以选C。', 'C'),
  ('选C', 'C'),
  ('故选：C', 'C'),
  ('故选C项', 'C'),
  ('应选C', 'C'),
  ('应选择C', 'C'),
  ('因此选择 Ｃ', 'C'),
  ('正确选项是B', 'B'),
  ('正确选项为：B', 'B'),
  ('\\boxed{C}', 'C'),
  ('\\boxed{\\text{C}}', 'C'),
  ('\\boxed{(C)}', 'C'),
  ('\\boxed{\\mathrm{C}}', 'C'),
  ('\\boxed{ C }', 'C'),
  ('\\boxed{\\text{(C)}}', 'C'),
  ('$\\boxed{C}$', 'C'),
  ('\\boxed{C. 3}', 'C'),
  ('It is odd.\nC', 'C'),
  ('(C)', 'C'),
  ('C.', 'C'),
  ('**C**', 'C'),
  # The last statement counts.
  ('答案是A。不对，答案是B。', 'B'),
  ('ANSWER: A\nWait.\nANSWER: D', 'D'),
  ('\\boxed{A} is wrong. The answer is B.', 'B'),
  ('选A……再想想，选D', 'D'),
  ('The answer is A. A cat is no dog. Vitamin C helps.', 'A'),
]
NOTHING = [
  '',
  'I do not know.',
  'A good idea would be to add.',
  'The answer is a good question.',
  'The answer is a number.',
  'The answer is A good one',
  'Vitamin C and plan B',
  'ANSWER: $LETTER',
  'ANSWER: LETTER',
  'ANSWER: 42',
  'ANSWER: E',
  'The answer is not C.',
  '答案不是C',
  '不选C',
  '不能选C',
  '不应选C',
  '答案是Catalan数',
  '选项中没有正确的',
  '\\boxed{42}',
  '\\boxed{Carbon}',
  '\\boxed{}',
  # Several letters are no answer to a question with one.
  'ANSWER: A, C',
  'ANSWER: A and C',
  'ANSWER: AC',
  '答案是A和C',
  '答案：A、B、C、D',
  '\\boxed{A, B}',
  '\\boxed{AB}',
  'The answer is C or D.',
  'ANSWER: C\nANSWER: A, B, C, D',
]


@pytest.mark.parametrize(('text', 'letter'), STATED)
def test_what_is_stated(text, letter):
  assert choice.find_letter(text) == letter


@pytest.mark.parametrize('text', NOTHING)
def test_what_states_nothing(text):
  assert choice.find_letter(text) is None


def _problem(answer='C'):
  return base.Problem('ceval', 'ceval/0', 'Which?', answer, {})


def test_verdicts():
  verifier = choice.Choice()
  assert verifier.verify(_problem(), 'x</think>答案是C') == base.Verdict(
    1.0, True, 'C'
  )
  assert verifier.verify(_problem(), 'x</think>答案是B') == base.Verdict(
    0.0, True, 'B'
  )
  # The thinking is not read, nor what follows the turn.
  for text in ('答案是C', '答案是C</think>', 'x</think>?<|im_end|>答案是C'):
    assert verifier.verify(_problem(), text) == base.UNPARSED
  assert not verifier.isolated


def test_more_letters():
  verifier = choice.Choice(letters='ABCDEFGHIJ')
  assert verifier.verify(_problem('J'), '</think>ANSWER: J').reward == 1.0
  assert choice.Choice().verify(_problem(), '</think>ANSWER: J').parsed is False


def test_a_bad_row_is_named():
  verifier = choice.Choice()
  assert verifier.check(_problem()) is None
  for answer in ('', 'E', 'AB', 'c', '3'):
    assert 'none of A, B, C, D' in verifier.check(_problem(answer))
  for letters in ('', 'A', 'ab', 'A1'):
    with pytest.raises(errors.UserError, match='capital'):
      choice.Choice(letters=letters)


@pytest.mark.parametrize(
  'piece', ['答案', '选', 'ANSWER: ', '\\boxed{', '(', 'A ']
)
def test_a_flood_costs_nothing(piece):
  text = '</think>' + piece * 300_000
  start = time.perf_counter()
  choice.Choice().verify(_problem(), text)
  assert time.perf_counter() - start < 10.0
