"""The interval of a median, against every outcome of n fair coins."""

import itertools

import pytest

from tests.benchmarks.sampler import timing


@pytest.mark.parametrize('n', [1, 2, 5, 6, 9, 12])
def test_median_covers(n):
  found = timing.median(range(n))
  rank = found.low
  assert found.high == n - 1 - rank
  # Which values lie below the true median is n fair coins.
  below = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]

  def coverage(r):
    return sum(r < b < n - r for b in below) / len(below)

  assert found.coverage == pytest.approx(coverage(rank))
  assert rank == 0 or found.coverage >= 0.95
  if rank + 1 <= (n - 1) // 2:
    assert coverage(rank + 1) < 0.95


def test_ratios_are_of_a_token_and_a_round():
  found = {'a': [(2.0, 10), (8.0, 20)], 'b': [(1.0, 10), (2.0, 10)]}
  assert timing.ratios(found, 'a', 'b') == [2.0, 2.0]


def test_who_begins_moves_on():
  order = []

  def form(name):
    return lambda: order.append(name) or (1.0, 1)

  timing.take_turns({name: form(name) for name in 'abc'}, 3)
  assert ''.join(order) == 'abcbcacab'
