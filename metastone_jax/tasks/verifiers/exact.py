"""Answers that are one text: the same characters as the reference.

What counts is the last `\\boxed{...}` behind `</think>`, else all that stands
there. Compared after Unicode normalisation (NFKC: full-width letters and the
like), with runs of white space as one blank and without a full stop at the
end.
"""

import unicodedata

from metastone_jax.tasks import base as tasks_base
from metastone_jax.tasks import boxed
from metastone_jax.tasks.verifiers import base

# Longer answers are not read, so that a flood costs nothing.
MAX_CHARACTERS = 10_000


class Exact(base.Verifier):
  """The verifier; see the module docstring.

  Args:
    ignore_case: "Paris" is "paris".
  """

  name = 'exact'

  def __init__(self, *, ignore_case: bool = False):
    self.ignore_case = ignore_case

  def check(self, problem: tasks_base.Problem) -> str | None:
    """See `Verifier.check`."""
    if len(problem.answer) > MAX_CHARACTERS:
      return f'its answer has more than {MAX_CHARACTERS} characters'
    return None if self.normalise(problem.answer) else 'its answer is empty'

  def verify(
    self, problem: tasks_base.Problem, response_text: str
  ) -> tasks_base.Verdict:
    """See the module docstring; the answer key is the normalised text.

    Args:
      problem: of which `answer` is the reference.
      response_text: what follows the prompt.
    """
    text = tasks_base.final_answer_text(response_text)
    if text is not None and '\\boxed' in text:
      text = boxed.last_boxed(text)
    if text is None or len(text) > MAX_CHARACTERS:
      return tasks_base.UNPARSED
    answer, gold = self.normalise(text), self.normalise(problem.answer)
    if not answer:
      return tasks_base.UNPARSED
    return tasks_base.Verdict(float(answer == gold), True, answer)

  def normalise(self, text: str) -> str:
    """The form that is compared.

    Args:
      text: an answer.
    """
    text = ' '.join(unicodedata.normalize('NFKC', text).split())
    text = text.removesuffix('.').removesuffix('。').rstrip()
    return text.casefold() if self.ignore_case else text
