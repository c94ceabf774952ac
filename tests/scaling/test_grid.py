"""Combinators of grids: order, copies, refusals."""

import pytest

from metastone_jax import grid


def test_product_is_every_combination_in_order():
  found = grid.product(
    grid.values('width', (48, 96)),
    grid.zipped(k=(1, 2), name=('a', 'b')),
    grid.fixed(seed=7),
  )
  assert found == [
    {'width': 48, 'k': 1, 'name': 'a', 'seed': 7},
    {'width': 48, 'k': 2, 'name': 'b', 'seed': 7},
    {'width': 96, 'k': 1, 'name': 'a', 'seed': 7},
    {'width': 96, 'k': 2, 'name': 'b', 'seed': 7},
  ]
  assert grid.product() == [{}]
  assert grid.product(found, []) == []


def test_chain_and_where():
  points = grid.chain(grid.values('a', (1, 2, 3)), grid.fixed(b=4))
  assert points == [{'a': 1}, {'a': 2}, {'a': 3}, {'b': 4}]
  assert grid.where(points, lambda p: p.get('a', 0) > 1) == points[1:3]


def test_points_are_copies():
  one = grid.values('a', (1,))
  for copy in (grid.chain(one), grid.where(one, bool), grid.product(one)):
    copy[0]['a'] = 2
  assert one == [{'a': 1}]


def test_refusals():
  with pytest.raises(ValueError, match="set 'a'"):
    grid.product(grid.values('a', (1,)), grid.fixed(a=2))
  with pytest.raises(ValueError, match='shorter|longer'):
    grid.zipped(a=(1, 2), b=(1,))
