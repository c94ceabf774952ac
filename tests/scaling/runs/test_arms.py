"""Arms of a small sweep: what they keep, cost and say."""

import json

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.evaluation import best_of_k
from metastone_jax.scaling import compute
from metastone_jax.scaling.judged import About, Judged
from metastone_jax.scaling.runs import arms, head_cost, judging, material
from metastone_jax.training import loop
from tests.scaling.runs.conftest import BASE, MATERIAL
from tests.training.loop.parts import one_device


def _point(arm: str, **changes):
  return {
    'name': f'arm-{arm}',
    'kind': 'arm',
    'arm': arm,
    'set': 'tiny',
    'seed': 5,
    'material': 'material',
    'judge': 'head',
    'loss': 'bce',
    'gradient_scale': 0.0,
    'epochs': 2,
    'rows_per_update': 8,
    'head_learning_rate': 1e-2,
    'backbone_learning_rate': 1e-2,
    'lm_coefficient': 1.0,
    **changes,
  }


def _do(sweep, point):
  with one_device():
    rows = sweep.do(arms.arm, point)
  folder = sweep.job(point['name']).folder
  judged = Judged.load(folder / 'judged.npz')
  return rows, judged, About.load(folder / 'about.json')


@pytest.fixture(scope='module')
def done(claims_sweep):
  """name -> (rows, Judged, About) of some arms."""
  sweep, _ = claims_sweep
  points = [
    _point('frozen'),
    _point('full', gradient_scale=1.0, keep=True),
    _point('odd', gradient_scale=1e-4, feature_layer=1, width=8, position='at'),
    _point('outcome', position='end'),
    _point('prm', judge='prm', gradient_scale=1.0),
    _point('log-prob', judge='log-prob'),
    _point('self-certainty', judge='self-certainty'),
    _point('written', judge='written', text=' 0'),
  ]
  return sweep, {point['arm']: _do(sweep, point) for point in points}


def test_all_arms_judge_the_same_samples(done):
  _, found = done
  one = found['frozen'][1]
  for rows, judged, about in found.values():
    for name in ('correct_PN', 'answers_PN', 'finished_PN', 'tokens_PN'):
      np.testing.assert_array_equal(getattr(judged, name), getattr(one, name))
    assert judged.problem_ids == one.problem_ids
    assert (about.task, about.set, about.seed) == ('signs', 'tiny', 5)
    assert about.seconds >= about.train_seconds >= 0
    json.dumps(rows)


def test_rows_are_the_estimators_of_what_is_kept(done):
  _, found = done
  for arm, (rows, judged, _) in found.items():
    eligible_PN = judged.finished_PN & (judged.answers_PN >= 0)
    values = {(r['metric'], r['k']): r['value'] for r in rows}
    assert {r['arm'] for r in rows} == {arm}
    for k in (1, 2, 4):
      assert values['best-of-k', k] == pytest.approx(
        best_of_k(
          judged.score_PN(), judged.correct_PN, k, finished_PN=eligible_PN
        )
      )
    assert ('best-of-k', 8) not in values  # there are 4 samples


def test_what_is_written_last(done, policy):
  """Against the texts."""
  sweep, found = done
  _, setup = policy
  heldout = material.load(sweep.job('x'), 'material').heldout
  decode = setup.tokenizer.decode
  expected = []
  for b, length in enumerate(heldout.length_B):
    ids = heldout.tokens_BT[b, heldout.prompt_length_B[b] : length].tolist()
    text = decode(ids)
    thinking = text.rpartition('</think>')[0] or text
    steps = thinking.split('.\n\n')[:-1]
    expected.append(bool(steps) and steps[-1].endswith(' 0'))
  judged = found['written'][1]
  np.testing.assert_array_equal(judged.value_PN.reshape(-1), expected)
  assert 0 < np.mean(expected) < 1
  with one_device(), pytest.raises(UserError, match='has no text'):
    sweep.do(arms.arm, _point('mute', judge='written'))


def test_what_arms_cost(done, policy):
  sweep, found = done
  _, setup = policy
  config = setup.model_config
  about = {arm: value[2] for arm, value in found.items()}
  head, backbone = (
    config.num_score_parameters,
    config.num_backbone_parameters,
  )
  assert about['frozen'].parameters_trained == head
  assert about['full'].parameters_trained == head + backbone
  assert about['full'].parameters_extra == head
  # The copy ends below its head: no last block, final norm, unembedding.
  job = sweep.job('x')
  params = material.base_params(setup, job, 'base')
  below = params['embedding'], params['low']
  copy = sum(x.size for x in jax.tree.leaves(below))
  assert copy < backbone
  assert about['prm'].parameters_extra == head + copy
  assert about['prm'].parameters_trained == head + copy
  assert about['odd'].parameters_extra == 8 * (config.width + 2) + 1
  assert about['log-prob'].parameters_extra == 0
  # A separate model reads everything, a head scores marks.
  shape = head_cost.shape_of(config)
  heldout = material.load(sweep.job('x'), 'material').heldout
  marks_B = np.maximum(1, heldout.mark_BT.sum(axis=1))
  judge = compute.of_prm(
    shape,
    prompt=heldout.prompt_length_B,
    tokens=heldout.length_B - heldout.prompt_length_B,
    marks=marks_B,
  )
  assert about['prm'].flops_judge_per_problem == pytest.approx(
    judge.flops.sum() / heldout.shape[0]
  )
  head = compute.of_head(shape, marks_B).flops.sum() / heldout.shape[0]
  assert about['full'].flops_judge_per_problem == pytest.approx(head)
  assert about['frozen'].flops_policy_per_problem > 100 * head


def test_how_far_the_policy_has_moved(done):
  _, found = done
  about = {arm: value[2] for arm, value in found.items()}
  assert about['frozen'].kl_policy == about['log-prob'].kl_policy == 0.0
  assert about['prm'].kl_policy is None and about['prm'].lm_loss_after is None
  moved = about['full']
  assert moved.kl_policy == pytest.approx(
    moved.lm_loss_after - moved.lm_loss_before
  )
  assert moved.kl_policy != 0.0
  assert about['full'].options['lm_coefficient'] == 1.0
  assert about['prm'].options['lm_coefficient'] == 0.0


def test_an_outcome_arm_has_one_step(done):
  _, found = done
  judged = found['outcome'][1]
  assert (judged.num_steps_PN == 1).all()
  np.testing.assert_array_equal(
    judged.step_logit_PNS[..., 0], judged.last_logit_PN
  )


def test_a_head_on_a_later_policy(done):
  """It starts from a kept fit; its head judges the later one's samples."""
  sweep, found = done
  later = {
    **BASE,
    'name': 'later-base',
    'start': 'arm-full',
    'changes': BASE['changes'] | {'phases.warmup.steps': 1},
  }
  with one_device():
    sweep.do(material.base, later)
    sweep.do(
      material.material,
      MATERIAL
      | {'name': 'later-material', 'base': 'later-base', 'train_problems': 2},
    )
  point = _point(
    'transfer', material='later-material', head_of='arm-full', gradient_scale=1
  )
  _, judged, about = _do(sweep, point)
  assert about.parameters_trained == 0 and about.train_seconds == 0
  assert about.options['head_of'] == 'arm-full'
  # The head's words on the later features, by hand.
  heldout = material.load(sweep.job('x'), 'later-material').heldout
  with np.load(sweep.job('arm-full').folder / 'head.npz') as head:
    hidden = heldout.feature_MD @ head['hidden_kernel'] + head['hidden_bias']
    z_M = np.maximum(hidden, 0) @ head['output_kernel'] + head['output_bias']
  is_end_M = heldout.end_BT[heldout.read_BT]
  np.testing.assert_allclose(
    judged.last_logit_PN.reshape(-1), z_M[is_end_M, 0], atol=1e-5
  )
  # The start was the fitted model, not the base.
  with one_device(), material.base_setup(sweep.job('x'), 'base') as setup:
    full = loop.load_params(
      setup, str(sweep.job('arm-full').folder / 'fitted'), None
    )
    base = material.base_params(setup, sweep.job('x'), 'base')
    start = loop.load_params(
      setup,
      str(material.checkpoints_of(sweep.job('x'), 'later-base')),
      None,
    )
  apart = [
    np.abs(start['embedding'] - x['embedding']).mean() for x in (full, base)
  ]
  assert apart[0] < apart[1]


def test_a_kept_fit_draws_and_judges_its_own_samples(done):
  """Both are the fitted model's: its backbone's draws, its whole judgement."""
  sweep, _ = done
  drawn_by = MATERIAL | {'name': 'own-material', 'policy': 'arm-full'}
  with one_device():
    sweep.do(material.material, drawn_by)
  own = material.load(sweep.job('x'), 'own-material')
  assert (own.base, own.policy) == ('base', 'arm-full')
  other = material.load(sweep.job('x'), 'material').heldout
  assert list(own.heldout.problem_ids) == list(other.problem_ids)
  point = _point('own', material='own-material', head_of='arm-full')
  _, judged, about = _do(sweep, point)
  assert about.kl_policy == 0 and about.parameters_trained == 0

  def reading(name):
    """Logits and log-probs of these samples by one whole pass of a model."""
    with one_device(), material.base_setup(sweep.job('x'), 'base') as setup:
      params = material.base_params(setup, sweep.job('x'), name)
      return judging.score_rows(
        params,
        own.heldout,
        'before',
        config=setup.model_config,
        sharder=setup.sharder,
        rows_per_pass=8,
        with_log_prob=True,
      )

  fitted, base = reading('arm-full'), reading('base')
  mask_BT = own.heldout.response_BT
  gap = np.abs(own.heldout.log_prob_BT - fitted['log_prob_BT'])[mask_BT]
  assert gap.max() < 1e-4
  gap = np.abs(own.heldout.log_prob_BT - base['log_prob_BT'])[mask_BT]
  assert gap.max() > 1e-2
  expected = judging.judged_by_head(
    own.heldout, fitted['step_logit_BT'], 'before'
  )
  np.testing.assert_allclose(
    judged.score_PN('geometric'), expected.score_PN('geometric'), atol=1e-4
  )
  # What is fitted on these samples goes on from the model that drew them.
  still = _point(
    'still', material='own-material', gradient_scale=1.0, keep=True
  ) | {'epochs': 1, 'backbone_learning_rate': 0.0}
  _do(sweep, still)
  with one_device(), material.base_setup(sweep.job('x'), 'base') as setup:
    one, two = (
      material.base_params(setup, sweep.job('x'), name)
      for name in ('arm-still', 'arm-full')
    )
  np.testing.assert_array_equal(one['embedding'], two['embedding'])


def test_a_stopped_arm_begins_again_or_goes_on(done):
  sweep, found = done
  point = _point('full', name='again', gradient_scale=1.0)
  with one_device(), pytest.raises(loop.Interrupted):
    sweep.do(arms.arm, point, stop_at=3)
  assert not (sweep.job('again').folder / 'about.json').exists()
  _, judged, _ = _do(sweep, point)
  np.testing.assert_array_equal(
    judged.step_logit_PNS, found['full'][1].step_logit_PNS
  )
  assert not (sweep.job('again').folder / 'fit').exists()


def test_what_is_wrong_is_named(done):
  sweep, _ = done
  for point, message in (
    (_point('x', judge='vote'), "judge='vote' is unknown"),
    (_point('x', head_of='nobody'), 'no such head; do point nobody first'),
    (_point('x', keep=True, width=8), 'keep is for models of the shape'),
  ):
    with one_device(), pytest.raises(UserError, match=message):
      sweep.do(arms.arm, point)
