"""The one exception type that means "the user can fix this"."""

from collections.abc import Iterable, Sequence
from typing import Any

_SHOWN = 5  # things of a kind that a message names


class UserError(ValueError):
  """Bad input: a config, data row, checkpoint, tokenizer, folder or request.

  The message is one line that names the thing and says what to do. Every
  command in `launch/` prints it as `error: ...` and exits with status 2.
  """


def check_fields(
  where: str, owner: Any, rules: Iterable[tuple[str, bool, str]]
) -> None:
  """Raises UserError for the first field that breaks its rule.

  Args:
    where: stands before the name of a field.
    owner: has the fields.
    rules: (name of a field, whether it is right, what it must be).
  """
  for name, ok, rule in rules:
    if not ok:
      raise UserError(
        f'{where}{name} must be {rule}: got {getattr(owner, name)!r}'
      )


def first_line(error: Exception) -> str:
  """What an error says, for a message of one line."""
  return str(error).strip().partition('\n')[0]


def some_of(texts: Sequence[str]) -> str:
  """The first few texts of a list that may be long, for a message."""
  return '; '.join(texts[:_SHOWN]) + ('; ...' if len(texts) > _SHOWN else '')
