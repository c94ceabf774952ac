"""What a sweep consists of: points, checked, and kept in its folder.

Contract: a point is a dict of JSON values with a unique `name`, the `kind` of
what it does, and `needs`, names of points that must be done before it. A folder
keeps every point it has ever had in `points/NAME/point.json`: a config may add
points, never change one, and may leave points out (another config of the same
folder has them).
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.telemetry import files

Point = Mapping[str, Any]

_NAME = re.compile(r'[a-z0-9][a-z0-9._-]{0,127}')


@dataclasses.dataclass(frozen=True)
class Plan:
  """The points of a sweep, in an order in which they can be done.

  Attributes:
    points: name -> point, those that are needed before those that need them;
      otherwise as given.
  """

  points: Mapping[str, Point]

  @classmethod
  def of(cls, points: Sequence[Mapping[str, Any]]) -> 'Plan':
    """Checks and orders points.

    Raises:
      UserError: no list of points, a point that is no dict, a name twice or
        with odd characters, no kind, a need that is no point, a circle of
        needs, a value that is no JSON.
    """
    if not isinstance(points, list | tuple):
      raise UserError(
        f'points of the sweep: {type(points).__name__}, must be a list of dicts'
      )
    if not points:
      raise UserError('the sweep has no points; its config must give some')
    found: dict[str, Point] = {}
    for number, given in enumerate(points):
      point = _checked(given, number)
      if point['name'] in found:
        raise UserError(
          f'two points of the sweep have the name {point["name"]}'
        )
      found[point['name']] = point
    for name, point in found.items():
      for need in point['needs']:
        if need not in found:
          raise UserError(
            f'point {name} needs {need}, which is no point of the sweep'
          )
    return cls(_ordered(found))


def point_folder(workdir: epath.Path, name: str) -> epath.Path:
  """Of a point of this name."""
  return workdir / 'points' / name


def keep(plan: Plan, workdir: epath.Path) -> None:
  """Writes the points that the folder does not have yet.

  Raises:
    UserError: one of them is there with other values; nothing is written.
  """
  new = []
  for name, point in plan.points.items():
    path = point_folder(workdir, name) / 'point.json'
    if not path.exists():
      new.append((path, point))
      continue
    kept = json.loads(path.read_text())
    if kept != point:
      keys = sorted(k for k in {*kept, *point} if kept.get(k) != point.get(k))
      raise UserError(
        f'point {name} of {workdir} had other values of {", ".join(keys)}: '
        f'{keys[0]}={kept.get(keys[0])!r}, now {point.get(keys[0])!r}. Points '
        'may only be added: give the changed sweep another --workdir, or '
        'remove the folder of this point and of those that need it'
      )
  for path, point in new:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json_atomic(path, point)


def kept(workdir: epath.Path) -> Plan:
  """All points that the folder has, whichever config they came from.

  Raises:
    UserError: it has none.
  """
  root = workdir / 'points'
  found = {}
  for folder in sorted(files.children(root), key=lambda path: path.name):
    path = folder / 'point.json'
    if path.exists():
      point = json.loads(path.read_text())
      found[point['name']] = point
  if not found:
    raise UserError(f'{workdir} has no points of a sweep')
  return Plan(_ordered(found))


def _checked(given: Mapping[str, Any], number: int) -> Point:
  if not isinstance(given, Mapping):
    raise UserError(
      f'point {number} of the sweep: {given!r} must be a dict with name and '
      'kind'
    )
  name = given.get('name')
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise UserError(
      f'point {number} of the sweep: name={name!r} must be of a-z, 0-9, ".", '
      '"_" and "-"'
    )
  if not isinstance(given.get('kind'), str):
    raise UserError(
      f'point {name} of the sweep: kind={given.get("kind")!r} must be the name '
      'of what it does'
    )
  try:
    # What comes back from a file: lists for tuples, plain keys.
    point = json.loads(json.dumps({'needs': (), **given}, allow_nan=False))
  except (TypeError, ValueError) as error:
    raise UserError(
      f'point {name} of the sweep has a value that is no JSON: {error}'
    ) from error
  needs = point['needs']
  if not isinstance(needs, list) or not all(isinstance(n, str) for n in needs):
    raise UserError(f'point {name} of the sweep: needs must be a list of names')
  return point


def _ordered(points: Mapping[str, Point]) -> dict[str, Point]:
  """Depth first, in the given order; a need that is missing is passed over."""
  found: dict[str, Point] = {}

  def add(name: str, trail: tuple[str, ...]) -> None:
    if name in trail:
      circle = ' -> '.join([*trail[trail.index(name) :], name])
      raise UserError(f'points of the sweep need each other: {circle}')
    if name in found or name not in points:
      return
    for need in points[name]['needs']:
      add(need, (*trail, name))
    found[name] = points[name]

  for name in points:
    add(name, ())
  return found
