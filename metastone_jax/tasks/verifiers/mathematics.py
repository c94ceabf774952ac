"""Mathematical answers: numbers, expressions, lists, sets, tuples, intervals.

What counts is the last `\\boxed{...}` behind `</think>`; where there is no box
at all, what follows the last "answer is" or "答案是". An answer is right if it
says the same as the reference; nothing else that the response holds matters.

The same, in short: numbers exactly (0.5 = 1/2 = 50 %, but 0.33 is not 1/3; see
`tolerance`); lists and sets in any order, tuples, intervals and matrices part
by part, with their brackets; "x = 3" is 3; a unit may be left out but not be
another one; words whatever their case; expressions if math-verify AND their
values at random points agree. An answer must be worked out: 17 + 25 is not 42
where the reference is 42. Where it cannot be shown that two are equal, they
are not: no false positive is worth a true one.
"""

import dataclasses
import importlib.util
import re

from metastone_jax import errors
from metastone_jax.tasks import base as tasks_base
from metastone_jax.tasks import boxed
from metastone_jax.tasks.verifiers import base, math_answer, math_symbolic
from metastone_jax.tasks.verifiers.math_answer import Answer

# Where an answer without a box is looked for: the end of the response.
_TAIL = 4000
_SAID = re.compile(r'answer(?: is|:)|答案[是为：:]', re.IGNORECASE)
# It ends with its line or sentence; a full stop inside a number does not count.
_END = re.compile(r'\n|。|[.](?=\s|$)')


class Mathematics(base.Verifier):
  """The verifier; see the module docstring. Needs the extra `math`.

  Args:
    tolerance: relative, between numbers, for data sets whose references are
      rounded; 0 = exact.
    percent_as_unit: "50" is right where the reference is "50 %", and the other
      way round, for data sets that ask for "how many percent".
    boxed_only: an answer without a box is none.

  Raises:
    UserError: math-verify is not installed, or an option out of range.
  """

  name = 'math'
  isolated = True

  def __init__(
    self,
    *,
    tolerance: float = 0.0,
    percent_as_unit: bool = False,
    boxed_only: bool = False,
  ):
    if not 0 <= tolerance < 0.1:
      raise errors.UserError(
        f"verifier 'math': tolerance={tolerance} is relative, from 0 (exact) "
        'to below 0.1'
      )
    if importlib.util.find_spec('math_verify') is None:
      raise errors.UserError(
        "verifier 'math' needs the package math-verify; "
        'pip install "metastone_jax[math]"'
      )
    self.tolerance = tolerance
    self.percent_as_unit = percent_as_unit
    self.boxed_only = boxed_only

  def prepare(self) -> None:
    """Imports math-verify and sympy, about a second."""
    math_symbolic.equal(r'\sqrt{8}', r'2\sqrt{2}')

  def check(self, problem: tasks_base.Problem) -> str | None:
    """See `Verifier.check`: whether the reference can be read."""
    if not problem.answer.strip():
      return 'its answer is empty'
    if math_answer.read_answer(problem.answer) is None:
      return (
        f'its answer {problem.answer[:80]!r} cannot be read as mathematics '
        '(unbalanced braces, or too long)'
      )
    return None

  def verify(
    self, problem: tasks_base.Problem, response_text: str
  ) -> tasks_base.Verdict:
    """See the module docstring.

    Args:
      problem: of which `answer` is the reference.
      response_text: what follows the prompt.

    Returns:
      The verdict. The key votes for the answer: numbers, and lists, sets and
      tuples of them, agree however they are written, and so do closed forms
      such as \\sqrt{8} and 2\\sqrt{2} where the reference is no plain number;
      other expressions agree if they differ in blanks and brackets alone.
    """
    content = find_answer(response_text, boxed_only=self.boxed_only)
    answer = None if content is None else math_answer.read_answer(content)
    gold = math_answer.read_answer(problem.answer)
    if answer is None or gold is None:
      return tasks_base.UNPARSED
    right = self.same(gold, answer)
    key = answer.key
    if gold.kind == answer.kind == 'expression':
      key = math_symbolic.value_key(gold.body, answer.body) or key
    return tasks_base.Verdict(float(right), parsed=True, answer_key=key)

  def same(self, gold: Answer, answer: Answer) -> bool:
    """Whether an answer says what the reference says.

    Args:
      gold: of the reference; what it leaves out may be left out or not.
      answer: of the response.
    """
    if 'equation' in (gold.kind, answer.kind) or (
      gold.name and answer.name and gold.name != answer.name
    ):
      return self._same_equation(gold, answer)
    if answer.also and not all(
      self._equal(dataclasses.replace(answer, also=()), other)
      for other in answer.also
    ):
      return False  # "41 = 42" says two things
    return self._said(gold, answer)

  def _said(self, gold: Answer, answer: Answer) -> bool:
    if gold.parts or answer.parts:
      return self._same_parts(gold, answer)
    if gold.kind == 'number':
      return answer.kind == 'number' and self._same_number(gold, answer)
    return self._equal(gold, answer)

  def _equal(self, gold: Answer, answer: Answer) -> bool:
    """As `_said`, of two that need not be worked out."""
    if gold.text == answer.text:
      return True
    if 'words' in (gold.kind, answer.kind) or gold.parts or answer.parts:
      return gold.key == answer.key
    if gold.kind == answer.kind == 'number':
      return self._same_number(gold, answer)
    if not self._units_agree(gold, answer) or '%' in (gold.unit, answer.unit):
      return False
    return math_symbolic.equal(
      gold.body or str(gold.value), answer.body or str(answer.value)
    )

  def _same_equation(self, gold: Answer, answer: Answer) -> bool:
    """As `same`, where "y = 2x + 1" and "2x - y + 1 = 0" are to be compared."""
    if gold.equation and gold.equation == answer.equation:
      return True
    # "x = 3" and "y = 3" are two different answers, as are "x = 3" and
    # "2x = 6", which is to be worked out.
    whole = [bool(x.equation) and x.kind != 'number' for x in (gold, answer)]
    return all(whole) and math_symbolic.same_equation(
      gold.equation, answer.equation
    )

  def _units_agree(self, gold: Answer, answer: Answer) -> bool:
    return gold.unit == answer.unit or not (gold.unit and answer.unit)

  def _same_number(self, gold: Answer, answer: Answer) -> bool:
    units = {gold.unit, answer.unit} - {'%', ''}
    percents = [x.unit == '%' for x in (gold, answer)]
    if any(percents):
      if units:
        return False
      values = [
        x.value / 100 if percent else x.value
        for x, percent in zip((gold, answer), percents, strict=True)
      ]
      as_unit = self.percent_as_unit and self._close(gold.value, answer.value)
      return as_unit or self._close(*values)
    return len(units) < 2 and self._close(gold.value, answer.value)

  def _close(self, gold, value) -> bool:
    if not self.tolerance:
      return gold == value
    return abs(gold - value) <= self.tolerance * abs(gold)

  def _same_parts(self, gold: Answer, answer: Answer) -> bool:
    kinds = {gold.kind, answer.kind}
    if len(kinds) > 1 and kinds != {'list', 'set'}:
      return False
    if len(gold.parts) != len(answer.parts):
      return False
    names = {part.name for part in gold.parts} - {''}
    pairs_agree = self.same
    if len(names) > 1:  # "x = 1, y = 2": which is which matters

      def pairs_agree(one, other):
        return one.name == other.name and self.same(one, other)

    if gold.kind not in math_answer.UNORDERED:
      return all(
        pairs_agree(one, other)
        for one, other in zip(gold.parts, answer.parts, strict=True)
      )
    left = list(answer.parts)
    for one in gold.parts:
      found = next((x for x in left if pairs_agree(one, x)), None)
      if found is None:
        return False
      left.remove(found)
    return True


def find_answer(response_text: str, *, boxed_only: bool = False) -> str | None:
  """The text of the final answer; None where there is none.

  Args:
    response_text: the text that follows the prompt.
    boxed_only: see `Mathematics`.
  """
  text = tasks_base.final_answer_text(response_text)
  if text is None:
    return None
  if '\\boxed' in text or boxed_only:
    return boxed.last_boxed(text)
  text = text[-_TAIL:]
  said = list(_SAID.finditer(text))
  if not said:
    return None
  return _END.split(text[said[-1].end() :].lstrip(' :：*\n'), maxsplit=1)[0]
