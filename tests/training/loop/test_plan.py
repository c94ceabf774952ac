"""The start-up plan says what is true."""

import jax
import numpy as np

from metastone_jax.parallel import Sharder
from metastone_jax.training import state as state_lib
from metastone_jax.training.loop import plan
from tests.training.loop import parts


def test_bytes_are_those_of_the_state():
  setup = parts.setup()
  state = state_lib.abstract_state(
    setup.model_config, setup.recipe.optimiser, Sharder()
  )
  counted = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  counters = 4 * sum(x.ndim == 0 for x in jax.tree.leaves(state))
  assert plan.state_bytes(setup) == counted - counters


def test_flops_by_hand():
  def edit(config):
    config.phases.joint.prompts_per_step = 6
    config.phases.joint.updates_per_rollout = 2
    config.phases.joint.lm_coefficient = 0.1
    config.phases.joint.demonstrations_per_step = 5

  setup = parts.setup(edit)
  D, F, V, T, R = 16, 32, setup.tokenizer.vocab_size, 24 + 28, 28
  # Two query heads and one key/value head of width 8; two layers.
  block = D * 16 + 2 * D * 8 + 16 * D + 3 * D * F
  per_token = 2 * block + D * V
  attention = 2 * 2 * 16 * (T / 2)  # q.k and p.v over half the row on average
  forward = 2 * (per_token + attention)
  trained = (12 + 5) * 2 * T
  drawn = 24 * R
  np.testing.assert_allclose(
    plan.step_flops(setup, parts.phase(setup, 'joint')),
    forward * (3 * trained + drawn),
    rtol=1e-12,
  )


def test_text_names_the_arithmetic():
  text = plan.describe(parts.setup())
  for part in (
    'recipe small, seed 3',
    '(one device)',
    'reads the stream entering block 1 of 2',
    'signs x 1; 64 demonstrations in all',
    '24 prompt + 28 response tokens',
    'phase warmup: 40 steps',
    '4 prompts_per_step x 4 samples_per_prompt = 16 responses',
    'each 16 responses + 4 demonstrations = 20 sequences in 2 micro-batches '
    'of 10 (sequences_per_microbatch)',
    '1 x grpo (KL 0.01, entropy 0.001) + 1 x spr (gradient scale 1)',
    'learning rates 0.001 backbone, 0.001 head',
  ):
    assert part in text
