"""Options of a config against the constructor that takes them.

A config may hold anything; what a constructor asks for stands in its
annotations. So a wrong name or type is one sentence for whoever wrote the
config, for every task, source and verifier alike.
"""

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from metastone_jax import errors

_KINDS = (
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
  inspect.Parameter.KEYWORD_ONLY,
)


def names_of(cls: type) -> list[str]:
  """The options that a class is made from, without `**options`."""
  parameters = inspect.signature(cls).parameters.values()
  return [p.name for p in parameters if p.kind in _KINDS]


def check(what: str, cls: type, options: Any) -> None:
  """Refuses options that a class does not take.

  Args:
    what: stands before the options in messages, such as "task 'signs'".
    cls: the class.
    options: of the config.

  Raises:
    UserError: no mapping, an unknown name (the known ones are named), or a
      value of another type than the constructor's annotation.
  """
  if not isinstance(options, Mapping):
    raise errors.UserError(
      f'{what}: options={options!r} must be a mapping of names to values'
    )
  parameters = inspect.signature(cls, eval_str=True).parameters
  takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
  known = names_of(cls)
  for name, value in options.items():
    if name not in known:
      # A class without a constructor seems to take anything.
      if takes_any and cls.__init__ is not object.__init__:
        continue
      raise errors.UserError(
        f'{what} has no option {name!r}; known options: '
        f'{", ".join(known) or "none"}'
      )
    wanted = parameters[name].annotation
    if not _is(value, wanted):
      raise errors.UserError(
        f'{what}: {name}={value!r} must be {_words(wanted)}'
      )


def _choices(wanted: Any) -> tuple[Any, ...]:
  """The types of a union; any other type alone."""
  if isinstance(wanted, types.UnionType):
    return typing.get_args(wanted)
  return (wanted,)


def _is(value: Any, wanted: Any) -> bool:
  """Whether a value is what an annotation asks for."""
  if wanted in (Any, inspect.Parameter.empty):
    return True
  if isinstance(wanted, types.UnionType):
    return any(_is(value, choice) for choice in _choices(wanted))
  if wanted in (None, types.NoneType):
    return value is None
  if wanted in (int, float):
    if isinstance(value, float):
      return wanted is float and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
  kind = typing.get_origin(wanted) or wanted
  if kind is collections.abc.Sequence:
    (item,) = typing.get_args(wanted)
    return isinstance(value, list | tuple) and all(_is(x, item) for x in value)
  return isinstance(value, kind)


def _words(wanted: Any) -> str:
  """What an annotation asks for, for people."""
  names = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    collections.abc.Sequence: 'a list of texts',
    collections.abc.Mapping: 'a mapping of names to values',
  }
  choices = [c for c in _choices(wanted) if c is not types.NoneType]
  return ' or '.join(
    names.get(typing.get_origin(choice) or choice, str(choice))
    for choice in choices
  )
