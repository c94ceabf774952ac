"""Same questions and leaked ones, against a slow search."""

import random
import re

import pytest

from metastone_jax.tasks import overlap


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('What is 3 + 4?', 'what  is 3+4'),
    ('Find $m+n$.', 'find m + n'),
    ('It is \\(x\\left(1\\right)\\)', 'It is \\( x ( 1 ) \\)'),
    ('$\\dfrac{1}{2}\\,\\text{cm}$', '\\frac{1}{2} \\text{cm}'),
    ('1 \N{MINUS SIGN} 2', '1 - 2'),
    ('\uff11\uff12\uff0b\uff13', '12+3'),
    ('\u4f60\u597d\uff0c\u4e16\u754c\u3002', '\u4f60\u597d \u4e16\u754c'),
    ('\u201cYes\u201d', '"yes"'),
  ],
)
def test_the_same_question(one, other):
  assert overlap.normal_text(one) == overlap.normal_text(other)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('What is 3 + 4?', 'What is 3 - 4?'),
    ('1 11', '11 1'),
    ('3.5', '35'),
    ('.5', '5'),
    ("f'(x)", 'f(x)'),
    ('3!', '3'),
    ('x^2', 'x2'),
    ('Make 3 using 1, 2.', 'Make -3 using 1, 2.'),
    ('a_1', 'a_2'),
    ('\u4e00\u4e8c', '\u4e00\u4e09'),
    ('\\leftarrow', '\\rightarrow'),
  ],
)
def test_not_the_same_question(one, other):
  assert overlap.normal_text(one) != overlap.normal_text(other)


def only(index, question):
  (match,) = index.matches([question])
  return match


def slow_matches(sets, questions):
  """The rules of the module docstring, word by word."""

  def words(text):
    return [w for w in re.findall(r'[a-z]+|\d+|[\u4e00-\u9fff]', text.lower())]

  trimmed = {}
  for name, items in sets.items():
    split = [words(q) for _, q in items]
    first = 0
    while (
      all(len(x) > first for x in split) and len({x[first] for x in split}) == 1
    ):
      first += 1
    last = 0
    while (
      all(len(x) - first > last for x in split)
      and len({x[len(x) - 1 - last] for x in split}) == 1
    ):
      last += 1
    for (i, q), x in zip(items, split, strict=True):
      trimmed[name, i] = words(q), x[first : len(x) - last]

  def contains(text, part):
    return any(
      text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1)
    )

  training = [words(question) for question in questions]

  def search(asked):
    for (name, i), (whole, part) in trimmed.items():
      if asked in (whole, part):
        return name, i
    for (name, i), (_, part) in trimmed.items():
      length = min(13, len(part))
      for at in range(len(part) - length + 1 if length >= 8 else 0):
        run = part[at : at + length]
        if not contains(asked, run):
          continue
        holders = {
          tuple(whole)
          for whole, other in trimmed.values()
          # A short question has one phrase alone: all of it.
          if contains(other, run) and min(13, len(other)) == length
        }
        learners = {
          tuple(x)
          for x in training
          if contains(x, run) and not any(x in y for y in trimmed.values())
        }
        if len(holders) <= 3 and len(learners) <= 10:
          return name, i
    return None

  return [search(asked) for asked in training]


@pytest.mark.parametrize('seed', range(6))
def test_against_a_slow_search(seed):
  """Random texts of a few words, so that runs are shared by chance too."""
  draw = random.Random(seed)
  vocabulary = ['ab', 'cd', 'ef', '7', '\u4e2d'][: 2 + seed % 4]

  def text(length):
    return ' '.join(draw.choice(vocabulary) for _ in range(length))

  start, end = text(4), text(14)
  stock = text(15)  # a phrase that many questions have
  sets = {
    'a': [
      (str(i), f'{start} {text(draw.randint(1, 40))} {end}') for i in range(8)
    ],
    'b': [
      (str(i), f'{text(5)} {stock if i % 2 else ""} {text(draw.randint(3, 9))}')
      for i in range(12)
    ],
  }
  everything = [q for items in sets.values() for _, q in items]
  often = text(20)  # ... and one that training questions share as well
  sets['a'].append(('8', f'{start} {often} {end}'))
  questions = []
  for n in range(200):
    kind = draw.randrange(4)
    if kind == 0:
      question = text(draw.randint(1, 60))
    elif kind == 1:
      question = draw.choice(everything)
    elif kind == 2:  # a passage of an evaluation question
      words = draw.choice(everything).split()
      at = draw.randint(0, len(words))
      passage = words[at : at + draw.randint(5, 25)]
      question = ' '.join([text(9), *passage, text(9)])
    else:
      question = f'{text(6)} {stock if n % 2 else often} {text(6)}'
    questions.append(question)
  found = overlap.EvaluationQuestions(sets).matches(questions)
  expected = slow_matches(sets, questions)
  for question, match, other in zip(questions, found, expected, strict=True):
    assert (match is None) == (other is None), question
  assert 20 < sum(match is not None for match in found) < 190


INSTRUCTION = (
  '\nPlease reason step by step, and put your final answer within \\boxed{}.'
)


def test_instructions_and_phrases_of_the_trade_are_no_leak():
  phrase = 'where m and n are relatively prime positive integers find m plus n'
  items = [
    (str(i), f'Question {name} of its own {phrase} {name}{INSTRUCTION}')
    for i, name in enumerate(('alpha', 'beta', 'gamma', 'delta'))
  ]
  items.append(('4', f'How many sequences{INSTRUCTION}'))
  index = overlap.EvaluationQuestions({'aime': items})
  assert only(index, f'Something else {phrase}{INSTRUCTION}') is None
  assert only(index, f'How many other sequences{INSTRUCTION}') is None
  same = only(index, 'how many sequences?')
  assert same == overlap.Match('aime', '4', exact=True)
  # Of three questions the phrase is still theirs.
  index = overlap.EvaluationQuestions({'aime': items[:3] + items[4:]})
  assert not only(index, f'Something else {phrase}{INSTRUCTION}').exact


def test_a_phrase_of_many_training_questions_is_no_leak():
  phrase = 'can be written as m over n where both are relatively prime positive'
  index = overlap.EvaluationQuestions(
    {'aime': [('0', f'Alpha {phrase}'), ('1', 'Something else')]}
  )
  for count in (10, 11):
    texts = [f'Number {i} {phrase} integers' for i in range(count)]
    same = [text.upper() for text in texts]  # which count once
    found = index.matches(texts + same)
    assert {m is None for m in found} == {count == 11}


def test_chinese_passages():
  """Thirteen characters in a row, without blanks between them."""
  head = '\u4ee5\u4e0b\u662f\u4e2d\u56fd\u5173\u4e8e'
  body = '\u8ba1\u7b97\u673a\u7f51\u7edc\u8003\u8bd5\u7684\u5355\u9879\u9009'
  other = '\u521d\u4e2d\u5730\u7406'
  index = overlap.EvaluationQuestions(
    {'ceval': [('0', head + body + '\u9898?'), ('1', head + other)]}
  )
  assert only(index, f'\u8bf7\u95ee{body}\u9898 A B').id == '0'
  assert only(index, f'\u8bf7\u95ee{body[:12]} A B') is None
  assert only(index, head * 3) is None


def test_an_empty_set_matches_nothing():
  index = overlap.EvaluationQuestions({'none': [], 'blank': [('0', '??')]})
  assert only(index, '??') is None and only(index, '') is None
