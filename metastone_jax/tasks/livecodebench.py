"""LiveCodeBench: problems of programming contests, dated.

Files are those of the benchmark (see `livecodebench_rows`), one or several,
for example its six parts. A window of contest dates keeps problems that were
published after a model's data was collected. The prompt asks for what the
benchmark's prompt asks for: complete the starter code, or write a program that
reads standard input; the answer is a program in a code block.

Every row in the window is read whole and checked at the start, its hidden
tests included; bad rows are named with file and line.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from metastone_jax import errors
from metastone_jax.tasks import base, code_task, livecodebench_rows
from metastone_jax.tasks.sources import RowError, refuse_or_tell
from metastone_jax.tasks.verifiers import code

# The names of these modules, and they themselves, are defined in a program
# that the benchmark runs; models count on it (`List`, `deque`, `gcd`).
STAR_IMPORTS = (
  'string',
  're',
  'datetime',
  'collections',
  'heapq',
  'bisect',
  'copy',
  'math',
  'random',
  'statistics',
  'itertools',
  'functools',
  'operator',
  'io',
  'sys',
  'json',
  'builtins',
  'typing',
)

_WITH_STARTER = (
  '{question}\n\nWrite a correct Python program that passes all tests. '
  'Complete this starter code and keep its names. Give the whole program in '
  'one code block at the end.\n\n```python\n{starter}\n```'
)
_WITH_STDIN = (
  '{question}\n\nWrite a correct Python program that passes all tests. It must '
  'read the input from standard input, work out the answer, and print it to '
  'standard output; do not test it on the sample inputs. Give the whole '
  'program in one code block at the end, in this form:\n\n```python\n'
  '# your program\n```'
)


class ContestCode(code.Code):
  """Reads the tests of a problem from its row, when they are needed."""

  def tests(self, problem):
    """See `Code.tests`."""
    return livecodebench_rows.tests_at(**problem.data['livecodebench'])


class LiveCodeBench(code_task.CodeTask):
  """The task; see the module docstring.

  Args:
    seed: of the order of training.
    path: a file, or several.
    folder: of relative paths; without `path`, all its files test*.jsonl.
    date_from: first contest date, such as '2024-08-01'; '' = no bound.
    date_to: last contest date; '' = no bound.
    difficulty: 'easy', 'medium', 'hard', or several; () = all.
    limit: at most so many problems, the first ones; 0 = all.
    bad_rows: 'stop' (an error that names them) or 'skip' (a warning).
    train: whether it may be trained on.
    verifier_options: of `verifiers.code.Code`.

  Attributes:
    num_bad: rows that were skipped.

  Raises:
    UserError: an option out of range, no such file, bad rows, or no row left.
  """

  name = 'livecodebench'
  may_skip = True
  judge = ContestCode

  def __init__(
    self,
    seed: int = 0,
    *,
    path: str | Sequence[str] = (),
    folder: str = '',
    date_from: str = '',
    date_to: str = '',
    difficulty: str | Sequence[str] = (),
    limit: int = 0,
    bad_rows: str = 'stop',
    train: bool = False,
    verifier_options: Mapping[str, Any] | None = None,
  ):
    if bad_rows not in ('stop', 'skip'):
      raise errors.UserError(
        f"task {self.name!r}: bad_rows={bad_rows!r} must be 'stop' or 'skip'"
      )
    code_task.check_limit(self.name, limit)
    self.bad_rows = bad_rows
    self._window = [
      _date(option, text)
      for option, text in (('date_from', date_from), ('date_to', date_to))
    ]
    self._difficulties = (
      (difficulty,) if isinstance(difficulty, str) else tuple(difficulty)
    )
    problems, bad = self._read(_files(path, folder), limit)
    self.num_bad = len(bad)
    refuse_or_tell(self.name, bad, len(bad) + len(problems), bad_rows)
    if not problems:
      raise errors.UserError(
        f'task {self.name!r}: no problem is left between '
        f'{date_from or "the first"} and {date_to or "the last day"} of '
        f'difficulty {" or ".join(self._difficulties) or "any"}; widen them'
      )
    super().__init__(
      self.name,
      seed,
      problems,
      train=train,
      verifier_options=verifier_options or {},
    )

  def _read(self, files, limit) -> tuple[list[base.Problem], list[str]]:
    """The problems that are wanted, and what is wrong with the others."""
    problems: dict[str, base.Problem] = {}
    bad: list[str] = []
    for file in files:
      for number, offset, line in livecodebench_rows.lines_of(file):
        if limit and len(problems) == limit:
          break
        try:
          row = livecodebench_rows.parse_row(line)
          if not self._wanted(row):
            continue
          livecodebench_rows.tests_of(row)
          problem = self._problem(row, str(file), offset)
          if problem.id in problems:
            raise RowError(
              f'has a question_id that came before, {row["question_id"]!r}'
            )
          problems[problem.id] = problem
        except RowError as error:
          bad.append(f'{file}:{number} {error}')
    return list(problems.values()), bad

  def _wanted(self, row: dict[str, Any]) -> bool:
    if self._difficulties and row['difficulty'] not in self._difficulties:
      return False
    try:
      day = datetime.datetime.fromisoformat(row['contest_date']).date()
    except ValueError as error:
      raise RowError(
        f'has contest_date {row["contest_date"]!r}, which is no date'
      ) from error
    first, last = self._window
    return (first is None or first <= day) and (last is None or day <= last)

  def _problem(self, row: dict[str, Any], path: str, offset: int):
    form = _WITH_STARTER if row['starter_code'].strip() else _WITH_STDIN
    return base.Problem(
      task=self.name,
      id=f'{self.name}/{row["question_id"]}',
      question=form.format(
        question=row['question_content'].strip(),
        starter=row['starter_code'].rstrip(),
      ),
      answer='',
      data={
        'livecodebench': {'path': path, 'offset': offset},
        'func_name': livecodebench_rows.func_name(row),
        'star_imports': list(STAR_IMPORTS),
        'title': row['question_title'],
        'platform': row['platform'],
        'difficulty': row['difficulty'],
        'contest_date': row['contest_date'],
      },
    )


def _date(option: str, text: str) -> datetime.date | None:
  if not text:
    return None
  try:
    return datetime.date.fromisoformat(text)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f"task 'livecodebench': {option}={text!r} is no date; write it as in "
      "'2024-08-01'"
    ) from error


def _files(path: str | Sequence[str], folder: str) -> list[epath.Path]:
  paths = [path] if isinstance(path, str) else list(path)
  if folder and not paths:
    found = sorted(epath.Path(folder).expanduser().glob('test*.jsonl'))
    if not found:
      raise errors.UserError(
        f'no file test*.jsonl of LiveCodeBench is in {folder}; name the files '
        'with path'
      )
    return found
  if not paths:
    raise errors.UserError(
      "task 'livecodebench' needs its files, such as test6.jsonl: set "
      'data.folder (launch.evaluate: --data) to a folder that holds some, or '
      'data.task_options.livecodebench.path'
    )
  files = [epath.Path(folder, p).expanduser() for p in paths]
  for file in files:
    if not file.is_file():
      raise errors.UserError(f'{file} is no file; check the path')
  return files
