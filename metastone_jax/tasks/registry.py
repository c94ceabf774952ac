"""Tasks by name. A new task adds its file and one line here."""

import inspect
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import (
  base,
  chain_sum,
  human_eval,
  livecodebench,
  signs,
)

_TASKS: dict[str, type[base.Task]] = {
  'chain_sum': chain_sum.ChainSum,
  'human_eval': human_eval.HumanEval,
  'livecodebench': livecodebench.LiveCodeBench,
  'signs': signs.Signs,
}


def task_names() -> tuple[str, ...]:
  """The known names, sorted."""
  return tuple(sorted(_TASKS))


def get_task(name: str, **options: Any) -> base.Task:
  """Builds a task.

  Args:
    name: one of `task_names()`.
    **options: the task's own, and `seed`.

  Returns:
    The task.

  Raises:
    UserError: unknown name or option (the known ones are named), an option
      out of range, or a missing package.
  """
  if name not in _TASKS:
    raise errors.UserError(
      f'task {name!r} is unknown; known tasks: {", ".join(task_names())}'
    )
  cls = _TASKS[name]
  known = [p for p in inspect.signature(cls).parameters]
  for option in options:
    if option not in known:
      raise errors.UserError(
        f'task {name!r} has no option {option!r}; known options: '
        f'{", ".join(known)}'
      )
  return cls(**options)
