"""Tasks by name. A new task adds its file and one line here.

Besides the names of the table: any name with an option `source` is a data set
(`dataset`), `named` has evaluation sets, and `gym:NAME` is a data set of
reasoning-gym (`gym`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import (
  arguments,
  base,
  chain_sum,
  dataset,
  gym,
  human_eval,
  livecodebench,
  named,
  signs,
)

_TASKS: dict[str, type[base.Task]] = {
  'chain_sum': chain_sum.ChainSum,
  'human_eval': human_eval.HumanEval,
  'livecodebench': livecodebench.LiveCodeBench,
  'signs': signs.Signs,
}


def task_names() -> tuple[str, ...]:
  """The known names, sorted; `gym:` and data sets come on top."""
  return tuple(sorted({*_TASKS, *named.NAMED_SETS}))


def takes_folder(name: str, options: Mapping[str, Any]) -> bool:
  """Whether a task reads files, so that `folder` is one of its options.

  Args:
    name: of the task.
    options: of the config.
  """
  if 'source' not in options and name not in named.NAMED_SETS:
    return name in _TASKS and 'folder' in arguments.names_of(_TASKS[name])
  own = named.NAMED_SETS[name].options if name in named.NAMED_SETS else {}
  kind = {**own, **options}['source']
  # What is no name at all is refused where the task is made.
  source = dataset.SOURCES.get(kind) if isinstance(kind, str) else None
  return source is not None and 'folder' in arguments.names_of(source)


def get_task(name: str, **options: Any) -> base.Task:
  """Builds a task.

  Args:
    name: one of `task_names()`, `gym:` and a name of reasoning-gym, or any
      name if the options have `source`.
    **options: the task's own, and `seed`.

  Returns:
    The task.

  Raises:
    UserError: unknown name or option (the known ones are named), an option
      of a wrong type or out of range, bad data, or a missing package.
  """
  if 'source' in options or name in named.NAMED_SETS:
    return _dataset(name, **options)
  if name.startswith(gym.PREFIX):
    arguments.check(f'task {name!r}', gym.Gym, options)
    return gym.Gym(name=name, **options)
  if name not in _TASKS:
    raise errors.UserError(
      f'task {name!r} is unknown; known tasks: {", ".join(task_names())}, '
      'gym:NAME of reasoning-gym, and any name with an option source'
    )
  cls = _TASKS[name]
  arguments.check(f'task {name!r}', cls, options)
  return cls(**options)


def _dataset(
  name: str,
  *,
  seed: int = 0,
  overlap_with: Sequence[str | Mapping[str, Any]] = (),
  **options: Any,
) -> base.Task:
  """A data set, with the evaluation sets that it must not overlap with."""
  if name in named.NAMED_SETS:
    options = named.named_options(name, options)
  if not isinstance(seed, int):
    raise errors.UserError(
      f'task {name!r}: seed={seed!r} must be a whole number'
    )
  if isinstance(overlap_with, str) or not isinstance(overlap_with, Sequence):
    raise errors.UserError(
      f'task {name!r}: overlap_with={overlap_with!r} must be a list of tasks'
    )
  others = []
  for other in overlap_with:
    asked = dict(other) if isinstance(other, Mapping) else {'task': other}
    if not isinstance(asked.get('task'), str):
      raise errors.UserError(
        f'task {name!r}: overlap_with has {other!r}; give the name of a task, '
        "or dict(task='aime24', path='aime24.jsonl')"
      )
    # One folder holds all files, unless an entry says otherwise.
    if options.get('folder') and takes_folder(asked['task'], asked):
      asked.setdefault('folder', options['folder'])
    others.append(get_task(asked.pop('task'), **asked))
  return dataset.from_options(name, seed, options, others)
