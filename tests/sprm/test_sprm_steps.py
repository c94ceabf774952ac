"""Step marks: the released masks, a brute-force oracle, jit and numpy."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError

START, END, MARK = 11, 12, 5
IDS = dict(step_ids=[MARK], think_start_id=START, think_end_id=END)


@pytest.fixture(scope='module')
def golden(repo_root):
  path = repo_root / 'tests' / 'golden' / 'reference.json'
  return json.loads(path.read_text())


def oracle(tokens, step_ids, start_id, end_id, side):
  """One position at a time, written from the text of SPEC section 2."""
  tokens = list(tokens)
  if side == 'train':
    first = tokens.index(start_id) if start_id in tokens else 0
    last = len(tokens)
    for i, token in enumerate(tokens):
      if token == end_id:
        last = i
  else:
    first = tokens.index(start_id) if tokens.count(start_id) == 1 else 0
    once = tokens.count(end_id) == 1
    last = tokens.index(end_id) if once else len(tokens)
  mask = [False] * len(tokens)
  for i in range(1, len(tokens)):
    if tokens[i] not in step_ids or tokens[i - 1] in step_ids:
      continue
    if tokens[i - 1] == start_id:
      continue
    feature = i - 1
    if side == 'train':
      mask[feature] = first <= i <= last
    else:
      mask[feature] = first < feature < last
  return mask


@pytest.mark.parametrize('library', [np, jnp])
def test_golden_masks(golden, library):
  ids = golden['ids']
  names = dict(
    step_ids=ids['step'],
    think_start_id=ids['think_start'],
    think_end_id=ids['think_end'],
  )
  assert len(golden['masks']) == 15
  T = 1 + max(len(case['tokens']) for case in golden['masks'])

  def padded(name, fill):
    rows = [
      case[name] + [fill] * (T - len(case[name])) for case in golden['masks']
    ]
    return library.asarray(rows, dtype=library.int32)

  tokens_BT = padded('tokens', -1)  # one right-padded batch
  # The released training mask marks the step token; ours is one position
  # before, and a mark at index 0 has no position before it.
  marks_BT = padded('train_step_token_mask', 0) != 0
  train_BT = sprm.step_feature_mask(tokens_BT, **names, side='train')
  np.testing.assert_array_equal(train_BT[:, :-1], marks_BT[:, 1:])
  assert not train_BT[:, -1].any()
  serve_BT = sprm.step_feature_mask(tokens_BT, **names, side='serve')
  np.testing.assert_array_equal(serve_BT, padded('serve_feature_mask', 0) != 0)


def test_golden_masks_without_padding(golden):
  ids = golden['ids']
  for case in golden['masks']:
    for side, name in (
      ('train', 'train_step_token_mask'),
      ('serve', 'serve_feature_mask'),
    ):
      got_BT = sprm.step_feature_mask(
        np.array([case['tokens']]),
        step_ids=ids['step'],
        think_start_id=ids['think_start'],
        think_end_id=ids['think_end'],
        side=side,
      )
      want_T = case[name][1:] + [0] if side == 'train' else case[name]
      np.testing.assert_array_equal(got_BT[0], np.asarray(want_T, bool))


@pytest.mark.parametrize('side', sprm.SIDES)
def test_random_batches_equal_the_oracle(side):
  # Many marks and tags, so that runs, repeated and reversed tags are common.
  rng = np.random.default_rng(0)
  tokens_BT = rng.choice([1, 2, 3, MARK, MARK, 6, START, END], (400, 17))
  step_ids = (MARK, 6)
  options = dict(
    step_ids=step_ids, think_start_id=START, think_end_id=END, side=side
  )
  expected_BT = [oracle(t, step_ids, START, END, side) for t in tokens_BT]
  got_BT = sprm.step_feature_mask(tokens_BT, **options)
  np.testing.assert_array_equal(got_BT, expected_BT)
  jitted = jax.jit(functools.partial(sprm.step_feature_mask, **options))
  np.testing.assert_array_equal(jitted(jnp.asarray(tokens_BT)), expected_BT)


def test_library_in_is_library_out():
  tokens_BT = np.array([[1, 2, MARK, 3]])
  assert isinstance(sprm.step_feature_mask(tokens_BT, **IDS), np.ndarray)
  got_BT = sprm.step_feature_mask(jnp.asarray(tokens_BT), **IDS)
  assert isinstance(got_BT, jax.Array)
  assert got_BT.dtype == bool


def test_leading_axes():
  tokens_PNT = np.random.default_rng(1).choice([1, MARK, START, END], (3, 4, 9))
  got_PNT = sprm.step_feature_mask(tokens_PNT, **IDS)
  flat_BT = sprm.step_feature_mask(tokens_PNT.reshape(12, 9), **IDS)
  np.testing.assert_array_equal(got_PNT.reshape(12, 9), flat_BT)


@pytest.mark.parametrize('as_array', [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
  'tokens, length, side, position',
  [
    ([1, START, 2, 3, END, 4, 0, 0], 6, 'train', 3),
    ([1, START, 2, 3, 4, 5, 0, 0], 6, 'train', 5),  # no </think>
    ([1, START, 2, END, 4, END, 7, 0], 7, 'train', 4),  # the last one
    ([1, START, 2, END, 4, END, 7, 0], 7, 'serve', 6),  # not exactly once
    ([1, START, 2, 3, END, 4, 0, 0], 6, 'serve', 3),
    ([1, END, START, 2, 3, 0, 0, 0], 5, 'train', 4),  # closed before opened
    ([1, START, END, 2, 0, 0, 0, 0], 4, 'train', 1),  # empty thinking
    ([1, START, 2, 3, END, END, END, END], 4, 'train', 3),  # pad = </think>
    ([END, 2, 3, 0, 0, 0, 0, 0], 3, 'train', 2),  # nothing predicts index 0
    ([1, 2, 3, 4, 5, 6, 7, 8], 8, 'train', 7),
    ([0, 0, 0, 0, 0, 0, 0, 0], 0, 'train', 0),
  ],
)
def test_thinking_end(tokens, length, side, position, as_array):
  mask_BT = sprm.thinking_end_feature_mask(
    as_array([tokens]),
    as_array([length]),
    think_start_id=START,
    think_end_id=END,
    side=side,
  )
  np.testing.assert_array_equal(np.flatnonzero(mask_BT[0]), [position])


def test_user_errors():
  tokens_BT = np.ones((1, 3), int)
  with pytest.raises(UserError, match='side'):
    sprm.step_feature_mask(tokens_BT, **IDS, side='test')
  with pytest.raises(UserError, match='step_ids'):
    sprm.step_feature_mask(tokens_BT, **(IDS | {'step_ids': ()}))
