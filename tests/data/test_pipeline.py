"""Pipelines: random access, positions, exclusion, too-long rows."""

import json

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.data import pipeline
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import mixture as mixture_lib
from metastone_jax.tasks import templates

SIZE = 300


@pytest.fixture(scope='module')
def tiny():
  return tokenizer_lib.Tokenizer.tiny()


@pytest.fixture(scope='module')
def mixture():
  return mixture_lib.build_mixture({'signs': 1}, seed=0)


@pytest.fixture(scope='module')
def demonstrations(mixture, tiny):
  return pipeline.demonstration_dataset(
    mixture, tiny, size=SIZE, seed=1, max_length=80
  )


def problems_of(mixture, tiny, **options):
  defaults = {'seed': 1, 'split': 'train', 'max_prompt_length': 32}
  return pipeline.problem_dataset(mixture, tiny, **{**defaults, **options})


def position(data, index):
  return data.advance(data.start(), index)


def test_rows_are_prompt_then_demonstration(mixture, tiny, demonstrations):
  batch = demonstrations.batch_at(demonstrations.start(), SIZE)
  expected = {}
  for i in range(SIZE):
    problem = mixture.problem(i, 'train')
    prompt = templates.CHATML_THINK.render(problem.question)
    expected[prompt] = mixture.demonstration(problem)
  assert batch['tokens_BT'].shape == (SIZE, 80)
  assert {a.dtype for a in batch.values()} == {np.dtype(np.int32)}
  for tokens, length, prompt_length in zip(
    batch['tokens_BT'],
    batch['length_B'],
    batch['prompt_length_B'],
    strict=True,
  ):
    prompt = tiny.decode(tokens[:prompt_length])
    assert tiny.decode(tokens[prompt_length:length]) == expected[prompt]
    assert (tokens[length:] == tiny.pad_id).all()


def test_each_epoch_is_a_new_permutation_of_the_same_set(demonstrations):
  def rows(epoch):
    start = pipeline.DataPosition(1, epoch, 0)
    batch = demonstrations.batch_at(start, SIZE)
    return [row.tobytes() for row in batch['tokens_BT']]

  first, second = rows(0), rows(1)
  assert sorted(first) == sorted(second)
  assert first != second


def test_seeds_shuffle_independently(mixture, tiny, demonstrations):
  other = pipeline.demonstration_dataset(
    mixture, tiny, size=SIZE, seed=0, max_length=80
  )
  # Same set, other order; not the order of a neighbouring epoch either.
  ours = demonstrations.batch_at(demonstrations.start(), SIZE)['tokens_BT']
  for epoch in (0, 1):
    start = pipeline.DataPosition(0, epoch, 0)
    theirs = other.batch_at(start, SIZE)['tokens_BT']
    assert (ours != theirs).any(1).mean() > 0.9
    np.testing.assert_array_equal(np.sort(ours.sum(1)), np.sort(theirs.sum(1)))


def test_batches_do_not_depend_on_how_they_are_cut(mixture, tiny):
  """What any number of hosts, or a restart, reads is one sequence."""
  demos = pipeline.demonstration_dataset(
    mixture, tiny, size=SIZE, seed=1, max_length=80
  )
  problems = problems_of(mixture, tiny, num_demonstrations=SIZE)
  whole = demos.batch_at(position(demos, 250), 100)
  names, prompts, _ = problems.batch_at(position(problems, 250), 100)
  for size in (1, 4, 50):
    for part in range(0, 100, size):
      at = position(demos, 250 + part)
      piece = demos.batch_at(at, size)
      for name, array in piece.items():
        np.testing.assert_array_equal(array, whole[name][part : part + size])
      at = position(problems, 250 + part)
      got, prompt_PS, _ = problems.batch_at(at, size)
      assert got == names[part : part + size]
      np.testing.assert_array_equal(prompt_PS, prompts[part : part + size])


def test_positions_survive_json_and_cross_epochs(demonstrations):
  at = demonstrations.advance(demonstrations.start(), SIZE - 1)
  at = demonstrations.advance(at, 2)
  assert at == pipeline.DataPosition(seed=1, epoch=1, index=1)
  text = json.dumps(at.to_json())
  assert pipeline.DataPosition.from_json(json.loads(text)) == at
  assert demonstrations.global_index(at) == SIZE + 1


def test_bad_positions(demonstrations, mixture, tiny):
  with pytest.raises(errors.UserError, match='seed 7.*seed 1'):
    demonstrations.batch_at(pipeline.DataPosition(7), 1)
  with pytest.raises(errors.UserError, match='outside'):
    demonstrations.batch_at(pipeline.DataPosition(1, 0, SIZE), 1)
  problems = problems_of(mixture, tiny)
  with pytest.raises(errors.UserError, match='outside'):
    problems.batch_at(pipeline.DataPosition(1, 1, 0), 1)
  for tree in ({'epoch': 1}, {'seed': 'x'}, {'step': 1}, None):
    with pytest.raises(errors.UserError, match='unreadable'):
      pipeline.DataPosition.from_json(tree)


def test_prompts(mixture, tiny):
  data = problems_of(mixture, tiny)
  problems, prompt_PS, prompt_length_P = data.batch_at(data.start(), 64)
  assert prompt_PS.shape == (64, 32) and prompt_PS.dtype == np.int32
  assert prompt_length_P.shape == (64,) and prompt_length_P.dtype == np.int32
  for problem, prompt, length in zip(
    problems, prompt_PS, prompt_length_P, strict=True
  ):
    text = templates.CHATML_THINK.render(problem.question)
    assert tiny.decode(prompt[:length]) == text
    assert (prompt[length:] == tiny.pad_id).all()


def test_training_problems_leave_the_demonstrations_out(tiny):
  # A small space, so that chance alone would repeat many of them.
  mixture = mixture_lib.build_mixture(
    {'signs': 1}, seed=0, options={'signs': {'min_terms': 3, 'max_terms': 3}}
  )
  demos = pipeline.demonstration_dataset(
    mixture, tiny, size=SIZE, seed=1, max_length=80
  )
  keys = {mixture.problem(i, 'train').key for i in range(SIZE)}
  assert demos.problem_keys == keys
  blind = {mixture.problem(i, 'train').key for i in range(SIZE, SIZE + 1000)}
  assert blind & keys
  for seed in (0, 1):
    data = problems_of(mixture, tiny, seed=seed, num_demonstrations=SIZE)
    problems, _, _ = data.batch_at(data.start(), 1000)
    assert not {p.key for p in problems} & keys
    assert len({p.id for p in problems}) == 1000
    assert all('/train/' in p.id for p in problems)


def test_exclusion_keeps_the_proportions(tiny):
  pytest.importorskip('reasoning_gym', reason='extra "gym" not installed')
  mixture = mixture_lib.build_mixture(
    {'signs': 3, 'chain_sum': 1},
    seed=0,
    options={'chain_sum': {'max_terms': 3}},
  )
  data = problems_of(mixture, tiny, num_demonstrations=SIZE)
  problems, _, _ = data.batch_at(data.start(), 400)
  assert sum(p.task == 'signs' for p in problems) == 300


def test_no_problem_left_is_said(tiny):
  mixture = mixture_lib.build_mixture(
    {'signs': 1},
    seed=0,
    options={
      'signs': {
        'min_terms': 2,
        'max_terms': 2,
        'min_number': 1,
        'max_number': 2,
      }
    },
  )
  data = problems_of(mixture, tiny, num_demonstrations=1000)
  with pytest.raises(errors.UserError, match='fewer demonstrations'):
    data.batch_at(data.start(), 1)


def test_seed_picks_the_training_stream_but_not_the_heldout_one(mixture, tiny):
  def keys(split, seed):
    data = problems_of(mixture, tiny, split=split, seed=seed)
    return [p.key for p in data.batch_at(data.start(), 100)[0]]

  assert keys('heldout', 0) == keys('heldout', 1)
  assert keys('heldout', 0) == [
    mixture.problem(i, 'heldout').key for i in range(100)
  ]
  assert len(set(keys('train', 0)) & set(keys('train', 1))) < 5


def test_too_long_is_said_with_lengths_and_config_key(mixture, tiny):
  with pytest.raises(
    errors.UserError, match=r'signs/0/train/\d+ has \d+ prompt.*max_response'
  ):
    pipeline.demonstration_dataset(mixture, tiny, size=4, seed=0, max_length=50)
  data = problems_of(mixture, tiny, max_prompt_length=20)
  with pytest.raises(
    errors.UserError, match=r'signs/0/train/\d+ has 2\d.*max_prompt_length'
  ):
    data.batch_at(data.start(), 1)


def test_bad_arguments(mixture, tiny):
  with pytest.raises(errors.UserError, match='size 0'):
    pipeline.demonstration_dataset(mixture, tiny, size=0, seed=0, max_length=80)
  with pytest.raises(errors.UserError, match='split'):
    problems_of(mixture, tiny, split='test')
  with pytest.raises(errors.UserError, match='seed'):
    problems_of(mixture, tiny, seed=-1)
