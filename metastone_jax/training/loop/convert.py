"""Dicts to typed dataclasses; nothing unknown, missing or ill-typed passes."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from metastone_jax.errors import UserError


def build(cls, values: Mapping[str, Any], where: str, **given):
  """A dataclass from a mapping.

  Args:
    cls: the dataclass.
    values: its fields, nested dataclasses as mappings.
    where: path of the mapping in the config, for messages.
    **given: fields that the mapping does not hold.

  Raises:
    UserError: an unknown, missing or ill-typed key, by its full path.
  """
  if not isinstance(values, Mapping):
    raise UserError(
      f'config key {where.rstrip(".")}={values!r} must be a mapping'
    )
  fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in given}
  unknown = sorted(set(values) - set(fields))
  if unknown:
    raise UserError(
      f'config key {where}{unknown[0]} is unknown; known: {", ".join(fields)}'
    )
  hints = typing.get_type_hints(cls)
  converted = {}
  for name, value in values.items():
    converted[name] = convert(hints[name], value, f'{where}{name}')
  missing = [
    f.name
    for f in fields.values()
    if f.name not in converted
    and f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise UserError(f'config key {where}{missing[0]} is missing')
  return cls(**converted, **given)


def convert(hint, value, where: str):
  """A config value as the type hint asks; UserError names the path."""
  if dataclasses.is_dataclass(hint):
    return build(hint, value, where + '.')
  origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
  if origin is types.UnionType:  # X | None
    return None if value is None else convert(args[0], value, where)
  if origin is tuple:
    if not isinstance(value, list | tuple):
      raise UserError(f'config key {where}={value!r} must be a list')
    return tuple(
      convert(args[0], item, f'{where}[{i}]') for i, item in enumerate(value)
    )
  if origin is Mapping:
    if not isinstance(value, Mapping):
      raise UserError(f'config key {where}={value!r} must be a mapping')
    return {k: convert(args[1], v, f'{where}.{k}') for k, v in value.items()}
  if hint is Any:
    return _plain(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint in (int, float, str, bool) and type(value) is not hint:
    raise UserError(
      f'config key {where}={value!r} must be of type {hint.__name__}'
    )
  return value


def _plain(value):
  return (
    {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Mapping)
    else value
  )
