"""Trajectories of unequal length, and ways to lay them into rows.

Every way must give the loss and gradients of `plain`: one trajectory a row,
one micro-batch, one device.
"""

import dataclasses
import functools

import jax
import numpy as np

from kernels.attention import Layout
from metastone_jax import policy
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.training import packing
from tests.model import naive
from tests.training.batches import (
  EVERYTHING,
  V,
  assert_trees_close,
  gradient,
  model_config,
)

P, N = 3, 4  # problems, responses to each
PROMPT, RESPONSE = 5, 9  # the longest, tokens
DEMONSTRATIONS = 4
LONGEST = PROMPT + RESPONSE

# Objective and score loss, each with every term that it can have.
COMMON = dict(kl_coefficient=0.1, entropy_coefficient=0.05)
OBJECTIVES = {
  'grpo': dict(
    objective=policy.grpo(**COMMON, importance_truncation=1.4),
    score_loss='spr',
  ),
  'dr_grpo': dict(
    objective=policy.dr_grpo(**COMMON, fixed_length=RESPONSE), score_loss='bce'
  ),
  'dapo': dict(objective=policy.dapo(**COMMON), score_loss='soft'),
  # A wide clip, or almost every ratio of these rows is outside it.
  'gspo': dict(
    objective=policy.gspo(**COMMON, clip_low=0.3, clip_high=1.0),
    score_loss='soft',
  ),
}
# Step logits computed by the update itself, not the sampler's.
FRESH = ('gspo',)
TOLERANCE = {
  'float64': dict(rtol=1e-10, atol=1e-10),
  'float32': dict(rtol=1e-5, atol=1e-5),
}


def make_rows(
  objective: str, dtype: str, demonstrations: int = DEMONSTRATIONS
) -> packing.Rows:
  """One trajectory a row, group-major, then demonstrations."""
  rng = np.random.default_rng(0)
  rollouts = P * N
  B, T = rollouts + demonstrations, LONGEST
  prompt_length = np.repeat([PROMPT, 2, 3], N)
  response = rng.integers(1, RESPONSE + 1, rollouts)
  response[:3] = RESPONSE, 1, 0  # the longest, one token, none
  prompt = np.repeat(rng.integers(0, V, (P, T)), N, axis=0)
  place = np.arange(T)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  tokens[:rollouts] = np.where(
    place < prompt_length[:, None], prompt, tokens[:rollouts]
  )
  more = rng.integers(4, T + 1, demonstrations)
  length = np.concatenate([prompt_length + response, more])
  first = np.concatenate([prompt_length, np.full(demonstrations, 2)])
  predicts = (place >= first[:, None] - 1) & (place < length[:, None] - 1)
  drawn = (np.arange(B) < rollouts)[:, None]
  logits = (rng.normal(size=(3, B, T)) * 0.3 - 2.5).astype(dtype)
  rows = {
    'tokens_BT': tokens,
    'target_BT': np.roll(tokens, -1, axis=1),
    'position_BT': np.tile(place.astype(np.int32), (B, 1)),
    'segment_BT': (place < length[:, None]).astype(np.int32),
    'row_B': np.arange(B, dtype=np.uint32) + 7,
    'temperature_B': np.where(drawn[:, 0], 0.7, 1.0).astype(dtype),
    'policy_mask_BT': predicts & drawn & (rng.random((B, T)) < 0.9),
    'advantage_B': rng.normal(size=B).astype(dtype),
    'old_log_prob_BT': logits[0],
    'ref_log_prob_BT': logits[1],
    'sampler_log_prob_BT': logits[2],
    'step_mask_BT': predicts & drawn & (rng.random((B, T)) < 0.5),
    'step_logit_BT': rng.normal(size=(B, T)).astype(dtype),
    'correct_B': np.arange(B) % 3 == 0,
    'score_weight_B': rng.choice([0, 0.5, 1, 1], B).astype(dtype),
    'lm_mask_BT': predicts & ~drawn,
    'prompt_length_B': first,
  }
  if objective in FRESH:
    del rows['step_logit_BT']
  return rows


def lengths(rows: packing.Rows) -> np.ndarray:
  return np.count_nonzero(rows['segment_BT'], axis=1)


def without_prompt_length(rows: packing.Rows) -> packing.Rows:
  return {k: v for k, v in rows.items() if k != 'prompt_length_B'}


def update_config(objective: str, demonstrations: bool = True, **options):
  return dataclasses.replace(
    EVERYTHING,
    **OBJECTIVES[objective],
    lm_coefficient=0.4 if demonstrations else 0.0,
    **options,
  )


@functools.cache
def params(dtype: str, mconfig=None):
  return naive.random_params(mconfig or model_config(dtype))


@functools.cache
def plain(objective: str, dtype: str, demonstrations: bool = True):
  """(gradients, metrics) of one trajectory a row, all at once."""
  rows = make_rows(objective, dtype, DEMONSTRATIONS if demonstrations else 0)
  return gradient(
    params(dtype),
    without_prompt_length(rows),
    update_config(objective, demonstrations),
    model_config(dtype),
  )


def mesh(**sizes: int) -> Sharder:
  return Sharder(make_mesh(sizes))


def check(objective, dtype, rows, sharder=None, **options):
  """Asserts that other rows of the same trajectories give the same update."""
  demonstrations = options.pop('demonstrations', True)
  want = plain(objective, dtype, demonstrations)
  for leaf in jax.tree.leaves(want[0]):
    assert np.abs(leaf).max() > 1e-3  # every parameter takes part
  got = gradient(
    params(dtype),
    (sharder or Sharder()).put_batch(rows),
    update_config(objective, demonstrations, **options),
    model_config(dtype),
    sharder,
  )
  assert_trees_close(got, want, **TOLERANCE[dtype])


def packed(rows: packing.Rows, length: int, piece: int):
  """(rows, placement, options of the update) of packed rows."""
  rows = without_prompt_length(rows)
  placement = packing.pack(lengths(rows), LONGEST, length, piece)
  moved = packing.move(rows, placement)
  return (
    moved,
    placement,
    dict(
      layout=Layout(packed=True),
      sequences_per_row=packing.MAX_SEQUENCES,
      num_micro_batches=len(moved['tokens_BT']) // piece,
    ),
  )
