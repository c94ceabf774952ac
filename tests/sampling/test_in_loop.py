"""Scores and log-probs of the decode loop against a re-read of its tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, param_axes
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import SamplingConfig, best_of_k, sample
from metastone_jax.training.step import log_prob_pass
from tests import quick
from tests.model import naive

V, S, R = 12, 5, 14
PAD, EOS, THINK, UNTHINK, MARKS = 0, 1, 2, 3, (4, 5, 6)
CONFIG = SamplingConfig(
  max_response_length=R,
  eos_id=EOS,
  pad_id=PAD,
  step_ids=MARKS,
  think_start_id=THINK,
  think_end_id=UNTHINK,
)


ALONE = Sharder()


def model_config(dtype='float32') -> ModelConfig:
  return ModelConfig(
    vocab_size=V,
    width=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    feed_forward=24,
    qk_norm=True,
    dtype=dtype,
    param_dtype=dtype,
  )


def prompts(count: int):
  rng = np.random.default_rng(0)
  prompt = rng.integers(5, V, (count, S)).astype(np.int32)
  length = rng.integers(2, S + 1, count).astype(np.int32)
  prompt[np.arange(S) >= length[:, None]] = PAD
  prompt[np.arange(count), length - 1] = THINK
  return prompt, length


@functools.cache
def _program(config, mconfig, sharder):
  return quick.jit(
    functools.partial(
      sample, model_config=mconfig, config=config, sharder=sharder
    )
  )


def draw(config, params, prompt, length, draws, k, mconfig, sharder=ALONE):
  return jax.device_get(
    _program(config, mconfig, sharder)(
      params,
      prompt,
      length,
      np.int32(7),
      np.asarray(draws, np.int32),
      np.arange(k, dtype=np.int32),
    )
  )


@functools.cache
def _log_prob_program(mconfig):
  return quick.jit(
    functools.partial(
      log_prob_pass,
      model_config=mconfig,
      num_micro_batches=1,
      sharder=Sharder(),
    )
  )


def reread(params, prompt, length, token_NR, mconfig, temperature=1.0):
  """Rows [prompt | response | pad] through the trainer's log-prob program."""
  N = len(token_NR)
  T = S + R
  rows = np.full((N, T), PAD, np.int32)
  rows[:, :length] = prompt[:length]
  rows[:, length : length + R] = token_NR
  batch = {
    'tokens_BT': rows,
    'target_BT': np.roll(rows, -1, axis=1),
    'position_BT': np.tile(np.arange(T, dtype=np.int32), (N, 1)),
    'segment_BT': (np.arange(T) < length + R)[None].repeat(N, 0).astype('i4'),
    'temperature_B': np.full(N, temperature, np.float32),
    'step_mask_BT': np.ones((N, T), bool),
  }
  out = _log_prob_program(mconfig)(params, batch)
  window = slice(length - 1, length - 1 + R)
  return rows, {k: np.asarray(v)[:, window] for k, v in out.items()}


def test_scores_and_log_probs_equal_a_reread():
  temperature = 0.7
  mconfig = model_config()
  params = naive.random_params(mconfig, 1)
  prompt, length = prompts(6)
  config = dataclasses.replace(CONFIG, temperature=temperature)
  drawn = draw(config, params, prompt, length, range(6), 8, mconfig)
  marks = 0
  for p in range(6):
    tokens = drawn.token_PNR[p]
    rows, again = reread(
      params, prompt[p], length[p], tokens, mconfig, temperature
    )
    written = np.arange(R) < drawn.length_PN[p][:, None]
    scored = written & np.isin(tokens, (*MARKS, UNTHINK))
    np.testing.assert_allclose(
      np.where(scored, again['step_logit_BT'], 0),
      drawn.step_logit_PNR[p],
      atol=1e-5,
    )
    np.testing.assert_allclose(
      np.where(written, again['log_prob_BT'], 0),
      drawn.log_prob_PNR[p],
      atol=1e-4,
    )
    mask = sprm.step_feature_mask(
      rows,
      step_ids=MARKS,
      think_start_id=THINK,
      think_end_id=UNTHINK,
      side='train',
    )[:, length[p] - 1 : length[p] - 1 + R]
    np.testing.assert_array_equal(mask & written, drawn.step_mask_PNR[p])
    marks += mask.sum()
    # The score, from the re-read logits, in plain numpy.
    for n in range(8):
      z = again['step_logit_BT'][n][drawn.step_mask_PNR[p, n]]
      if len(z):
        expected = np.exp(np.mean(-np.logaddexp(0, -z)))
        np.testing.assert_allclose(drawn.score_PN[p, n], expected, atol=1e-5)
  assert marks > 10  # the test sees marks at all


def test_tokens_do_not_depend_on_the_batch():
  with jax.enable_x64(True):
    mconfig = model_config('float64')
    params = naive.random_params(mconfig, 1)
    prompt, length = prompts(8)
    whole = draw(CONFIG, params, prompt, length, range(8), 8, mconfig)
    for p in (0, 3):
      alone = draw(
        CONFIG,
        params,
        prompt[p : p + 1],
        length[p : p + 1],
        [p],
        2,
        mconfig,
      )
      np.testing.assert_array_equal(alone.token_PNR[0], whole.token_PNR[p, :2])
      np.testing.assert_allclose(
        alone.score_PN[0], whole.score_PN[p, :2], rtol=1e-12
      )


def test_eight_devices_draw_the_same_tokens():
  with jax.enable_x64(True):
    mconfig = model_config('float64')
    params = naive.random_params(mconfig, 1)
    prompt, length = prompts(8)
    one = draw(CONFIG, params, prompt, length, range(8), 8, mconfig)
    sharder = Sharder(make_mesh({'fsdp': 4, 'tensor': 2}))
    sharded = jax.device_put(
      params, sharder.tree_shardings(params, param_axes(mconfig))
    )
    kernel = sharded['low']['gate_kernel']  # (layers, D, F)
    assert kernel.addressable_shards[0].data.shape == (2, 4, 12)
    rows = sharder.put_batch({'prompt': prompt, 'length': length})
    many = draw(
      CONFIG,
      sharded,
      rows['prompt'],
      rows['length'],
      range(8),
      8,
      mconfig,
      sharder,
    )
    np.testing.assert_array_equal(one.token_PNR, many.token_PNR)
    np.testing.assert_allclose(one.score_PN, many.score_PN, rtol=1e-10)


def test_greedy_equals_a_full_forward_each_token():
  with jax.enable_x64(True):
    mconfig = model_config('float64')
    params = naive.random_params(mconfig, 2)
    prompt, length = prompts(3)
    config = dataclasses.replace(CONFIG, temperature=0.0)
    drawn = draw(config, params, prompt, length, range(3), 1, mconfig)
    T = S + R

    @quick.jit
    def next_token(params, row_T, count):
      logits, _ = naive.row_forward(params, mconfig, row_T)
      return jnp.argmax(logits[count - 1])

    for p in range(3):
      row = np.full(T, PAD, np.int32)
      count = int(length[p])
      row[:count] = prompt[p, :count]
      for r in range(int(drawn.length_PN[p, 0])):
        row[count] = next_token(params, row, count)
        assert row[count] == drawn.token_PNR[p, 0, r]
        count += 1


def test_first_tokens_follow_the_softmax():
  mconfig = model_config()
  params = naive.random_params(mconfig, 3)
  prompt, length = prompts(1)
  count = 4000
  config = dataclasses.replace(CONFIG, max_response_length=1)
  drawn = draw(config, params, prompt, length, [0], count, mconfig)
  _, again = reread(
    params,
    prompt[0],
    length[0],
    np.tile(np.arange(V)[:, None], (1, R)),
    mconfig,
  )
  p_V = np.exp(again['log_prob_BT'][:, 0])
  np.testing.assert_allclose(p_V.sum(), 1, atol=1e-5)
  seen_V = np.bincount(drawn.token_PNR[0, :, 0], minlength=V)
  chi2 = np.sum((seen_V - count * p_V) ** 2 / (count * p_V))
  assert chi2 < 31.3  # 99.9 % of chi-square with 11 degrees of freedom


def run_best(form, params, prompt, length, k, mconfig, **options):
  program = quick.jit(
    functools.partial(
      best_of_k,
      k=k,
      model_config=mconfig,
      config=CONFIG,
      form=form,
      sharder=Sharder(),
      **options,
    )
  )
  P = len(prompt)
  return jax.device_get(
    program(params, prompt, length, np.int32(7), np.arange(P, dtype=np.int32))
  )


def test_complete_takes_the_best_finished_candidate():
  mconfig = model_config()
  params = naive.random_params(mconfig, 1)
  prompt, length = prompts(6)
  best = run_best('complete', params, prompt, length, 8, mconfig)
  for p in range(6):
    score = best.candidates.score_PN[p].astype(float)
    finished = best.candidates.finished_PN[p]
    if finished.any():
      score[~finished] = -1
    assert best.best_P[p] == np.argmax(score)
    np.testing.assert_array_equal(
      best.answer_PA[p], best.candidates.token_PNR[p, best.best_P[p]]
    )


@pytest.mark.parametrize(
  ('form', 'k', 'options', 'word'),
  [
    ('complete', 0, {}, 'k='),
    ('nonsense', 2, {}, 'form'),
    ('trace', 2, {}, 'answer_length'),
  ],
)
def test_bad_requests_are_named(form, k, options, word):
  mconfig = model_config()
  params = naive.random_params(mconfig, 1)
  prompt, length = prompts(1)
  with pytest.raises(UserError, match=word):
    run_best(form, params, prompt, length, k, mconfig, **options)
