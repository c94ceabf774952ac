"""When two questions are the same, and when one has leaked into a training set.

Two questions are the same when their normal texts are: letter case, blanks,
sentence marks, dollar signs and LaTeX's spacing aside. Operators and numbers
stay: "3 + 4" is not "3 - 4".

A training question overlaps with an evaluation question when the two are the
same, or share 13 consecutive words (a Chinese character is a word; operators
are none). An evaluation question of 8 to 12 words must be contained as a
whole; a shorter one must be the same. Words that all questions of an
evaluation set begin or end with (instructions) are not looked at. Nor are
phrases of the trade ("where m and n are relatively prime positive integers"):
those of more than three different evaluation questions, or of more than ten
different training questions.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

NGRAM = 13
SHORTEST = 8
# A phrase of more evaluation or training questions identifies none of them.
COMMON_IN_EVALUATION = 3
COMMON_IN_TRAINING = 10

# Written without blanks between words.
_IDEOGRAPH = re.compile(
  '[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]'
)
_UNIT = re.compile(r'\d+(?:\.\d+)*|\.\d+|[^\W\d_]+|\S')
# How a formula is set, not what it says.
_LAYOUT = re.compile(
  r'\\(?:left|right|displaystyle|limits|quad|qquad)(?![a-zA-Z])|\\[,;:! ]'
)
_DROPPED = frozenset('$.,;:?"')
_SAME = str.maketrans(
  {
    '\N{MINUS SIGN}': '-',
    '\N{EN DASH}': '-',
    '\N{MULTIPLICATION SIGN}': '*',
    '\N{LEFT DOUBLE QUOTATION MARK}': '"',
    '\N{RIGHT DOUBLE QUOTATION MARK}': '"',
    '\N{LEFT SINGLE QUOTATION MARK}': "'",
    '\N{RIGHT SINGLE QUOTATION MARK}': "'",
    '\N{IDEOGRAPHIC FULL STOP}': '.',
    '\N{IDEOGRAPHIC COMMA}': ',',
  }
)


def units(text: str) -> list[str]:
  """A text as words, numbers and symbols, in the form that is compared."""
  if not text.isascii():
    text = unicodedata.normalize('NFKC', text).translate(_SAME)
    text = _IDEOGRAPH.sub(r' \g<0> ', text)
  text = _LAYOUT.sub(' ', text).replace('\\dfrac', '\\frac')
  found = _UNIT.findall(text.replace('\\tfrac', '\\frac').casefold())
  return [unit for unit in found if unit not in _DROPPED]


def normal_text(text: str) -> str:
  """Equal for questions that are the same."""
  return ' '.join(units(text))


@dataclasses.dataclass(frozen=True)
class Match:
  """What a training question overlaps with.

  Attributes:
    task: the evaluation set.
    id: of its problem.
    exact: the two are the same question.
  """

  task: str
  id: str
  exact: bool


class EvaluationQuestions:
  """The questions that must not be trained on.

  Args:
    sets: name -> (problem id, question) of all its problems.
  """

  def __init__(self, sets: Mapping[str, Iterable[tuple[str, str]]]):
    self._exact: dict[str, Match] = {}
    # First words of a phrase -> (all of its words, whose it is).
    self._phrases: dict[str, list[tuple[tuple[str, ...], Match]]] = {}
    holders: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    owners: dict[tuple[str, ...], Match] = {}
    for name, questions in sets.items():
      questions = list(questions)
      split = [units(question) for _, question in questions]
      own = _without_common_ends(split)
      for (problem_id, _), whole, part in zip(
        questions, split, own, strict=True
      ):
        text = ' '.join(whole)
        same = Match(name, problem_id, exact=True)
        self._exact.setdefault(text, same)
        self._exact.setdefault(' '.join(part), same)
        shared = dataclasses.replace(same, exact=False)
        for phrase in _phrases(_words(part)):
          holders[phrase].add(text)
          owners.setdefault(phrase, shared)
    self._exact.pop('', None)
    for phrase, match in owners.items():
      if len(holders[phrase]) <= COMMON_IN_EVALUATION:
        start = ' '.join(phrase[:SHORTEST])
        self._phrases.setdefault(start, []).append((phrase, match))

  def matches(self, questions: Sequence[str]) -> list[Match | None]:
    """What each training question overlaps with, exact matches first.

    Args:
      questions: all of the training set, since phrases are counted.
    """
    same: list[Match | None] = []
    shared: list[list[tuple[tuple[str, ...], Match]]] = []
    holders: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    for question in questions:
      split = units(question)
      text = ' '.join(split)
      same.append(self._exact.get(text))
      found = [] if same[-1] else list(self._shared(_words(split)))
      for phrase, _ in found:
        holders[phrase].add(text)
      shared.append(found)
    return [
      exact
      or next(
        (m for p, m in found if len(holders[p]) <= COMMON_IN_TRAINING), None
      )
      for exact, found in zip(same, shared, strict=True)
    ]

  def _shared(
    self, words: Sequence[str]
  ) -> Iterator[tuple[tuple[str, ...], Match]]:
    """Phrases of evaluation questions in a text, and whose they are."""
    for i in range(len(words) - SHORTEST + 1):
      start = ' '.join(words[i : i + SHORTEST])
      for phrase, match in self._phrases.get(start, ()):
        if tuple(words[i : i + len(phrase)]) == phrase:
          yield phrase, match


def _words(split: Sequence[str]) -> list[str]:
  return [unit for unit in split if unit.isalnum() or unit[-1].isdigit()]


def _phrases(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
  """What identifies a question: its runs of 13 words, or all of a short one."""
  length = min(NGRAM, len(words))
  if length >= SHORTEST:
    for i in range(len(words) - length + 1):
      yield tuple(words[i : i + length])


def _without_common_ends(split: Sequence[list[str]]) -> list[list[str]]:
  """The lists without what all of them begin and end with."""
  if len({tuple(x) for x in split}) < 2:
    return list(split)
  first = _common_length(split)
  last = _common_length([x[first:][::-1] for x in split])
  return [x[first : len(x) - last] for x in split]


def _common_length(split: Sequence[list[str]]) -> int:
  """How many units all lists begin with."""
  length = 0
  for column in zip(*split, strict=False):
    if len(set(column)) > 1:
      break
    length += 1
  return length
