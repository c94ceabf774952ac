"""Joining prompts and responses, against loops."""

import time

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.data import rows


def oracle(prompts, responses, total, pad):
  tokens = np.full((len(prompts), total), pad)
  mask = np.zeros((len(prompts), total), bool)
  for b, (p, r) in enumerate(zip(prompts, responses, strict=True)):
    joined = [*p, *r]
    tokens[b, : len(joined)] = joined
    for t in range(total - 1):
      mask[b, t] = len(p) <= t + 1 < len(joined)
  return tokens, mask


def test_assemble_rows_equals_loops():
  rng = np.random.default_rng(0)
  for total in (14, 20):
    prompts = [rng.integers(1, 99, rng.integers(1, 6)) for _ in range(40)]
    responses = [rng.integers(1, 99, rng.integers(0, 10)) for _ in range(40)]
    # What stands beyond the lengths must not leak: fill it with other ids.
    prompt_BS, prompt_length_B = rows.pad_rows(prompts, 5, -7)
    response_BR, response_length_B = rows.pad_rows(responses, 9, -8)
    tokens_BT, mask_BT = rows.assemble_rows(
      prompt_BS,
      prompt_length_B,
      response_BR,
      response_length_B,
      total,
      pad_id=3,
    )
    expected_tokens, expected_mask = oracle(prompts, responses, total, 3)
    np.testing.assert_array_equal(tokens_BT, expected_tokens)
    np.testing.assert_array_equal(mask_BT, expected_mask)
    np.testing.assert_array_equal(mask_BT.sum(1), response_length_B)
    assert tokens_BT.dtype == np.int32 and mask_BT.dtype == bool


def test_assemble_rows_by_hand():
  tokens_BT, mask_BT = rows.assemble_rows(
    [[5, 6, 0]], [2], [[7, 8, 9, 0]], [3], 6
  )
  np.testing.assert_array_equal(tokens_BT, [[5, 6, 7, 8, 9, 0]])
  np.testing.assert_array_equal(mask_BT, [[0, 1, 1, 1, 0, 0]])


def test_assemble_rows_is_fast():
  ones = np.ones((512, 1024), np.int32)
  length = np.full(512, 1024)
  start = time.perf_counter()
  rows.assemble_rows(ones, length, ones, length, 2048)
  assert time.perf_counter() - start < 1.0


def test_bad_rows():
  one = np.ones((1, 4), np.int32)
  with pytest.raises(errors.UserError, match='4 prompt and 4.*max_response'):
    rows.assemble_rows(one, [4], one, [4], 7)
  with pytest.raises(ValueError, match='prompt lengths'):
    rows.assemble_rows(one, [0], one, [4], 8)
  with pytest.raises(ValueError, match='response lengths'):
    rows.assemble_rows(one, [4], one, [5], 20)
  with pytest.raises(ValueError, match='different rows'):
    rows.assemble_rows(one, [4], np.ones((2, 4)), [1, 1], 8)
  with pytest.raises(ValueError, match='wider'):
    rows.pad_rows([[1, 2, 3]], 2, 0)


def test_pad_rows():
  ids_BT, length_B = rows.pad_rows([[1, 2], [], [3]], 3, 9)
  np.testing.assert_array_equal(ids_BT, [[1, 2, 9], [9, 9, 9], [3, 9, 9]])
  np.testing.assert_array_equal(length_B, [2, 0, 1])
  assert rows.pad_rows([], 3, 0)[0].shape == (0, 3)
