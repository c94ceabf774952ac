"""CHAMP: competition mathematics with reference steps (extra `champ`).

270 problems inside the PyPI package champ-dataset (arXiv 2406.18321). About
half of the answers are numbers, some in words around them ("98 values", "0 is
the only possible value"); the others are formulas in n, "Yes", or sentences
that no reader of answers can judge.
"""

import functools
import re
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks.sources import base

# The last of several forms of an answer, and what may stand around a number.
_EQUIVALENT = ', or equivalently '
_NUMBER = re.compile(
  r'(-?\d+(?:/\d+|\.\d+)?)'
  r'(?: \(i\.e\.,.*\)| is the only possible value'
  r'| values| pairs| roots| inequalities|, or approximately .*)?'
)


class Champ(base.Source):
  """The problems in the package's order.

  A row has id, question, answer (the number alone, where it is one), category
  and solution (the reference steps, a paragraph each).

  Args:
    answers: 'number' for the problems whose answer is a number, 'all'.
  """

  def __init__(self, answers: str = 'number'):
    if answers not in ('number', 'all'):
      raise errors.UserError(
        f"source 'champ': answers={answers!r}; use 'number' or 'all'"
      )
    self._answers = answers

  def _open(self):
    keep = self._answers
    return [row for row in _rows() if keep == 'all' or number_in(row['answer'])]

  def __len__(self) -> int:
    return len(self.opened)

  def row(self, index: int) -> dict[str, Any]:
    """See `base.Source.row`."""
    return self.opened[index]

  def where(self, index: int) -> str:
    """See `base.Source.where`."""
    return f'champ-dataset {self.opened[index]["id"]}'


@functools.cache
def _rows() -> list[dict[str, Any]]:
  """All rows; the package reads a file of 72 MB, mostly what models wrote."""
  try:
    # Imported here: it is an extra.
    import champ_dataset
  except ImportError as error:
    raise errors.UserError(
      "source 'champ' needs the package champ-dataset; "
      'pip install "metastone_jax[champ]"'
    ) from error
  return [
    {
      'id': problem.identifier,
      'question': problem.text,
      'answer': number_in(problem.answer) or problem.answer,
      'category': problem.category,
      'solution': '\n\n'.join(s.text for s in problem.solution.steps),
    }
    for problem in champ_dataset.load('v0').problems.values()
  ]


def number_in(answer: str) -> str | None:
  """The number that an answer of CHAMP gives, or None.

  Args:
    answer: as the package has it.
  """
  match = _NUMBER.fullmatch(answer.rpartition(_EQUIVALENT)[2])
  return match[1] if match else None
