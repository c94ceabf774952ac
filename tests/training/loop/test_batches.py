"""Batches laid out on the devices are those laid out on the host."""

import jax
import numpy as np
import pytest

from metastone_jax.parallel import Hosts, Sharder, distributed, make_mesh
from metastone_jax.training.loop import batches
from metastone_jax.training.loop.row_plan import RowPlan
from tests.training import trajectories
from tests.training.loop import parts
from tests.training.trajectories import N, P

MORE = 4  # demonstrations


def _hosts() -> Hosts:
  mesh = make_mesh({'fsdp': 2, 'sequence': 4})
  return Hosts.build(Sharder(mesh), {})


def _plan(hosts, **changes) -> RowPlan:
  def edit(config):
    config.data.max_prompt_length = trajectories.PROMPT
    config.data.max_response_length = trajectories.RESPONSE
    config.phases.joint.overlong_buffer = 0
    config.phases.joint.update(
      prompts_per_step=P, samples_per_prompt=N, updates_per_rollout=P, **changes
    )

  recipe = parts.recipe(edit)
  return RowPlan.of(recipe.phases[2], recipe.data, hosts.sharder)


@pytest.mark.parametrize(
  'changes',
  [
    dict(lm_coefficient=0.1, demonstrations_per_step=MORE),
    dict(
      lm_coefficient=0.1,
      demonstrations_per_step=MORE,
      packed_length=32,
      sequences_per_microbatch=2,
    ),
    dict(shared_prompt=True),
  ],
  ids=['plain', 'packed', 'shared'],
)
def test_several_processes_make_the_batches_of_one(changes, monkeypatch):
  """One process that believes it is one of several: all is on the devices."""
  hosts = _hosts()
  plan = _plan(hosts, **changes)
  rows = trajectories.make_rows('grpo', 'float32')
  prompt_length = rows.pop('prompt_length_B')[: P * N]
  more = None
  if plan.phase.demonstrations_per_step:
    more = {name: x[P * N :] for name, x in rows.items()}
    del more['step_logit_BT']  # a field that only rollouts have
  rows = {name: x[: P * N] for name, x in rows.items()}
  length = batches.lengths(rows)
  result = np.random.default_rng(0).normal(
    size=(plan.num_rows(P * N), plan.length)
  )
  result = result.astype(np.float32)

  def make(several):
    monkeypatch.setattr(distributed, 'several', lambda: several)
    made = batches.RolloutRows(hosts, plan, rows, length, prompt_length)
    found = {'log_prob': made.log_prob_batch()}
    made.add('old_log_prob_BT', hosts.sharder.put_batch({'x': result})['x'])
    for u in range(P):
      found[str(u)], found[f'padding {u}'] = made.update_batch(u, P, more)
    return jax.device_get(found)

  one, many = make(False), make(True)
  assert one.keys() == many.keys()
  jax.tree.map(np.testing.assert_array_equal, many, one)
  for u in range(P):
    batch = one[str(u)]
    shape = plan.num_rows(plan.phase.rows_per_update), plan.length
    assert batch['tokens_BT'].shape == shape
    cut = slice(u * N, (u + 1) * N)
    tokens = length[cut].sum() + (batches.lengths(more).sum() if more else 0)
    if not plan.phase.shared_prompt:
      assert np.count_nonzero(batch['segment_BT']) == tokens
    assert 0 <= one[f'padding {u}'] < 1
    # Every drawn token's old log-prob came along.
    assert np.count_nonzero(batch['old_log_prob_BT']) > 0


def test_demonstrations_alone():
  hosts = _hosts()
  rows = trajectories.make_rows('grpo', 'float32')
  del rows['prompt_length_B']
  changes = dict(packed_length=32, sequences_per_microbatch=2)
  batch, padding = batches.demonstration_batch(
    hosts, _plan(hosts, **changes), rows
  )
  tokens = batches.count_tokens(rows)
  assert np.count_nonzero(batch['segment_BT']) == tokens
  used = np.asarray(batch['segment_BT']).any(1).sum()
  assert padding == pytest.approx(1 - tokens / (-(-used // 2) * 2 * 32))
