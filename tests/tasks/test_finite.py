"""Finite tasks: orders that are permutations, streams, exclusion."""

import collections

import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, finite


class Listed(finite.FiniteTask):
  """Problems without content."""

  def demonstration(self, problem):
    return problem.answer

  def verify(self, problem, response_text):
    return base.UNPARSED


def problems(count, start=0):
  return [
    base.Problem('listed', f'listed/{i}', f'q{i}', str(i), {})
    for i in range(start, start + count)
  ]


def make(train, heldout=0, seed=0):
  return Listed('listed', seed, problems(train), problems(heldout, 10**6))


def ids(task, indices):
  return [task.problem(i, 'train').id for i in indices]


@pytest.mark.parametrize('size', [*range(1, 70), 255, 256, 257, 1025])
def test_permuted_is_a_permutation(size):
  for epoch in range(3):
    found = [finite.permuted(i, size, 'x', epoch) for i in range(size)]
    assert sorted(found) == list(range(size))


def test_permutations_are_even():
  """Every place is as likely for every element; chi-squared of 36 cells."""
  counts = collections.Counter()
  draws = 3000
  for epoch in range(draws):
    counts.update((i, finite.permuted(i, 6, epoch)) for i in range(6))
  expected = draws / 6
  chi2 = sum(
    (counts[i, j] - expected) ** 2 / expected
    for i in range(6)
    for j in range(6)
  )
  assert chi2 < 52.6  # 25 degrees of freedom, 0.1 %


def test_the_order_stays_what_it_is():
  """Another order would train resumed runs on other problems."""
  found = [finite.permuted(i, 10, 'epoch', 0, 0, 0) for i in range(10)]
  assert found == [2, 9, 8, 0, 4, 6, 3, 1, 7, 5]


def test_each_epoch_is_a_pass_in_a_new_order():
  task = make(50)
  epochs = [ids(task, range(50 * e, 50 * e + 50)) for e in range(4)]
  assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
  assert len({tuple(e) for e in epochs}) == 4
  assert ids(make(50, seed=1), range(50)) != epochs[0]
  # Pure in the index, also far away.
  far = 10**30 + 7
  assert ids(task, [far]) == ids(make(50), [far])


def test_every_stream_starts_with_a_whole_pass():
  task = make(33)
  for seed in range(4):
    first = seed * base.STREAM
    assert len(set(ids(task, range(first, first + 33)))) == 33


def test_excluding():
  task = make(40, heldout=3)
  keys = {p.key for p in problems(25)}
  left = task.excluding(keys)
  assert (task.num_train, left.num_train, left.num_heldout) == (40, 15, 3)
  assert set(ids(left, range(15))) == {f'listed/{i}' for i in range(25, 40)}
  assert task.problem(39, 'train')  # unchanged
  assert left.excluding({p.key for p in problems(40)}).num_train == 0


def test_bad_indices():
  task = make(0, heldout=3)
  assert task.problem(2, 'heldout').id == 'listed/1000002'
  for index, split, message in (
    (3, 'heldout', 'has 3 held-out problems, problem 3'),
    (-1, 'heldout', 'negative'),
    (0, 'train', 'has no training problems; give it weight 0'),
    (0, 'test', "split 'test' is unknown"),
  ):
    with pytest.raises(errors.UserError, match=message):
      task.problem(index, split)
