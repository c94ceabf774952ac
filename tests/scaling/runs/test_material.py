"""The policy of a seed and the responses that its arms share."""

import json

import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError
from metastone_jax.scaling.runs import material
from metastone_jax.scaling.runs.drawn import Drawn
from metastone_jax.training import loop
from tests.scaling.runs.conftest import BASE, MATERIAL
from tests.training.loop.parts import one_device


def test_rows_say_the_size_and_how_right_the_policy_is(claims_sweep):
  sweep, rows = claims_sweep
  values = {(r['metric'], r.get('split')): r['value'] for r in rows}
  for split in ('train', 'heldout'):
    drawn = Drawn.load(sweep.job('material').folder / f'{split}.npz')
    assert values['pass@1', split] == drawn.correct_PN.mean()
  assert values['parameters', None] > 1000
  json.dumps(rows)


def test_rows_are_prompt_and_response_with_their_marks(policy):
  sweep, setup = policy
  base, who, task, train, heldout = material.load(sweep.job('x'), 'material')
  assert (base, who, task) == ('base', 'base', 'signs')
  assert train.shape == (8, 4) and heldout.shape == (6, 4)
  config = setup.evaluation_sampling
  for drawn in (train, heldout):
    B, T = drawn.tokens_BT.shape
    assert T % 8 == 0 and T >= drawn.length_B.max()
    assert B == drawn.shape[0] * drawn.shape[1] == len(drawn.end_B)
    for b in range(B):
      ids = drawn.tokens_BT[b, : drawn.length_B[b]].tolist()
      first = drawn.prompt_length_B[b]
      # Of responses that ended, the end token is a token of the response.
      assert (ids[-1] == config.eos_id) == drawn.finished_PN.reshape(-1)[b]
      assert drawn.response_BT[b].nonzero()[0].tolist() == list(
        range(first - 1, len(ids) - 1)
      )
      marks = drawn.mark_BT[b].nonzero()[0]
      assert all(ids[t + 1] in config.step_ids for t in marks)
      ends = [t for t, i in enumerate(ids) if i == config.think_end_id]
      last = ends[-1] - 1 if ends else len(ids) - 1
      assert drawn.end_B[b] == last
      at = drawn.step_mask_BT('at')[b].nonzero()[0]
      assert at.tolist() == [t + 1 for t in marks]
    weight_PN = drawn.score_weight_B.reshape(drawn.shape)
    assert (weight_PN[drawn.correct_PN] == 1).all()
    assert (weight_PN[~drawn.finished_PN] == 0).all()
  assert heldout.mark_BT.any()


def test_the_splits_share_no_problem_and_no_demonstration(policy):
  sweep, setup = policy
  *_, train, heldout = material.load(sweep.job('x'), 'material')
  prompts = [
    {tuple(t[:n]) for t, n in zip(d.tokens_BT, d.prompt_length_B, strict=True)}
    for d in (train, heldout)
  ]
  assert not prompts[0] & prompts[1]
  assert not set(train.problem_ids) & set(heldout.problem_ids)
  demonstrated = setup.demonstrations()
  batch = demonstrated.batch_at(demonstrated.start(), 64)
  shown = {
    tuple(t[:n])
    for t, n in zip(batch['tokens_BT'], batch['prompt_length_B'], strict=True)
  }
  assert not prompts[0] & shown


def test_a_stopped_point_goes_on_to_the_same_responses(claims_sweep):
  sweep, _ = claims_sweep
  with one_device():
    for stop_at in (2, 4):  # while drawing, and while reading
      with pytest.raises(loop.Interrupted):
        sweep.do(material.material, MATERIAL | {'name': 'm'}, stop_at=stop_at)
      assert not (sweep.job('m').folder / 'material.json').exists()
    assert list((sweep.job('m').folder / 'responses-train').iterdir())
    sweep.do(material.material, MATERIAL | {'name': 'm'})
  for split in ('train', 'heldout'):
    one, two = (
      Drawn.load(sweep.job(name).folder / f'{split}.npz')
      for name in ('material', 'm')
    )
    np.testing.assert_array_equal(one.tokens_BT, two.tokens_BT)
    np.testing.assert_array_equal(one.feature_MD, two.feature_MD)
  names = {path.name for path in sweep.job('m').folder.iterdir()}
  assert names == {'train.npz', 'heldout.npz', 'material.json'}


def test_features_are_kept_at_marks_and_ends(policy):
  sweep, _ = policy
  train = material.load(sweep.job('x'), 'material').train
  D = train.feature_MD.shape[1]
  whole_BTD = np.zeros((*train.read_BT.shape, D), np.float32)
  whole_BTD[train.read_BT] = train.feature_MD
  for mask_BT in (train.mark_BT, train.end_BT, train.read_BT):
    rows = train.features(mask_BT)
    np.testing.assert_array_equal(rows['mark_BS'].sum(1), mask_BT.sum(1))
    np.testing.assert_array_equal(
      rows['feature_BSD'][rows['mark_BS']], whole_BTD[mask_BT]
    )
    np.testing.assert_array_equal(
      rows['position_BS'][rows['mark_BS']], mask_BT.nonzero()[1]
    )


def test_what_is_missing_is_named(claims_sweep, tmp_path):
  sweep, _ = claims_sweep
  with one_device():
    with pytest.raises(UserError, match="task 'sums' is none of base: signs"):
      sweep.do(material.material, MATERIAL | {'name': 'n', 'task': 'sums'})
    with pytest.raises(UserError, match='do point nobase first'):
      sweep.do(material.material, MATERIAL | {'name': 'n', 'base': 'nobase'})
    with pytest.raises(UserError, match='do point nomaterial first'):
      material.load(sweep.job('n'), 'nomaterial')
    with pytest.raises(UserError, match='there is no checkpoint directory'):
      sweep.do(material.base, BASE | {'name': 'n', 'start': 'nobase'})
  (tmp_path / 'train.npz').write_bytes(b'no')
  with pytest.raises(UserError, match='not a whole file of drawn responses'):
    Drawn.load(tmp_path / 'train.npz')


def test_marks_are_those_of_the_score_head(policy):
  """The mask on whole rows, cut to the response."""
  sweep, setup = policy
  train = material.load(sweep.job('x'), 'material').train
  config = setup.evaluation_sampling
  mask_BT = sprm.step_feature_mask(
    train.tokens_BT,
    step_ids=config.step_ids,
    think_start_id=config.think_start_id,
    think_end_id=config.think_end_id,
  )
  np.testing.assert_array_equal(mask_BT & train.response_BT, train.mark_BT)
