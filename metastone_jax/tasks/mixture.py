"""A weighted mixture of tasks, addressed by one global index.

The mixture is a fixed cycle of draws in which every task has exactly its
share, spread evenly (smooth weighted round robin). So index -> (task, index
within the task) needs no state and no randomness: it is the same on any number
of hosts and after any restart, and after every whole cycle the proportions are
exact.
"""

import fractions
import math
from collections.abc import Mapping
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base, registry

# Weights such as 0.3333333 would need a cycle of millions of draws.
_MAX_CYCLE = 100_000


class Mixture:
  """Tasks in fixed proportions.

  Args:
    tasks: the tasks by name; not empty.
    weights: a share for each name, >= 0, not all 0; any scale. A task of
      weight 0 is never drawn but can still be verified.

  Raises:
    UserError: no tasks, a weight that is negative or not finite, only zeros,
      or names that differ.
  """

  def __init__(
    self, tasks: Mapping[str, base.Task], weights: Mapping[str, float]
  ):
    if not tasks:
      raise errors.UserError(
        'the problem source is empty: the mixture names no task; known tasks: '
        f'{", ".join(registry.task_names())}'
      )
    if set(tasks) != set(weights):
      raise errors.UserError(
        f'mixture weights name {sorted(weights)}, tasks are {sorted(tasks)}; '
        'give each task one weight'
      )
    self.tasks = dict(tasks)
    self._weights = dict(weights)
    # Sorted: a mapping that went through JSON may change its order, and the
    # order breaks ties in the cycle.
    self._names = sorted(tasks)
    counts = _whole_weights({n: weights[n] for n in self._names})
    cycle = _smooth_cycle([counts[n] for n in self._names])
    self._count = [counts[n] for n in self._names]
    self._cycle: list[tuple[int, int]] = []
    seen = [0] * len(self._names)
    for which in cycle:
      self._cycle.append((which, seen[which]))
      seen[which] += 1

  def locate(self, index: int) -> tuple[base.Task, int]:
    """The task that global draw `index` >= 0 uses, and its index there."""
    if index < 0:
      raise errors.UserError(f'mixture index {index} is negative')
    cycles, place = divmod(index, len(self._cycle))
    which, rank = self._cycle[place]
    task_index = cycles * self._count[which] + rank
    return self.tasks[self._names[which]], task_index

  def count_before(self, name: str, index: int) -> int:
    """How many of the first `index` global draws use a task."""
    which = self._names.index(name)
    cycles, place = divmod(index, len(self._cycle))
    rest = sum(w == which for w, _ in self._cycle[:place])
    return cycles * self._count[which] + rest

  def training_tasks(self) -> dict[str, base.Task]:
    """The tasks that are drawn at all, by name."""
    return {n: self.tasks[n] for n in self._names if self._weights[n]}

  def demonstrating(self) -> 'Mixture | None':
    """The tasks that have demonstrations, in their proportions; None if none.

    This mixture itself where all of them have.
    """
    drawn = self.training_tasks()
    able = {name: task for name, task in drawn.items() if task.demonstrates}
    if len(able) == len(drawn):
      return self
    if not able:
      return None
    return Mixture(able, {name: self._weights[name] for name in able})

  def replacing(self, tasks: Mapping[str, base.Task]) -> 'Mixture':
    """This mixture with other tasks for some of its names."""
    return Mixture({**self.tasks, **tasks}, self._weights)

  def problem(self, index: int, split: base.Split) -> base.Problem:
    """The problem of global draw `index`; pure in its arguments."""
    task, task_index = self.locate(index)
    return task.problem(task_index, split)

  def demonstration(self, problem: base.Problem) -> str:
    """A right response to a problem of one of the tasks."""
    return self.tasks[problem.task].demonstration(problem)


def build_mixture(
  weights: Mapping[str, float],
  *,
  seed: int,
  options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Mixture:
  """Builds the tasks by name and mixes them.

  Args:
    weights: share of each task name.
    seed: of all tasks.
    options: the options of tasks, by task name.

  Returns:
    The mixture.

  Raises:
    UserError: see `Mixture` and `registry.get_task`; also options of a task
      that the mixture does not name.
  """
  options = options or {}
  for name in options:
    if name not in weights:
      raise errors.UserError(
        f'options are given for task {name!r}, which the mixture does not '
        f'name; it names {", ".join(sorted(weights)) or "nothing"}'
      )
  tasks = {
    name: registry.get_task(name, **{'seed': seed, **options.get(name, {})})
    for name in weights
  }
  return Mixture(tasks, weights)


def _whole_weights(weights: dict[str, float]) -> dict[str, int]:
  """The smallest whole numbers in the given proportions."""
  shares = {}
  for name, weight in weights.items():
    if not math.isfinite(weight) or weight < 0:
      raise errors.UserError(
        f'mixture weight of task {name!r} is {weight}; give a finite number '
        '>= 0'
      )
    # Through str: 0.1 means one tenth, not its nearest binary fraction.
    shares[name] = fractions.Fraction(str(weight))
  if not any(shares.values()):
    raise errors.UserError(
      'the problem source is empty: every mixture weight is 0; '
      f'give a positive weight to one of {", ".join(weights)}'
    )
  scale = math.lcm(*(s.denominator for s in shares.values()))
  counts = {name: int(share * scale) for name, share in shares.items()}
  common = math.gcd(*counts.values())
  counts = {name: count // common for name, count in counts.items()}
  if sum(counts.values()) > _MAX_CYCLE:
    raise errors.UserError(
      f'mixture weights {weights} need a cycle of {sum(counts.values())} '
      f'draws, more than {_MAX_CYCLE}; use rounder weights'
    )
  return counts


def _smooth_cycle(counts: list[int]) -> list[int]:
  """Smooth weighted round robin: each i appears counts[i] times, spread."""
  total = sum(counts)
  credit = [0] * len(counts)
  cycle = []
  for _ in range(total):
    credit = [c + n for c, n in zip(credit, counts, strict=True)]
    which = max(range(len(counts)), key=credit.__getitem__)
    credit[which] -= total
    cycle.append(which)
  return cycle
