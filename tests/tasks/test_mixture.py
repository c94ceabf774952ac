"""Mixtures: exact shares, random access, bad weights."""

import collections

import pytest

from metastone_jax import errors
from metastone_jax.tasks import mixture as mixture_lib
from metastone_jax.tasks import signs


def make(weights):
  tasks = {}
  for name in weights:
    tasks[name] = signs.Signs(seed=0)
    tasks[name].name = name
  return mixture_lib.Mixture(tasks, weights)


@pytest.mark.parametrize(
  ('weights', 'shares', 'cycle'),
  [
    ({'a': 3, 'b': 1}, {'a': 3, 'b': 1}, 4),
    ({'a': 0.7, 'b': 0.3}, {'a': 7, 'b': 3}, 10),
    ({'a': 0.1, 'b': 0.2, 'c': 0.3}, {'a': 1, 'b': 2, 'c': 3}, 6),
    ({'a': 2, 'b': 0}, {'a': 1, 'b': 0}, 1),
    ({'a': 5.0}, {'a': 1}, 1),
    ({'a': 1e-3, 'b': 0.999}, {'a': 1, 'b': 999}, 1000),
  ],
)
def test_shares_are_exact_in_every_cycle_and_indices_count_up(
  weights, shares, cycle
):
  mixture = make(weights)
  seen = collections.Counter()
  for index in range(3 * cycle):
    task, task_index = mixture.locate(index)
    assert task_index == seen[task.name]
    seen[task.name] += 1
    if (index + 1) % cycle == 0:
      whole = (index + 1) // cycle
      assert seen == {n: s * whole for n, s in shares.items() if s}


def test_draws_are_spread_within_a_cycle():
  mixture = make({'a': 3, 'b': 2})
  count = 0
  for index in range(50):
    count += mixture.locate(index)[0].name == 'a'
    assert abs(count - (index + 1) * 3 / 5) < 1


def test_order_of_the_mapping_does_not_matter():
  one, two = make({'a': 1, 'b': 1}), make({'b': 1, 'a': 1})
  for index in range(10):
    assert one.locate(index)[0].name == two.locate(index)[0].name


def test_far_index_is_as_cheap_as_a_near_one():
  task, task_index = make({'a': 3, 'b': 1}).locate(4 * 10**15)
  assert task_index == 3 * 10**15 if task.name == 'a' else 10**15


def test_build_mixture_passes_seed_and_options():
  mixture = mixture_lib.build_mixture(
    {'signs': 1}, seed=4, options={'signs': {'min_terms': 7, 'max_terms': 7}}
  )
  problem = mixture.problem(0, 'train')
  assert problem.id == 'signs/4/train/0'
  assert len(problem.data['numbers']) == 7
  text = mixture.demonstration(problem)
  assert mixture.tasks['signs'].verify(problem, text).reward == 1.0


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    ({}, 'empty.*chain_sum.*signs'),
    ({'signs': 0}, 'empty.*every mixture weight is 0'),
    ({'signs': -1}, 'signs.*-1'),
    ({'signs': float('nan')}, 'nan'),
    ({'signs': float('inf')}, 'inf'),
    ({'nope': 1}, "'nope' is unknown"),
  ],
)
def test_bad_weights(weights, message):
  with pytest.raises(errors.UserError, match=message):
    mixture_lib.build_mixture(weights, seed=0)


def test_more_bad_input():
  with pytest.raises(errors.UserError, match='rounder weights'):
    make({'a': 0.1234567891, 'b': 1})
  with pytest.raises(errors.UserError, match="'other'"):
    mixture_lib.build_mixture({'signs': 1}, seed=0, options={'other': {}})
  with pytest.raises(errors.UserError, match='negative'):
    make({'a': 1}).locate(-1)
