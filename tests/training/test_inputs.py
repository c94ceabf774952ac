"""Which fields the update needs, and settings that it refuses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from metastone_jax import policy
from metastone_jax.errors import UserError
from metastone_jax.model import abstract_params
from metastone_jax.parallel import Sharder
from metastone_jax.training import step
from tests.training.batches import (
  EVERYTHING,
  SEED,
  STEP,
  make_batch,
  model_config,
)


def _trace(rows, cfg):
  """Traces the update without compiling it: is every input there?"""
  mconfig = model_config('float32')
  return jax.eval_shape(
    functools.partial(
      step.gradient, model_config=mconfig, config=cfg, sharder=Sharder()
    ),
    abstract_params(mconfig),
    rows,
    SEED,
    STEP,
  )


@pytest.mark.parametrize(
  ('missing', 'options'),
  [
    ('ref_log_prob_BT', dict(objective=policy.dapo())),
    ('old_log_prob_BT', dict()),
    ('sampler_log_prob_BT', dict(objective=policy.grpo())),
    ('step_logit_BT', dict(score_loss='spr')),
    ('step_logit_BT', dict(score_loss='bce')),
  ],
)
def test_an_input_of_no_term_may_be_absent(missing, options):
  rows = make_batch(np.float32)
  rows.pop(missing, None)
  _trace(rows, dataclasses.replace(EVERYTHING, **options))


def test_a_needed_input_may_not_be_absent():
  for name, error in (
    ('ref_log_prob_BT', KeyError),
    ('lm_mask_BT', KeyError),
    ('score_weight_B', KeyError),
    ('sampler_log_prob_BT', UserError),  # truncated importance sampling
  ):
    rows = make_batch(np.float32)
    del rows[name]
    with pytest.raises(error):
      _trace(rows, EVERYTHING)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(score_loss='mse'), "loss='mse' is unknown; use one of spr, bce"),
    (
      dict(policy_coefficient=0, score_coefficient=0, lm_coefficient=0),
      'every loss term is switched off',
    ),
    (dict(num_micro_batches=0), 'num_micro_batches=0 must be at least 1'),
  ],
)
def test_bad_update_configs_are_named(options, message):
  with pytest.raises(UserError, match=message):
    step.UpdateConfig(**options)


def test_rows_that_do_not_divide_are_named():
  with pytest.raises(UserError, match='8 sequences do not divide into 3'):
    _trace(
      make_batch(np.float32),
      dataclasses.replace(EVERYTHING, num_micro_batches=3),
    )
