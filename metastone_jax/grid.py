"""Lists of small dicts: what a sweep is made of, built by a few combinators.

Contract: a grid is a list of dicts, in a fixed order; every combinator returns
a new list of new dicts. Plain Python alone, so that config files may use it.

    grid.product(grid.values('width', (48, 96)), grid.values('seed', range(2)))

Source of the idea: google-deepmind/simply, utils/sweep.py.
"""

from collections.abc import Callable, Iterable
from typing import Any

Grid = list[dict[str, Any]]


def values(key: str, several: Iterable[Any]) -> Grid:
  """One point a value: [{key: value}, ...]."""
  return [{key: value} for value in several]


def fixed(**point: Any) -> Grid:
  """The grid of one point."""
  return [dict(point)]


def zipped(**several: Iterable[Any]) -> Grid:
  """Points whose keys change together, as `zip` pairs them.

  Raises:
    ValueError: the keys have different numbers of values.
  """
  return [
    dict(zip(several, row, strict=True))
    for row in zip(*several.values(), strict=True)
  ]


def product(*grids: Iterable[dict[str, Any]]) -> Grid:
  """Every combination of a point of each, the last grid changes fastest.

  Raises:
    ValueError: two grids set the same key.
  """
  found: Grid = [{}]
  for one in grids:
    one = list(one)
    found = [_joined(point, other) for point in found for other in one]
  return found


def chain(*grids: Iterable[dict[str, Any]]) -> Grid:
  """The points of all grids, one after the other."""
  return [dict(point) for one in grids for point in one]


def where(
  points: Iterable[dict[str, Any]], keep: Callable[[dict[str, Any]], bool]
) -> Grid:
  """The points that `keep` says yes to."""
  return [dict(point) for point in points if keep(point)]


def _joined(point: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  twice = sorted(set(point) & set(other))
  if twice:
    raise ValueError(f'two grids of a product set {twice[0]!r}')
  return {**point, **other}
