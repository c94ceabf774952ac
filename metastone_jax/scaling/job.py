"""What a runner gets: the folder of its point, and how to speak and to stop.

A runner is `run(point, job) -> rows`: it does what the point says, keeps what
others need in `job.folder`, and returns rows of the sweep's table, flat dicts
of str, int, float, bool and None. What an interrupted try left in the folder is
there again: it goes on from it or writes it anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan

# What to do about a broken file of a point, for messages.
REMOVE_POINT = 'remove the folder of this point, and the sweep makes it again'


@dataclasses.dataclass(frozen=True)
class Job:
  """One point being done.

  Attributes:
    name: of the point.
    workdir: of the sweep.
    cache: lives as long as the worker: what several points read.
    status: says what is going on, in a few words.
    check_stop: raises where the worker was asked to stop, or where the point
      was given to another one; call it between pieces of work.
  """

  name: str
  workdir: epath.Path
  cache: dict[Any, Any] = dataclasses.field(default_factory=dict)
  status: Callable[[str], None] = lambda text: None
  check_stop: Callable[[], None] = lambda: None

  @property
  def folder(self) -> epath.Path:
    """Of this point; exists."""
    return self.folder_of(self.name)

  def folder_of(self, name: str) -> epath.Path:
    """Of a point that this one needs."""
    return plan.point_folder(self.workdir, name)


def needs_keys(point: Mapping[str, Any], *keys: str) -> None:
  """What a runner calls first: the point has all that it will read.

  Raises:
    UserError: it has not.
  """
  missing = [key for key in keys if key not in point]
  if missing:
    raise UserError(
      f'point {point["name"]} of the sweep has no {", ".join(missing)}, which '
      f'its kind {point["kind"]!r} needs; its config must give '
      f'{", ".join(keys)}'
    )
