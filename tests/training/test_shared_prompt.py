"""One forward pass of a prompt for all its responses: nothing else changes."""

import jax
import numpy as np
import pytest

from kernels.attention import Layout
from metastone_jax.training import packing
from tests.training import trajectories
from tests.training.trajectories import LONGEST, PROMPT, RESPONSE, N, P


def _shared(rows, prompt_places, response_places=RESPONSE):
  placement = packing.share_prompts(
    trajectories.lengths(rows),
    rows['prompt_length_B'],
    N,
    prompt_places,
    response_places,
  )
  moved = packing.move(trajectories.without_prompt_length(rows), placement)
  return (
    moved,
    placement,
    dict(
      layout=Layout(
        prompt_length=prompt_places, response_length=response_places
      ),
      sequences_per_row=N,
      demonstrations=False,
    ),
  )


@pytest.mark.parametrize('objective', ['gspo', 'dr_grpo'])
def test_shared_prompts_give_the_update_of_repeated_prompts(objective):
  """Loss, all gradients and all metrics; micro-batches; dropout on."""
  with jax.enable_x64(True):
    rows = trajectories.make_rows(objective, 'float64', demonstrations=0)
    moved, _, options = _shared(rows, PROMPT - 1)
    assert moved['tokens_BT'].shape == (P, PROMPT - 1 + N * RESPONSE)
    trajectories.check(
      objective, 'float64', moved, num_micro_batches=P, **options
    )


def test_shared_prompts_split_over_devices():
  """Zig-zag order, the prompt padded to what two devices can split."""
  rows = trajectories.make_rows('grpo', 'float32', demonstrations=0)
  moved, _, options = _shared(rows, PROMPT + 7, RESPONSE)
  assert moved['tokens_BT'].shape[1] % 8 == 0
  sharder = trajectories.mesh(sequence=4, tensor=2)
  trajectories.check('grpo', 'float32', moved, sharder, **options)


def test_where_prompts_and_responses_lie():
  tokens = np.array(
    [
      [1, 2, 3, 11, 12, 0],
      [1, 2, 3, 21, 0, 0],
      [4, 31, 0, 0, 0, 0],
      [4] + 5 * [0],
    ]
  )
  rows = {
    'tokens_BT': tokens,
    'segment_BT': (tokens > 0).astype(np.int32),
    'position_BT': np.tile(np.arange(6), (4, 1)),
    'row_B': np.arange(4),
  }
  placed = packing.share_prompts(
    np.array([5, 4, 2, 1]), np.array([3, 3, 1, 1]), 2, 3, 2
  )
  moved = packing.move(rows, placed)
  assert moved['tokens_BT'].tolist() == [
    [1, 2, 0, 3, 11, 3, 0],
    [0, 0, 0, 4, 0, 4, 0],
  ]
  assert moved['position_BT'][0].tolist() == [0, 1, 0, 2, 3, 2, 0]
  assert moved['sequence_BT'][0].tolist() == [0, 0, 0, 1, 1, 2, 0]
  assert moved['segment_BT'][0].tolist() == [1, 1, 0, 1, 1, 1, 0]
  assert moved['row_BT'][1].tolist() == [0, 0, 0, 2, 0, 3, 0]


def test_fewer_places_are_computed():
  rows = trajectories.make_rows('grpo', 'float32', demonstrations=0)
  _, placement, _ = _shared(rows, PROMPT - 1)
  repeated = P * N * LONGEST
  assert placement.used_BT.size < 0.8 * repeated
