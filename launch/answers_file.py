"""Questions in, answers out: JSON lines, resumable, never half-written.

A line of the input is an object with `question` or `prompt` and, if it likes,
`answer` and other fields, which the output keeps. A line of the output is that
of the released code (evaluation/result_file.py) with `index`, the line of the
question counted from 0. Beside it lies FILE.settings.json: answers drawn with
other settings are not mixed into one file.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.telemetry.files import write_bytes_atomic

_QUESTION_NAMES = ('question', 'prompt')
_SECONDS = 10.0  # between two writings of the file


def read_lines(path: epath.PathLike, what: str) -> list[dict[str, Any]]:
  """The objects of a JSON-lines file; empty lines are left out.

  Raises:
    UserError: no such file, or a line that is no JSON object.
  """
  path = epath.Path(path)
  if not path.exists():
    raise UserError(f'there is no {what} {path}')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise UserError(
      f'{what} {path} cannot be read: {error.strerror or error}'
    ) from error
  found = []
  for number, line in enumerate(content.splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:  # not UTF-8, or not JSON
      raise UserError(f'{path}, line {number}: {error}') from error
    if not isinstance(row, dict):
      raise UserError(f'{path}, line {number}: no JSON object')
    found.append(row)
  return found


def read_questions(path: epath.PathLike) -> list[tuple[str, dict[str, Any]]]:
  """(question, other fields) of each line.

  Raises:
    UserError: no such file, no question in it, or a line without one.
  """
  found = []
  for number, row in enumerate(read_lines(path, '--input'), 1):
    name = next((n for n in _QUESTION_NAMES if n in row), None)
    if name is None or not isinstance(row[name], str) or not row[name].strip():
      raise UserError(
        f'{path}, question {number}: needs a text named '
        f'{" or ".join(_QUESTION_NAMES)}'
      )
    question = row.pop(name)
    found.append((question, row))
  if not found:
    raise UserError(f'{path} has no question')
  return found


class AnswersFile:
  """Answers that are there, and those to come; a context manager.

  Args:
    path: of the output; its folder is made.
    questions: of the input, in order.
    settings: everything the answers depend on, as JSON has it.

  Attributes:
    done: indices that have an answer.

  Raises:
    UserError: the file holds answers to other questions or settings.
  """

  def __init__(
    self,
    path: epath.PathLike,
    questions: Sequence[str],
    settings: Mapping[str, Any],
  ):
    self._path, self._questions = epath.Path(path), questions
    self._written = time.monotonic()
    side = self._path.parent / f'{self._path.name}.settings.json'
    if self._path.exists():
      self._check_settings(side, settings)
    self._lines = self._on_disk()
    _write(side, json.dumps(dict(settings), indent=1))

  def _on_disk(self) -> dict[int, str]:
    """The lines of the file by index."""
    if not self._path.exists():
      return {}
    found = {}
    for row in read_lines(self._path, '--output'):
      index = row.get('index')
      known = isinstance(index, int) and 0 <= index < len(self._questions)
      if not known or row.get('prompt') != self._questions[index]:
        raise UserError(
          f'{self._path} holds answers to other questions than --input; '
          'give another --output'
        )
      found[index] = json.dumps(row, ensure_ascii=False)
    return found

  def _check_settings(self, side: epath.Path, settings) -> None:
    try:
      had = json.loads(side.read_text()) if side.exists() else {}
    except ValueError as error:
      raise UserError(
        f'{side} is damaged ({error}); remove it with {self._path.name}, or '
        'give another --output'
      ) from error
    for name, value in settings.items():
      if had.get(name) != value:
        raise UserError(
          f'{self._path} holds answers drawn with {name}={had.get(name)!r}, '
          f'not {value!r}; give another --output or the same settings'
        )

  @property
  def done(self) -> set[int]:
    """Indices that have an answer."""
    return set(self._lines)

  def add(self, index: int, row: Mapping[str, Any]) -> None:
    """One more answer; the file follows within some seconds."""
    self._lines[index] = json.dumps({**row, 'index': index}, ensure_ascii=False)
    if time.monotonic() - self._written > _SECONDS:
      self._save()

  def _save(self) -> None:
    # Another run may have written what this one lacks.
    self._lines = self._on_disk() | self._lines
    lines = [self._lines[index] + '\n' for index in sorted(self._lines)]
    _write(self._path, ''.join(lines))
    self._written = time.monotonic()

  def __enter__(self) -> 'AnswersFile':
    return self

  def __exit__(self, *_) -> None:
    if self._lines:
      self._save()


def _write(path: epath.Path, text: str) -> None:
  try:
    write_bytes_atomic(path, text.encode())
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror or error}); what it held '
      'before stands'
    ) from error
