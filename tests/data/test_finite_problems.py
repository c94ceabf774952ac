"""Pipelines over tasks with a fixed number of problems."""

import pytest

from metastone_jax import errors
from metastone_jax.data import pipeline
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import mixture as mixture_lib
from metastone_jax.tasks import registry
from tests.tasks.sources import files


@pytest.fixture(scope='module')
def tiny():
  return tokenizer_lib.Tokenizer.tiny()


@pytest.fixture
def task(tmp_path):
  """name, count, options -> a data set of sums, with solutions if asked."""

  def make(name, count, solutions=True, **options):
    rows = [
      {
        'question': f'Make {i} using {i // 2}, {i - i // 2}.',
        'answer': i,
        'why': f' + {i // 2} leaves {i - i // 2}.',
      }
      for i in range(count)
    ]
    fields = {'solution': 'why'} if solutions else {}
    return registry.get_task(
      name,
      source='jsonl',
      path=files.write_lines(tmp_path / name, rows),
      verifier=files.Boxed(),
      fields=fields,
      **{'heldout': 'none', **options},
    )

  return make


def mix(*tasks, weights=None):
  by_name = {t.name: t for t in tasks}
  return mixture_lib.Mixture(by_name, weights or dict.fromkeys(by_name, 1.0))


def keys(mixture, tiny, count, **options):
  data = pipeline.problem_dataset(
    mixture, tiny, **{'split': 'train', 'max_prompt_length': 40, **options}
  )
  return [p.key for p in data.batch_at(data.start(), count)[0]]


@pytest.mark.parametrize('seed', [0, 1, 5])
def test_passes_are_whole_for_every_seed(seed, task, tiny):
  """Also in a mixture, whose cycle the streams' starts do not divide."""
  mixture = mix(task('a', 12), task('b', 7), weights={'a': 2, 'b': 1})
  found = keys(mixture, tiny, 3 * 42, seed=seed)
  for name, count in (('a', 12), ('b', 7)):
    own = [k for k in found if k.startswith(f'{name}:')]
    passes = [own[i : i + count] for i in range(0, len(own), count)]
    assert len(passes) > 3
    assert all(len(set(p)) == count for p in passes)
    assert passes[0] != passes[1]
  alone = [keys(mix(task('c', 12)), tiny, 12, seed=s) for s in (seed, seed + 1)]
  assert alone[0] != alone[1]
  # However it is cut.
  data = pipeline.problem_dataset(
    mixture, tiny, seed=seed, split='train', max_prompt_length=40
  )
  at, again = data.start(), []
  for size in (1, 5, 50, 70):
    again += [p.key for p in data.batch_at(at, size)[0]]
    at = data.advance(at, size)
  assert again == found


@pytest.mark.parametrize('seed', [0, 2])
def test_demonstrated_problems_are_left_out(seed, task, tiny):
  mixture = mix(task('a', 40))
  demonstrations = pipeline.demonstration_dataset(
    mixture, tiny, size=25, seed=seed, max_length=80
  )
  shown = demonstrations.problem_keys
  assert len(shown) == 25
  found = keys(mixture, tiny, 60, seed=seed, num_demonstrations=25)
  assert not shown & set(found)
  for i in range(0, 60, 15):
    assert len(set(found[i : i + 15])) == 15


def test_one_problem_left_is_found(task, tiny):
  mixture = mix(task('a', 2000))
  found = keys(mixture, tiny, 5, seed=0, num_demonstrations=1999)
  assert len(set(found)) == 1


def test_no_problem_left(task, tiny):
  mixture = mix(task('a', 30))
  for count in (30, 100):
    with pytest.raises(errors.UserError, match='no training problem left'):
      keys(mixture, tiny, 1, seed=0, num_demonstrations=count)
  with pytest.raises(
    errors.UserError, match="31 demonstrations.*'a', which has 30"
  ):
    pipeline.demonstration_dataset(
      mixture, tiny, size=31, seed=0, max_length=80
    )


def test_only_tasks_with_solutions_are_demonstrated(task, tiny):
  able, unable = task('a', 20), task('b', 20, solutions=False)
  mixture = mix(able, unable)
  demonstrations = pipeline.demonstration_dataset(
    mixture, tiny, size=15, seed=0, max_length=80
  )
  assert {k.split(':')[0] for k in demonstrations.problem_keys} == {'a'}
  found = keys(mixture, tiny, 40, seed=0, num_demonstrations=15)
  assert len(set(found)) == 20 + 5  # all of b, the rest of a
  assert not demonstrations.problem_keys & set(found)
  with pytest.raises(errors.UserError, match='no task of b has demonstrations'):
    pipeline.demonstration_dataset(
      mix(unable), tiny, size=1, seed=0, max_length=80
    )
  # Reinforcement learning alone needs none, whatever the recipe says.
  assert len(set(keys(mix(unable), tiny, 20, seed=0))) == 20
  some = keys(mix(unable), tiny, 20, seed=0, num_demonstrations=10)
  assert len(set(some)) == 20


def test_beside_an_endless_task(task, tiny):
  mixture = mix(task('a', 6), registry.get_task('signs'))
  found = keys(mixture, tiny, 24, seed=3, num_demonstrations=4)
  own = [k for k in found if k.startswith('a:')]
  assert len(own) == 12 and len(set(own[:4])) == 4
  # The endless task's stream is what it was before.
  alone = mixture_lib.build_mixture({'signs': 1.0}, seed=0)
  first = 3 * 2**40 + 4
  theirs = [mixture.locate(first + i) for i in range(24)]
  expected = [
    alone.problem(index, 'train').key
    for t, index in theirs
    if t.name == 'signs'
  ]
  assert [k for k in found if k.startswith('signs:')] == expected


def test_an_evaluation_set_is_not_trained_on(task, tiny):
  evaluation = task('e', 10, heldout='all')
  with pytest.raises(errors.UserError, match="'e' has no training problems"):
    keys(mix(evaluation, task('a', 10)), tiny, 1, seed=0)
  mixture = mix(evaluation, task('a', 10), weights={'e': 0, 'a': 1})
  assert all(k.startswith('a:') for k in keys(mixture, tiny, 10, seed=0))
  held = mix(evaluation)
  found = keys(held, tiny, 10, seed=9, split='heldout')
  assert found == [evaluation.problem(i, 'heldout').key for i in range(10)]
  with pytest.raises(errors.UserError, match='has 10 held-out problems'):
    keys(held, tiny, 11, seed=0, split='heldout')


def test_count_before_against_counting():
  mixture = mixture_lib.build_mixture({'signs': 3, 'chain_sum': 2}, seed=0)
  for index in range(23):
    for name in ('signs', 'chain_sum'):
      expected = sum(mixture.locate(i)[0].name == name for i in range(index))
      assert mixture.count_before(name, index) == expected
