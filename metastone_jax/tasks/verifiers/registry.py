"""Verifiers by name. A new verifier adds its file and one line here."""

from collections.abc import Mapping
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import arguments
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
      of a wrong type or out of range, or a missing package.
  """
  if not isinstance(name, str) or name not in _VERIFIERS:
    raise errors.UserError(
      f'verifier {name!r} is unknown; known verifiers: '
      f'{", ".join(verifier_names())}'
    )
  return build(_VERIFIERS[name], options)


def build(
  cls: type[base.Verifier], options: Mapping[str, Any]
) -> base.Verifier:
  """A verifier of a class.

  Args:
    cls: the class.
    options: of a config.

  Raises:
    UserError: see `get_verifier`.
  """
  arguments.check(f'verifier {cls.name!r}', cls, options)
  return cls(**options)
