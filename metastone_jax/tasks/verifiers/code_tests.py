"""What a program is tested with, and when an output is the expected one.

Comparison follows LiveCodeBench: text line by line without blanks at the ends,
where two lines also agree if they are the same numbers (1.0 and 1.00); values
of functions by equality, a tuple counting as a list.
"""

import dataclasses
import decimal
import json
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ('stdin', 'functional')


@dataclasses.dataclass(frozen=True)
class TestCase:
  """One test.

  Attributes:
    kind: 'stdin' (a whole program reads `input` and prints `output`) or
      'functional' (a function takes arguments, one JSON value a line of
      `input`, and returns the JSON value `output`).
    input: text.
    output: text.
  """

  kind: str
  input: str
  output: str

  # Not a class of tests, whatever pytest thinks of its name.
  __test__ = False

  def arguments(self) -> list[Any]:
    """Of a functional test."""
    return [json.loads(line) for line in self.input.split('\n')]

  def value(self) -> Any:
    """What the function of a functional test shall return."""
    return json.loads(self.output)


def parse_tests(rows: Any, func_name: str = '') -> tuple[TestCase, ...]:
  """Tests as data files have them.

  Args:
    rows: a list of objects with `input`, `output` and, unless it is 'stdin',
      `testtype`.
    func_name: the function that functional tests call.

  Raises:
    ValueError: says what is wrong, as in "its test 3 ...".
  """
  if not isinstance(rows, Sequence) or isinstance(rows, str):
    raise ValueError('its tests are no list')
  tests = []
  for i, row in enumerate(rows):
    if not isinstance(row, Mapping):
      raise ValueError(f'its test {i} is no object')
    texts = row.get('input'), row.get('output')
    if not all(isinstance(text, str) for text in texts):
      raise ValueError(f'its test {i} lacks the text of input or output')
    kind = row.get('testtype', 'stdin')
    if kind not in KINDS:
      raise ValueError(
        f'its test {i} has testtype {kind!r}; known are {", ".join(KINDS)}'
      )
    test = TestCase(kind, *texts)
    if kind == 'functional':
      if not func_name:
        raise ValueError(
          f'its test {i} calls a function, and func_name is empty'
        )
      try:
        test.arguments(), test.value()
      except (ValueError, RecursionError) as error:
        raise ValueError(f'its test {i} is no JSON: {error}') from error
    tests.append(test)
  if not tests:
    raise ValueError('it has no tests')
  return tuple(tests)


def text_is_expected(printed: str, expected: str) -> bool:
  """Whether what a program has printed is what it should print."""
  lines, wanted = (
    [line.strip() for line in text.strip().split('\n')]
    for text in (printed, expected)
  )
  return len(lines) == len(wanted) and all(
    line == want or _same_numbers(line, want)
    for line, want in zip(lines, wanted, strict=True)
  )


def _same_numbers(line: str, want: str) -> bool:
  words, wanted = line.split(), want.split()
  if len(words) != len(wanted) or not words:
    return False
  try:
    pairs = [
      (decimal.Decimal(word), decimal.Decimal(other))
      for word, other in zip(words, wanted, strict=True)
    ]
  except decimal.InvalidOperation:
    return False
  # A signalling NaN raises when compared.
  return all(x.is_finite() and y.is_finite() and x == y for x, y in pairs)


def value_is_expected(value: Any, expected: Any) -> bool:
  """Whether the plain data that a function returned is what it should be."""
  if isinstance(value, tuple):
    value = list(value)
  try:
    return bool(value == expected)
  except RecursionError:
    return False
