"""Costs against numbers worked out by hand and sums written out."""

import dataclasses
import itertools

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.scaling import compute

# Small enough to work out by hand; 50 weights a block.
SHAPE = compute.Shape(
  parameters=150,
  block_weights=100,
  vocab_size=10,
  width=4,
  layers=2,
  judged_layers=1,
  query_width=6,
  cache_width=3,
  score_units=8,
)


def _attention(tokens, before, layers):
  """2 FLOPs a multiply-add, query by query, key by key."""
  flops = 0
  for _ in range(layers):
    for i in range(tokens):
      for _ in range(before + i + 1):
        flops += 2 * SHAPE.query_width  # q.k
        flops += 2 * SHAPE.query_width  # p.v
  return flops


def test_the_papers_compute():
  assert compute.parameters_x_tokens(1500, 8) == 12_000
  assert compute.two_p_t(1500, 8) == 24_000
  np.testing.assert_array_equal(
    compute.parameters_x_tokens(3, np.array([[1, 2], [3, 4]])),
    [[3, 6], [9, 12]],
  )


@pytest.mark.parametrize('tokens,before', [(1, 0), (5, 0), (1, 7), (4, 3)])
def test_attention_is_the_sum_over_queries(tokens, before):
  got = compute.attention_flops(SHAPE, tokens, before=before)
  assert got == _attention(tokens, before, 2)
  got = compute.attention_flops(SHAPE, tokens, before=before, layers=1)
  assert got == _attention(tokens, before, 1)


def test_parameters_and_flops_of_the_judges():
  """Linear(4, 8), Linear(8, 1): 32 + 8 + 8 + 1 parameters, 40 multiply-adds."""
  head = compute.of_head(SHAPE, 3)
  assert (head.parameters, head.flops) == (49, 3 * 2 * 40)
  prm = compute.of_prm(SHAPE, prompt=2, tokens=5, marks=3)
  assert prm.parameters == 150 + 49
  # One of two blocks, 50 weights, at 7 tokens; no policy head.
  assert prm.flops == 7 * 2 * 50 + _attention(7, 0, 1) + 3 * 2 * 40


def test_released_head_costs_4_d_d_plus_1_a_mark():
  shape = dataclasses.replace(SHAPE, width=1536, score_units=3072)
  assert compute.score_flops(shape, 1) == 4 * 1536 * 1537
  assert shape.head_parameters == 2 * 1536**2 + 4 * 1536 + 1


def test_samples_of_one_problem():
  got = compute.of_samples(
    SHAPE,
    prompt=3,
    tokens_N=[4, 6],
    thinking_N=[3, 5],
    judge=compute.of_head(SHAPE, np.array([1, 2])),
  )
  assert got.parameters_x_tokens == 150 * 8
  assert got.two_p_t == 2 * 150 * 8
  # The prompt once, without the policy head of 4 x 10 weights.
  assert got.products == 2 * 3 * 100 + 2 * 10 * 140
  want = _attention(3, 0, 2) + _attention(4, 3, 2) + _attention(6, 3, 2)
  assert got.attention == want
  assert got.scoring == 3 * 2 * 40
  assert got.flops == got.products + got.attention + got.scoring


def test_k_of_n_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  prompt_P = rng.integers(1, 9, 3)
  tokens_PN = rng.integers(1, 30, (3, 5))
  marks_PN = rng.integers(0, 4, (3, 5))

  def costs(chosen):
    judge = compute.of_prm(
      SHAPE,
      prompt=prompt_P[:, None],
      tokens=tokens_PN[:, chosen],
      marks=marks_PN[:, chosen],
    )
    return compute.of_samples(
      SHAPE,
      prompt=prompt_P,
      tokens_N=tokens_PN[:, chosen],
      thinking_N=tokens_PN[:, chosen] - 1,
      judge=judge,
      k=2,
    )

  pairs = [costs(list(pair)) for pair in itertools.combinations(range(5), 2)]
  whole = costs(list(range(5)))
  for field in dataclasses.fields(compute.Compute):
    got = getattr(whole, field.name)
    assert got.shape == (3,)
    want = np.mean([getattr(pair, field.name) for pair in pairs], axis=0)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize('k', [0, 3])
def test_k_beyond_the_samples_is_refused(k):
  with pytest.raises(UserError, match=rf'k={k} must lie in \[1, 2\]'):
    compute.of_samples(SHAPE, prompt=1, tokens_N=[1, 2], thinking_N=0, k=k)


def test_memory():
  """Keys and values of 3 numbers each in 2 layers, 2 bytes a number."""
  assert compute.cache_bytes(SHAPE, 5) == 5 * 2 * 2 * 2 * 3
  load = dict(prompt=2, tokens=5, candidates=4)
  alone = compute.bytes_held(SHAPE, **load)
  assert alone == 2 * 150 + (2 + 4 * 5) * 24
  prm = compute.of_prm(SHAPE, prompt=2, tokens=5, marks=1)
  assert compute.bytes_held(SHAPE, **load, judge=prm) == alone + 2 * 199
