"""Draws against brute force: the distribution, its filters, its noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.sampling import (
  EFFORTS,
  SamplingConfig,
  processors,
  strategies,
)
from tests import quick

V = 8
GOOD = SamplingConfig(
  max_response_length=8,
  eos_id=1,
  pad_id=0,
  step_ids=(4,),
  think_start_id=2,
  think_end_id=3,
)


def _sorted_filter(logits, top_k, top_p):
  """Probabilities after top-k, then top-p, by sorting."""
  p = np.exp(logits - logits.max())
  order = np.argsort(-p, kind='stable')
  if top_k:
    order = order[:top_k]
  q = p[order] / p[order].sum()
  if top_p < 1:
    count = int(np.searchsorted(np.cumsum(q), top_p - 1e-12)) + 1
    order, q = order[:count], q[:count]
  out = np.zeros(len(p))
  out[order] = q / q.sum()
  return out


def _process(logits, **options):
  config = dataclasses.replace(GOOD, **options)
  logits_BV = jnp.asarray(logits)
  with jax.disable_jit():  # nothing to compile at each setting
    for processor in config.processors:
      logits_BV = processor(logits_BV, None)
  return np.asarray(logits_BV)


def test_filters_are_the_sort_at_many_settings():
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(50, 40)).astype(np.float32)
  for top_k in (0, 1, 7, 100):
    for top_p in (0.01, 0.5, 0.99, 1.0):
      kept = _process(logits, top_k=top_k, top_p=top_p)
      want = np.stack(
        [_sorted_filter(row, min(top_k, 40), top_p) for row in logits]
      )
      np.testing.assert_array_equal(
        np.isfinite(kept), want > 0, err_msg=f'{top_k=} {top_p=}'
      )


def test_top_p_keeps_the_best_token_and_all_ties():
  flat = np.zeros((1, 4))
  np.testing.assert_array_equal(_process(flat, top_p=0.3), flat)
  peaked = np.array([[50.0, 0, 0, 0]])
  assert np.isfinite(_process(peaked, top_p=0.5)).sum() == 1


@pytest.mark.parametrize('min_p', [0.01, 0.3, 1.0])
def test_min_p_is_a_share_of_the_likeliest(min_p):
  logits = np.random.default_rng(1).normal(size=(20, 40)).astype(np.float32)
  p = np.exp(logits.astype(np.float64))
  want = p >= min_p * p.max(-1, keepdims=True) * (1 - 1e-6)
  kept = _process(logits, min_p=min_p)
  np.testing.assert_array_equal(np.isfinite(kept), want)
  # Behind top-p the likeliest is the same, so the floor is.
  both = _process(logits, min_p=min_p, top_p=0.9)
  np.testing.assert_array_equal(
    np.isfinite(both), want & np.isfinite(_process(logits, top_p=0.9))
  )


def test_bad_tokens_are_never_drawn():
  logits = np.random.default_rng(2).normal(size=(3, 6))
  kept = _process(logits, bad_ids=(1, 4))
  np.testing.assert_array_equal(
    np.isfinite(kept), np.broadcast_to([1, 0, 1, 1, 0, 1], (3, 6)) > 0
  )


def test_repetition_penalty():
  """transformers: positive logits divided, negative ones multiplied."""
  logits = np.array([[2.0, -2.0, 3.0, -3.0]])
  seen = jnp.array([[True, True, False, False]])
  found = processors.RepetitionPenalty(1.25)(jnp.asarray(logits), seen)
  np.testing.assert_allclose(found, [[1.6, -2.5, 3.0, -3.0]], rtol=1e-6)


def test_draws_follow_the_brute_force_distribution():
  """Chi-square over 20,000 draws at two positions, below the 99.9 % point."""
  options = dict(top_k=7, top_p=0.8)
  filters = dataclasses.replace(GOOD, **options).processors
  logits_V = np.array([1.2, 0.3, -0.5, 2.0, 0.0, -1.0, 0.9, -3.0], np.float32)
  problems, candidates = 100, 200
  keys = strategies.row_keys(
    np.int32(11),
    np.arange(problems, dtype=np.int32),
    np.arange(candidates, dtype=np.int32),
  ).reshape(-1)
  scaled_V = logits_V / 0.9
  logits = jnp.broadcast_to(scaled_V, (problems * candidates, V))

  @quick.jit
  def draw(position):
    place = jnp.broadcast_to(position, keys.shape)
    kept = logits
    for processor in filters:
      kept = processor(kept, None)
    token = strategies.draw_tokens(kept, keys, place, greedy=False)
    return token, strategies.log_prob_of(logits, token)

  p_V = _sorted_filter(scaled_V, options['top_k'], options['top_p'])
  possible = p_V > 0
  tokens = []
  for position in (0, 5):
    token, log_prob = draw(np.int32(position))
    count = np.bincount(np.asarray(token).ravel(), minlength=V)
    assert not count[~possible].any()
    expected = p_V[possible] * token.size
    chi2 = ((count[possible] - expected) ** 2 / expected).sum()
    # 99.9 % points of chi-square, 1 to 7 degrees of freedom.
    limit = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]
    assert chi2 < limit[possible.sum() - 2], chi2
    # Reported: the tempered, UNFILTERED log-prob (what the trainer computes).
    full = scaled_V - np.log(np.exp(scaled_V).sum())
    np.testing.assert_allclose(log_prob, full[token], atol=1e-5)
    tokens.append(np.asarray(token))
  # Positions are independent: they agree as often as chance has it.
  agree = (tokens[0] == tokens[1]).mean()
  chance = (p_V**2).sum()
  assert abs(agree - chance) < 5 * (chance / tokens[0].size) ** 0.5


def test_greedy_is_the_argmax():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, V)))
  keys = strategies.row_keys(
    np.int32(0), np.arange(2, dtype=np.int32), np.arange(3, dtype=np.int32)
  ).reshape(-1)
  token = strategies.draw_tokens(logits, keys, np.zeros(6, int), greedy=True)
  np.testing.assert_array_equal(token, np.argmax(logits, -1))
  np.testing.assert_allclose(
    strategies.log_prob_of(logits, token),
    jax.nn.log_softmax(logits).max(-1),
    rtol=1e-6,
  )


def test_keys_are_a_function_of_seed_draw_and_candidate():
  def data(seed, draws, candidates):
    keys = strategies.row_keys(
      np.int32(seed),
      np.array(draws, np.int32),
      np.array(candidates, np.int32),
    )
    return np.asarray(jax.random.key_data(keys))

  whole = data(3, [5, 6, 9], [0, 1, 2, 3])
  np.testing.assert_array_equal(data(3, [9], [2]), whole[2:, 2:3])
  assert len(np.unique(whole.reshape(12, -1), axis=0)) == 12
  assert (data(4, [9], [2]) != whole[2:, 2:3]).any()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(max_response_length=0), 'sampling.max_response_length must be'),
    (dict(temperature=-0.1), 'sampling.temperature must be at least 0'),
    (dict(top_k=-1), 'sampling.top_k must be at least 0'),
    (dict(top_p=0.0), r'sampling.top_p must be in \(0, 1\]'),
    (dict(top_p=1.5), r'sampling.top_p must be in \(0, 1\]'),
    (dict(min_p=1.5), r'sampling.min_p must be in \[0, 1\]'),
    (dict(repetition_penalty=0), 'sampling.repetition_penalty must be above 0'),
    (dict(thinking_budget=0), 'sampling.thinking_budget must be'),
    (dict(thinking_budget=8), 'sampling.thinking_budget must be'),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(GOOD, **options)


def test_efforts_are_the_papers():
  ks = {name: effort.k for name, effort in EFFORTS.items()}
  assert ks == {'low': 2, 'medium': 8, 'high': 32}
  shares = [effort.thinking for effort in EFFORTS.values()]
  assert shares == sorted(shares) and 0 < shares[0] and shares[-1] < 1
