"""Verifiers by name. A new verifier adds its file and one line here."""

import inspect
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks.verifiers import base, choice, code, exact, mathematics

_VERIFIERS: dict[str, type[base.Verifier]] = {
  'choice': choice.Choice,
  'code': code.Code,
  'exact': exact.Exact,
  'math': mathematics.Mathematics,
}


def verifier_names() -> tuple[str, ...]:
  """The known names, sorted."""
  return tuple(sorted(_VERIFIERS))


def get_verifier(name: str, **options: Any) -> base.Verifier:
  """Builds a verifier.

  Args:
    name: one of `verifier_names()`.
    **options: the verifier's own.

  Returns:
    The verifier.

  Raises:
    UserError: unknown name or option (the known ones are named), an option
      out of range, or a missing package.
  """
  if name not in _VERIFIERS:
    raise errors.UserError(
      f'verifier {name!r} is unknown; known verifiers: '
      f'{", ".join(verifier_names())}'
    )
  cls = _VERIFIERS[name]
  known = [
    parameter
    for parameter in inspect.signature(cls).parameters
    if parameter not in ('args', 'kwargs')
  ]
  for option in options:
    if option not in known:
      raise errors.UserError(
        f'verifier {name!r} has no option {option!r}; known options: '
        f'{", ".join(known) or "none"}'
      )
  return cls(**options)
