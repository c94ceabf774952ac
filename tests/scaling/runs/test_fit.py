"""Fits: the short way gives the same head, variants keep the backbone."""

import dataclasses

import jax
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, init_params
from metastone_jax.scaling.runs import fit as fit_lib
from metastone_jax.scaling.runs import judging, material
from metastone_jax.scaling.runs.fit import FitOptions
from metastone_jax.training import loop


def _options(**changes) -> FitOptions:
  fields = dict(epochs=2, rows_per_update=8, head_learning_rate=1e-2)
  return FitOptions(**{**fields, **changes})


def _whole(policy, options, folder, **more) -> fit_lib.Fitted:
  sweep, setup = policy
  train = material.load(sweep.job('x'), 'material').train
  params = material.base_params(setup, sweep.job('x'), 'base')
  return fit_lib.fit(
    options, train, setup, params, 7, rows_per_pass=4, folder=folder, **more
  )


def _close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize(
  'changes',
  [{'loss': 'spr'}, {'loss': 'soft', 'position': 'end', 'width': 8}],
)
def test_kept_features_give_the_same_head(policy, tmp_path, changes):
  sweep, setup = policy
  *_, train, heldout = material.load(sweep.job('x'), 'material')
  options = _options(**changes)
  short = fit_lib.fit_features(options, train, setup, 7)
  whole = _whole(policy, options, tmp_path / 'fit')
  _close(
    short.params['score_head'],
    whole.params['score_head'],
    rtol=1e-3,
    atol=2e-5,
  )
  assert short.loss == pytest.approx(whole.loss, rel=1e-4)
  # It has moved, by more than the tolerance.
  fresh = fit_lib.fresh_head(whole.config, 7)
  moved = np.abs(
    fresh['hidden_kernel'] - short.params['score_head']['hidden_kernel']
  )
  assert moved.max() > 1e-2
  # And the backbone has not.
  base = material.base_params(setup, sweep.job('x'), 'base')
  _close(
    {k: v for k, v in whole.params.items() if k != 'score_head'},
    {k: v for k, v in base.items() if k != 'score_head'},
    rtol=0,
    atol=0,
  )
  # Both ways of judging agree.
  z_BT = judging.score_features(
    whole.params['score_head'], heldout, options.position
  )
  out = judging.score_rows(
    whole.params,
    heldout,
    options.position,
    config=whole.config,
    sharder=setup.sharder,
    rows_per_pass=16,  # the last pass is not full
    with_log_prob=True,
  )
  np.testing.assert_allclose(z_BT, out['step_logit_BT'], atol=1e-5)
  np.testing.assert_allclose(
    out['log_prob_BT'][heldout.response_BT],
    heldout.log_prob_BT[heldout.response_BT],
    atol=1e-4,
  )


def test_a_long_fit_goes_on_where_it_was(policy, tmp_path):
  options = _options(gradient_scale=1.0, lm_coefficient=1.0)
  straight = _whole(policy, options, tmp_path / 'none')
  assert not (tmp_path / 'none').exists()  # a short one writes nothing

  def stop(done, total):
    assert total == 8
    if done == 3:
      raise loop.Interrupted('SIGTERM')

  with pytest.raises(loop.Interrupted):
    _whole(policy, options, tmp_path / 'fit', pause=stop, save_seconds=0)
  seen = []
  again = _whole(
    policy,
    options,
    tmp_path / 'fit',
    pause=lambda done, total: seen.append(done),
    save_seconds=0,
  )
  assert seen == [4, 5, 6, 7, 8]
  _close(again.params, straight.params, rtol=0, atol=0)
  assert again.loss == straight.loss
  # Done already: nothing is fitted again.
  whole = _whole(policy, options, tmp_path / 'fit', save_seconds=0)
  _close(whole.params, straight.params, rtol=0, atol=0)


def test_the_fit_lowers_the_losses_it_has(policy, tmp_path):
  sweep, setup = policy
  train = material.load(sweep.job('x'), 'material').train

  def losses(params):
    """(score loss over all responses, how far the policy has moved)."""
    out = judging.score_rows(
      params,
      train,
      'before',
      config=setup.model_config,
      sharder=setup.sharder,
      rows_per_pass=32,
      with_log_prob=True,
    )
    score = sprm.spr_loss(
      out['step_logit_BT'],
      train.mark_BT,
      train.correct_PN.reshape(-1),
      kind='bce',
      score_weight_B=train.score_weight_B,
    )
    return score, judging.policy_losses(train, out['log_prob_BT'])[2]

  base = material.base_params(setup, sweep.job('x'), 'base')
  before, still = losses(fit_lib.variant(setup.model_config, base, 7)[1])
  assert still == pytest.approx(0, abs=1e-5)
  options = _options(epochs=12, gradient_scale=1.0, backbone_learning_rate=1e-2)
  score, moved = losses(_whole(policy, options, tmp_path / 'a').params)
  assert score < 0.7 * before
  # Without the language-model loss the policy is lost; with it it even
  # learns its own samples by heart, a little.
  options = dataclasses.replace(options, lm_coefficient=1.0)
  kept, held = losses(_whole(policy, options, tmp_path / 'b').params)
  assert kept < 0.9 * before
  assert held < 0 < moved


def test_a_layer_variant_computes_the_same_policy(policy):
  _, setup = policy
  config = ModelConfig(32, 16, 4, 2, 1, 8, 24, qk_norm=True)
  params = init_params(config, jax.random.key(0))
  new, moved = fit_lib.variant(config, params, 3, feature_layer=1, width=5)
  assert (new.split, new.score_units) == (1, 5)
  assert moved['score_head']['hidden_kernel'].shape == (16, 5)
  token_BT = np.arange(12, dtype=np.int32).reshape(2, 6)
  rows = {
    'tokens_BT': token_BT,
    'target_BT': token_BT + 1,
    'position_BT': np.tile(np.arange(6, dtype=np.int32), (2, 1)),
    'segment_BT': np.ones((2, 6), np.int32),
  }
  one, two = (
    judging.read_program(c, setup.sharder)(p, rows)
    for c, p in ((config, params), (new, moved))
  )
  np.testing.assert_allclose(one[1], two[1], atol=1e-6)
  assert np.abs(one[0] - two[0]).max() > 0.01  # the feature is another
  # And back again, through a stack of two.
  for layer in (2, 3):
    new, moved = fit_lib.variant(new, moved, 3, feature_layer=layer)
  for name in ('low', 'high'):
    _close(moved[name], params[name], rtol=0, atol=0)


def test_heads_of_a_seed_begin_alike(policy):
  _, setup = policy
  one, two, other = (
    fit_lib.fresh_head(setup.model_config, seed) for seed in (1, 1, 2)
  )
  _close(one, two, rtol=0, atol=0)
  assert not np.array_equal(one['hidden_kernel'], other['hidden_kernel'])


def test_every_row_once_an_epoch():
  options = _options(epochs=3, rows_per_update=4)
  assert options.updates(14) == 9  # two rows fill no update
  for epoch in range(3):
    rows = [options.batch(u, 14, 0) for u in range(3 * epoch, 3 * epoch + 3)]
    assert len(set(np.concatenate(rows))) == 12
  assert not np.array_equal(options.batch(0, 14, 0), options.batch(3, 14, 0))
  assert not np.array_equal(options.batch(0, 14, 0), options.batch(0, 14, 1))


def test_rates_rise_and_fall_and_spr_begins_with_bce():
  options = _options(loss='spr', head_learning_rate=1.0)
  heads = [float(options.rates(u, 100)['head']) for u in range(100)]
  assert heads[0] == pytest.approx(0.2)
  assert max(heads) == heads[4] > 0.99 and heads[-1] == pytest.approx(0.1, 0.01)
  losses = [options.loss_at(u, 100) for u in range(100)]
  assert losses == ['bce'] * 25 + ['spr'] * 75


def test_options_of_a_point_and_refusals(policy):
  point = dict(judge='head', loss='bce', gradient_scale=0.0, lm_coefficient=1.0)
  assert not FitOptions.of(point).moves_backbone
  assert FitOptions.of(point | {'lm_alone': True}).moves_backbone
  assert FitOptions.of(point | {'gradient_scale': 1e-4}).lm_coefficient == 1.0
  prm = FitOptions.of(point | {'judge': 'prm', 'gradient_scale': 1.0})
  assert prm.lm_coefficient == 0.0 and prm.moves_backbone
  for changes, message in (
    ({'loss': 'mse'}, "loss='mse'"),
    ({'position': 'after'}, "position='after'"),
    ({'epochs': 0}, 'epochs=0'),
  ):
    with pytest.raises(UserError, match=message):
      _options(**changes)
  with pytest.raises(UserError, match='5 responses are fewer'):
    _options().updates(5)
  sweep, setup = policy
  train = material.load(sweep.job('x'), 'material').train
  for changes in ({'position': 'at'}, {'feature_layer': 1}):
    with pytest.raises(UserError, match='needs its backbone'):
      fit_lib.fit_features(_options(**changes), train, setup, 0)
  with pytest.raises(UserError, match='feature_layer'):
    fit_lib.variant(setup.model_config, {}, 0, feature_layer=9)
