"""Rows to problems: which field of a row is the question, the answer, ..."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from metastone_jax import errors
from metastone_jax.tasks import base
from metastone_jax.tasks.sources.base import RowError, kind_of, plain

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of a row's fields.

  A name may be a path: `reward_model.ground_truth`, `prompt.0.content`.

  Attributes:
    question: text.
    answer: text, or a number.
    solution: text of a worked solution; '' = none.
    id: text or number, or several fields that identify a row together; () =
      the row's number, from 0 over all files.
    extra: name in `Problem.data` -> field.
    prefix: cut off the start of questions that have it.
    suffix: cut off the end of questions that have it.
  """

  question: str = 'question'
  answer: str = 'answer'
  solution: str = ''
  id: tuple[str, ...] = ()
  extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
  prefix: str = ''
  suffix: str = ''

  @classmethod
  def of(
    cls, fields: Mapping[str, Any], *, task: str, prefix: str, suffix: str
  ) -> 'Fields':
    """From a config: question, answer, solution, id; any other name is extra.

    Args:
      fields: name here -> name in the row, over the defaults.
      task: for messages.
      prefix: see the class.
      suffix: see the class.

    Raises:
      UserError: not a mapping to names, or a prefix that is no text.
    """
    if not isinstance(fields, Mapping):
      raise errors.UserError(
        f'task {task!r}: fields={fields!r} must be a mapping, as in '
        "dict(question='prompt', answer='answer')"
      )
    for end, text in (('prefix', prefix), ('suffix', suffix)):
      if not isinstance(text, str):
        raise errors.UserError(
          f'task {task!r}: question_{end}={text!r} must be text'
        )
    fields = dict(fields)
    names = fields.pop('id', ())
    names = tuple(names) if isinstance(names, list | tuple) else (names,)
    own = {
      name: fields.pop(name)
      for name in ('question', 'answer', 'solution')
      if name in fields
    }
    for value in (*own.values(), *fields.values(), *names):
      if not isinstance(value, str) or not value:
        raise errors.UserError(
          f'task {task!r}: fields names {value!r}, which must be the name of '
          'a field of the rows'
        )
    return cls(**own, id=names, extra=fields, prefix=prefix, suffix=suffix)

  def problem(
    self, row: Mapping[str, Any], task: str, number: str
  ) -> tuple[base.Problem, str]:
    """The problem of a row, and its solution ('' without).

    Args:
      row: as a source gives it.
      task: name of the task.
      number: of the row, its id where `id` names no field.

    Raises:
      RowError: a field is missing, empty or of the wrong type.
    """
    question = _text(row, self.question, numbers=False)
    question = question.removeprefix(self.prefix).removesuffix(self.suffix)
    if not question.strip():
      raise RowError(f'has an empty {self.question!r}')
    ids = [_text(row, name) for name in self.id] or [number]
    problem = base.Problem(
      task=task,
      id=f'{task}/{"/".join(ids)}',
      question=question,
      answer=_text(row, self.answer),
      data={name: _extra(row, field) for name, field in self.extra.items()},
    )
    solution = _text(row, self.solution, numbers=False) if self.solution else ''
    return problem, solution

  def has_ends(self, row: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the question of a good row has the prefix, and the suffix."""
    question = _text(row, self.question, numbers=False)
    return question.startswith(self.prefix), question.endswith(self.suffix)


def _text(row, name: str, numbers: bool = True) -> str:
  """A field as text that is not blank."""
  value = _found(row, name)
  try:
    value = plain(value)
  except RowError as error:
    raise RowError(f'has a {name!r} that {error}') from error
  if numbers and type(value) in (int, float) and math.isfinite(value):
    # A column of whole numbers with a gap in it is read as float by many.
    return str(int(value) if value == int(value) else value)
  if not isinstance(value, str):
    raise RowError(f'has {kind_of(value)} as {name!r}, which must be text')
  if not value.strip():
    raise RowError(f'has an empty {name!r}')
  return value


def _extra(row, name: str) -> Any:
  try:
    return plain(_found(row, name))
  except RowError as error:
    if str(error).startswith('has '):
      raise
    raise RowError(f'has a {name!r} that {error}') from error


def _found(row, name: str) -> Any:
  """The field of a name or path."""
  value = row.get(name, _MISSING)
  if value is _MISSING:
    value = row
    for part in name.split('.'):
      value = _step(value, part)
  if value is _MISSING:
    raise RowError(
      f'has no field {name!r}; it has {", ".join(map(str, row)) or "none"}'
    )
  return value


def _step(value, part: str) -> Any:
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, Mapping):
    return value.get(part, _MISSING)
  if isinstance(value, list | tuple) and part.isdecimal():
    return value[int(part)] if int(part) < len(value) else _MISSING
  return _MISSING
