"""Multiple choice: which letter a response ends on, in English or Chinese.

Read are statements of an answer behind `</think>`, such as "ANSWER: C", "The
answer is (C)", "答案是C", "答案：C", "故选C", "\\boxed{C}" or a last line that
is nothing but the letter. The last statement counts; where it names several
letters, or none of the choices, there is no answer. A letter in ordinary words
("A good idea", "Vitamin C") states nothing.
"""

import re
import unicodedata

from metastone_jax import errors
from metastone_jax.tasks import base as tasks_base
from metastone_jax.tasks.verifiers import base

# Statements stand at the end; what comes before is not read.
_TAIL = 4000

# What may stand around the letter. The text is NFKC (full-width forms are
# ASCII) and free of *, _, ` and $.
_BEFORE = (
  r"""[\s:("'\[{]*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{\s*)?[("'\[]*"""
)
_LETTER = r'(?P<{name}>[A-Za-z])(?![A-Za-z0-9])'
_STATEMENTS = (
  ('boxed', r'\\boxed\s*\{'),
  (
    'answer',
    r'\b(?:answer|choice|option)\s*(?:is|:|=)(?:\s*(?:option|choice))?',
  ),
  ('correct', r'\b(?:correct|right|best)\s+(?:answer|choice|option)\s+is'),
  ('zh', r'答案(?:选项)?(?:应该|应当|应|就|只能)?(?:是|为|选择?)?\s*(?:选项)?'),
  (
    'pick',
    r'(?<![不别勿未没能可该应])(?:应该|应当|应)?选(?:择|项)?(?:答案)?(?:是|为)?',
  ),
)
_PATTERN = re.compile(
  '|'.join(
    rf'(?:{head}){_BEFORE}{_LETTER.format(name=name)}'
    for name, head in _STATEMENTS
  )
  + rf'|^[\s("\[]*{_LETTER.format(name="line")}[\s)"\].]*$',
  re.IGNORECASE | re.MULTILINE,
)
_NOISE = re.compile(r'[*_`$]|\\[()]')
# "A" and a lower-case letter may be words: then only what ends a statement, or
# says why, may follow.
_WORD = re.compile(r'[ \t]+(?!(?:because|since|as|is|for|option)\b)[A-Za-z]')
_MORE = re.compile(
  r'[\s)"\']*(?:,|/|&|、|和|与|或|及|and\b|or\b)[\s("\']*[A-Za-z](?![A-Za-z])'
)


class Choice(base.Verifier):
  """The verifier; see the module docstring.

  Args:
    letters: the choices.

  Raises:
    UserError: fewer than two letters, or something else than capitals.
  """

  name = 'choice'

  def __init__(self, *, letters: str = 'ABCD'):
    if len(letters) < 2 or not re.fullmatch('[A-Z]+', letters):
      raise errors.UserError(
        f"verifier 'choice': letters={letters!r} must be at least two capital "
        "letters, such as 'ABCD'"
      )
    self.letters = letters

  def check(self, problem: tasks_base.Problem) -> str | None:
    """See `Verifier.check`."""
    if problem.answer.strip() in tuple(self.letters):
      return None
    return (
      f'its answer {problem.answer[:40]!r} is none of {", ".join(self.letters)}'
    )

  def verify(
    self, problem: tasks_base.Problem, response_text: str
  ) -> tasks_base.Verdict:
    """See the module docstring; the answer key is the letter.

    Args:
      problem: of which `answer` is a letter.
      response_text: what follows the prompt.
    """
    text = tasks_base.final_answer_text(response_text)
    letter = None if text is None else find_letter(text, self.letters)
    if letter is None:
      return tasks_base.UNPARSED
    right = letter == problem.answer.strip()
    return tasks_base.Verdict(float(right), parsed=True, answer_key=letter)


def find_letter(text: str, letters: str = 'ABCD') -> str | None:
  """The letter of the last statement; None where it is not exactly one.

  Args:
    text: what stands behind the thinking.
    letters: the choices, capitals.
  """
  text = unicodedata.normalize('NFKC', text[-_TAIL:])
  text = _NOISE.sub('', text)
  last = None
  for found in _PATTERN.finditer(text):
    letter = found[found.lastgroup]
    behind = text[found.end() :]
    if letter in 'Aa' or letter.islower():
      if found.lastgroup != 'boxed' and _WORD.match(behind):
        continue  # an article or another word
    several = _MORE.match(behind)
    last = None if several else letter.upper()
  return last if last and last in letters else None
