"""Judged samples: scores as the score head's, files whole, refusals clear."""

import dataclasses

import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError
from metastone_jax.scaling import judged as judged_lib
from metastone_jax.scaling.judged import About, Judged

_P, _N, _S = 5, 4, 6


def _judged(**changes) -> Judged:
  rng = np.random.default_rng(0)
  num_steps_PN = rng.integers(0, _S + 1, (_P, _N))
  num_steps_PN[0, 0], num_steps_PN[1, 1] = 0, _S
  logit_PNS = rng.normal(0, 8, (_P, _N, _S)).astype(np.float32)
  logit_PNS[np.arange(_S) >= num_steps_PN[..., None]] = np.nan
  fields = dict(
    problem_ids=[f'p{p}' for p in range(_P)],
    correct_PN=rng.random((_P, _N)) < 0.5,
    answers_PN=rng.integers(0, 3, (_P, _N)),
    finished_PN=rng.random((_P, _N)) < 0.8,
    tokens_PN=rng.integers(1, 40, (_P, _N)),
    num_steps_PN=num_steps_PN,
    step_logit_PNS=logit_PNS,
    last_logit_PN=rng.normal(0, 3, (_P, _N)),
  )
  return Judged(**{**fields, **changes})


@pytest.mark.parametrize('aggregator', sprm.AGGREGATORS)
def test_scores_are_those_of_the_score_head(aggregator):
  judged = _judged()
  expected = sprm.trace_score(
    np.nan_to_num(judged.step_logit_PNS).astype(np.float64),
    ~np.isnan(judged.step_logit_PNS),
    aggregator=aggregator,
    fallback_logit_B=judged.last_logit_PN.astype(np.float64),
  )
  np.testing.assert_allclose(judged.score_PN(aggregator), expected, rtol=1e-12)
  assert (judged.num_steps_PN == 0).any()  # the fallback was used


def test_the_two_rooms_know_the_same_aggregators():
  assert judged_lib.AGGREGATORS == sprm.AGGREGATORS


def test_a_judge_without_a_head_keeps_order_and_ties():
  value_PN = np.array([[-3.0, 1e-9], [0.0, -3.0]])
  judged = Judged(
    problem_ids=['a', 'b'],
    correct_PN=np.ones((2, 2)),
    answers_PN=np.zeros((2, 2)),
    finished_PN=np.ones((2, 2)),
    tokens_PN=np.ones((2, 2)),
    num_steps_PN=np.zeros((2, 2)),
    value_PN=value_PN,
  )
  expected = [[0.0, 1.0], [0.5, 0.0]]
  np.testing.assert_array_equal(judged.score_PN(), expected)
  np.testing.assert_array_equal(judged.score_PN('min'), expected)


def test_saved_and_read_back(tmp_path):
  judged = _judged()
  judged.save(tmp_path / 'judged.npz')
  back = Judged.load(tmp_path / 'judged.npz')
  for field in dataclasses.fields(Judged):
    np.testing.assert_array_equal(
      getattr(back, field.name), getattr(judged, field.name)
    )
  (tmp_path / 'judged.npz').write_bytes(b'PK half')
  with pytest.raises(UserError, match='not a whole file of judged samples'):
    Judged.load(tmp_path / 'judged.npz')
  with pytest.raises(UserError, match='no such file'):
    Judged.load(tmp_path / 'other.npz')


def test_about_saved_and_read_back(tmp_path):
  about = About(
    arm='prm',
    seed=1,
    task='signs',
    set='tiny',
    seconds=3.0,
    train_seconds=2.0,
    parameters_extra=10,
    parameters_trained=10,
    flops_policy_per_problem=1e9,
    flops_judge_per_problem=1e8,
    kl_policy=None,
    lm_loss_before=0.5,
    lm_loss_after=None,
    options={'loss': 'bce', 'width': 192},
  )
  about.save(tmp_path / 'about.json')
  assert About.load(tmp_path / 'about.json') == about
  (tmp_path / 'about.json').write_text('{"arm": "prm"')
  with pytest.raises(UserError, match='not a whole description'):
    About.load(tmp_path / 'about.json')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'tokens_PN': np.ones((_P, 1))}, 'tokens_PN has shape'),
    ({'num_steps_PN': np.full((_P, _N), _S)}, 'NaN beyond'),
    ({'last_logit_PN': None}, 'step_logit_PNS and last_logit_PN'),
    ({'value_PN': np.ones((_P, _N))}, 'or value_PN'),
    ({'problem_ids': ['p'] * _P}, 'one of its own'),
    ({'last_logit_PN': np.full((_P, _N), np.nan)}, 'last_logit_PN has NaN'),
  ],
)
def test_bad_samples_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    _judged(**changes)


def test_unknown_aggregator_is_refused():
  with pytest.raises(UserError, match="got 'median'"):
    _judged().score_PN('median')
