"""Judges without a head, against float64; logits in the arrays of a judge."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from metastone_jax import sprm
from metastone_jax.scaling.runs import judging, material


def test_certainty_is_the_divergence_from_uniform():
  logit_TV = np.random.default_rng(0).normal(0, 3, (5, 11))
  p_TV = special.softmax(logit_TV, axis=-1)
  expected = [stats.entropy(np.full(11, 1 / 11), p_V) for p_V in p_TV]
  with jax.enable_x64(True):
    found = judging.certainty(np.log(p_TV))
  np.testing.assert_allclose(found, expected, rtol=1e-10)
  np.testing.assert_allclose(
    judging.certainty(np.full((2, 4), -np.log(4))), 0, atol=1e-7
  )


def test_readings_against_float64(policy):
  """Kept log-probs and certainties, from logits of the whole model."""
  sweep, setup = policy
  heldout = material.load(sweep.job('x'), 'material').heldout
  params = material.base_params(setup, sweep.job('x'), 'base')
  config = setup.model_config
  rows = heldout.rows('before')
  model = judging.ReflectiveModel.bind(config, params)
  hidden, _, _ = model(
    rows['tokens_BT'],
    rows['position_BT'],
    rows['segment_BT'],
    sharder=setup.sharder,
  )
  logit_BTV = np.asarray(model.logits(hidden), np.float64)
  V = config.vocab_size
  log_p_BTV = special.log_softmax(logit_BTV[..., :V], axis=-1)
  for b in range(0, len(heldout.length_B), 5):
    first, last = heldout.prompt_length_B[b] - 1, heldout.length_B[b] - 1
    own = log_p_BTV[b, first:last]
    # - 1/(n V) sum_i sum_j log(V p_i(j))
    certainty = -np.log(V * np.exp(own)).sum() / (len(own) * V)
    assert heldout.certainty_B[b] == pytest.approx(certainty, rel=1e-4)
    tokens = heldout.tokens_BT[b, first + 1 : last + 1]
    np.testing.assert_allclose(
      heldout.log_prob_BT[b, first:last],
      own[np.arange(len(own)), tokens],
      atol=1e-4,
    )
  before, after, kl = judging.policy_losses(heldout, None)
  assert before == after and kl == 0.0
  shifted = heldout.log_prob_BT - 0.25
  assert judging.policy_losses(heldout, shifted)[2] == pytest.approx(0.25)


def test_means_are_over_the_mask():
  value_BT = np.array([[1.0, 2.0, np.inf], [5.0, 6.0, 7.0]])
  mask_BT = np.array([[True, True, False], [False, False, False]])
  np.testing.assert_array_equal(
    judging.mean_over(value_BT, mask_BT), [1.5, 0.0]
  )


@pytest.mark.parametrize('position', ['before', 'at', 'end'])
def test_logits_go_where_their_steps_are(policy, position):
  sweep, _ = policy
  heldout = material.load(sweep.job('x'), 'material').heldout
  z_BT = np.random.default_rng(1).normal(size=heldout.tokens_BT.shape)
  mask_BT = heldout.step_mask_BT(position)
  judged = judging.judged_by_head(heldout, z_BT, position)
  for aggregator in sprm.AGGREGATORS:
    expected = sprm.trace_score(
      z_BT,
      mask_BT,
      aggregator=aggregator,
      fallback_logit_B=np.where(heldout.end_BT, z_BT, 0).sum(axis=1),
    )
    np.testing.assert_allclose(
      judged.score_PN(aggregator).reshape(-1), expected, rtol=1e-5
    )
  assert judged.tokens_PN.sum() == heldout.response_BT.sum()
