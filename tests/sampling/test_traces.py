"""What the decode loop writes, against the naive model in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import best_of_k, select_best
from tests import quick
from tests.model import naive
from tests.sampling import tiny
from tests.sampling.tiny import (
  EOS,
  MARK,
  NEVER,
  PAD,
  SEED,
  THINK,
  UNTHINK,
  R,
  log_softmax,
)

P, N, A = 4, 8, 6


@pytest.fixture
def params():
  """Float64 parameters, while float64 is on."""
  with jax.enable_x64(True):
    yield naive.random_params(tiny.model_config(), seed=1)


def _free(params, **options):
  """Draws without a budget: prompts, and what they got."""
  config = tiny.sampling_config(temperature=0.8, **options)
  prompt, length = tiny.prompts(P)
  _, drawn = tiny.loop(config, N, params, prompt, length)
  return prompt, length, drawn


def _written(drawn):
  return np.arange(R) < drawn.length_PN[..., None]


def test_a_trace_without_marks_is_scored_at_its_last_thinking_position(params):
  """Closed, ended without </think>, and cut: SPEC 6's fallback for each."""
  prompt, length, drawn = _free(params, step_ids=(NEVER,))
  assert not drawn.step_mask_PNR.any()
  _, z = tiny.reread(params, prompt, length, drawn.token_PNR)
  kinds = set()
  for p in range(P):
    for n in range(N):
      count = drawn.length_PN[p, n]
      tokens = drawn.token_PNR[p, n, :count].tolist()
      if UNTHINK in tokens:  # the last one, read where it is predicted
        kinds.add('closed')
        at = count - 1 - tokens[::-1].index(UNTHINK)
      else:
        kinds.add('ended' if drawn.finished_PN[p, n] else 'cut')
        at = count
      np.testing.assert_allclose(
        drawn.score_PN[p, n], 1 / (1 + np.exp(-z[p, n, at])), rtol=1e-9
      )
  assert kinds == {'closed', 'ended', 'cut'}
  # The same through the public functions, as a trainer would call them.
  rows = tiny.join(prompt, length, drawn.token_PNR).reshape(P * N, -1)
  tags = dict(think_start_id=THINK, think_end_id=UNTHINK)
  at_BT = sprm.thinking_end_feature_mask(
    rows, (length[:, None] + drawn.length_PN).reshape(-1), **tags
  )
  offset_B = np.repeat(length - 1, N)
  fallback_B = z.reshape(P * N, -1)[
    np.arange(P * N), at_BT.argmax(-1) - offset_B
  ]
  score_B = sprm.trace_score(
    np.zeros(rows.shape),
    sprm.step_feature_mask(rows, step_ids=(NEVER,), **tags),
    fallback_logit_B=fallback_B,
  )
  np.testing.assert_allclose(drawn.score_PN.reshape(-1), score_B, rtol=1e-9)
  # The released code gives such a trace 0.
  _, _, drawn = _free(params, step_ids=(NEVER,), released_selection=True)
  np.testing.assert_array_equal(drawn.score_PN, 0)


@pytest.mark.parametrize('aggregator', sprm.AGGREGATORS)
def test_scores_are_those_of_the_reread_marks(params, aggregator):
  prompt, length, drawn = _free(params, aggregator=aggregator)
  _, z = tiny.reread(params, prompt, length, drawn.token_PNR)
  rows = tiny.join(prompt, length, drawn.token_PNR)
  mask = sprm.step_feature_mask(
    rows, step_ids=(MARK,), think_start_id=THINK, think_end_id=UNTHINK
  )
  assert drawn.step_mask_PNR.sum() == mask.sum() > 10
  for p in range(P):
    inside = mask[p, :, length[p] - 1 : length[p] - 1 + R]
    np.testing.assert_array_equal(drawn.step_mask_PNR[p], inside)
    marked = inside.any(-1)
    want = sprm.trace_score(z[p, :, :R], inside, aggregator=aggregator)
    np.testing.assert_allclose(
      drawn.score_PN[p][marked], want[marked], rtol=1e-9
    )


def _with_budget(params, opened=True):
  config = tiny.sampling_config(thinking_budget=3, temperature=0.7)
  prompt, length = tiny.prompts(P, opened)
  turns, drawn = tiny.loop(config, N, params, prompt, length, trace=True)
  return prompt, length, turns, drawn


def test_the_loop_stops_when_every_candidate_has_ended(params):
  """With a thinking budget of 3, all traces end by turn 4 of R."""
  _, _, turns, drawn = _with_budget(params)
  assert drawn.finished_PN.all()
  assert turns == drawn.length_PN.max() == 4 < R
  assert (drawn.token_PNR[..., 4:] == PAD).all()
  _, _, drawn = _free(params)
  assert (drawn.finished_PN | (drawn.length_PN == R)).all()
  assert not drawn.finished_PN.all()


def test_a_forced_token_has_its_own_log_prob(params):
  """Budget and temperature: log-probs are those of the re-read tokens."""
  prompt, length, _, drawn = _with_budget(params)
  assert drawn.forced_PNR.any()
  logits, _ = tiny.reread(params, prompt, length, drawn.token_PNR)
  log_p = log_softmax(logits[:, :, :R] / 0.7)
  want = np.take_along_axis(log_p, drawn.token_PNR[..., None], -1)[..., 0]
  np.testing.assert_allclose(
    drawn.log_prob_PNR,
    np.where(_written(drawn), want, 0),
    rtol=1e-9,
    atol=1e-12,
  )


def test_the_budget_counts_thinking_that_the_model_opens_itself(params):
  """A prompt without <think>: the budget starts at the drawn <think>."""
  _, _, _, drawn = _with_budget(params, opened=False)
  seen = 0
  for p in range(P):
    for n in range(N):
      thinking, spent = False, 0
      for r in range(drawn.length_PN[p, n]):
        token = drawn.token_PNR[p, n, r]
        if thinking and spent == 3:
          assert token == UNTHINK
          seen += drawn.forced_PNR[p, n, r]
        else:
          assert not drawn.forced_PNR[p, n, r]
        if token == UNTHINK:
          thinking = False
        spent += thinking
        thinking |= token == THINK
  assert seen


def _thinking(tokens) -> tuple[bool, int]:
  """After an opened prompt and these tokens: inside, and how many inside."""
  thinking, spent = True, 0
  for token in tokens:
    if token == UNTHINK:
      thinking = False
    spent += thinking
    thinking |= token == THINK
  return thinking, spent


@functools.cache
def _noise():
  """Gumbel noise of (problem, candidate, position), as documented: fold_in."""

  def one(p, n, r):
    key = jax.random.key(SEED)
    for data in (p, n, r):
      key = jax.random.fold_in(key, data)
    return jax.random.gumbel(key, (tiny.V,), jnp.float64)

  p, n, r = np.indices((P, N, R + A)).reshape(3, -1).astype(np.int32)
  noise = quick.jit(jax.vmap(one))(p, n, r)
  return np.asarray(noise).reshape(P, N, R + A, -1)


def test_every_token_is_the_argmax_of_the_perturbed_logits(params):
  """The whole draw again from the naive model and the documented noise."""
  prompt, length, drawn = _free(params)
  logits, _ = tiny.reread(params, prompt, length, drawn.token_PNR)
  want = (logits[:, :, :R] / 0.8 + _noise()[:, :, :R]).argmax(-1)
  np.testing.assert_array_equal(
    drawn.token_PNR, np.where(_written(drawn), want, PAD)
  )


def test_every_answer_token_continues_the_winning_trace(params):
  """Form 'trace': the answer goes on from the winner's cache."""
  config = tiny.sampling_config(temperature=0.8)
  prompt, length = tiny.prompts(P)
  best = jax.device_get(
    quick.jit(
      functools.partial(
        best_of_k,
        k=N,
        model_config=tiny.model_config(),
        config=config,
        form='trace',
        answer_length=A,
        sharder=Sharder(),
      )
    )(params, prompt, length, np.int32(SEED), np.arange(P, dtype=np.int32))
  )
  traces = best.candidates
  natural = traces.finished_PN & ~traces.forced_PNR.any(-1)
  assert natural.any() and not natural.all()
  np.testing.assert_array_equal(
    best.best_P, select_best(traces.score_PN, natural)
  )
  thought = traces.length_PN[np.arange(P), best.best_P]
  assert (thought < R).any()  # somewhere there is a gap to close
  logits, z = tiny.reread(params, prompt, length, best.answer_PA[:, None])
  noise = _noise()
  for p in range(P):
    winner, total = best.best_P[p], best.answer_length_P[p]
    row = best.answer_PA[p]
    np.testing.assert_array_equal(
      row[: thought[p]], traces.token_PNR[p, winner, : thought[p]]
    )
    assert row[thought[p] - 1] == UNTHINK
    marked = traces.step_mask_PNR[p, winner, : thought[p]]
    np.testing.assert_allclose(
      traces.step_logit_PNR[p, winner, : thought[p]][marked],
      z[p, 0, : thought[p]][marked],
      rtol=1e-9,
    )
    for a in range(total - thought[p]):
      at = thought[p] + a
      perturbed = logits[p, 0, at] / 0.8 + noise[p, winner, at]
      # A <think> in the answer has no budget left, or what the trace left.
      before = row[:at].tolist()
      thinking, spent = _thinking(before)
      if thinking and spent >= R - 1:
        assert row[at] == UNTHINK
      else:
        assert row[at] == perturbed.argmax()
    assert total == thought[p] + A or row[total - 1] == EOS
    assert (row[total:] == PAD).all()


def test_a_trace_without_its_own_end_wins_only_where_there_is_no_other():
  """score, finished -> winner; the released mode looks at the score alone."""
  score = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.3], [0.7, 0.7, 0.1]])
  finished = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
  np.testing.assert_array_equal(select_best(score, finished), [2, 1, 0])
  np.testing.assert_array_equal(
    select_best(score, finished, released=True), [1, 1, 0]
  )
