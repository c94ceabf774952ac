"""Packed and shared-prompt phases: their shapes, refusals, and whole runs."""

import jax
import numpy as np
import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.training.loop import plan
from metastone_jax.training.loop import run as run_lib
from metastone_jax.training.loop.row_plan import RowPlan
from tests import quick
from tests.training.loop import parts
from tests.training.loop.test_run import Stop


def _plan(sharder=None, **changes) -> RowPlan:
  def edit(config):
    config.phases.joint.update(changes)

  recipe = parts.recipe(edit)
  return RowPlan.of(recipe.phases[2], recipe.data, sharder or Sharder())


def test_a_plain_phase_has_a_row_for_every_sequence():
  rows = _plan(sequences_per_microbatch=4)
  assert (rows.length, rows.num_rows(16), rows.num_micro_batches) == (52, 16, 4)
  assert rows.update_config == rows.phase.update_config
  # Split over 4 devices: 8 pieces.
  sharder = Sharder(make_mesh({'sequence': 4, 'fsdp': 2}))
  assert _plan(sharder).length == 56


def test_packed_rows_are_as_many_as_the_worst_lengths_need():
  rows = _plan(packed_length=128, sequences_per_microbatch=3)
  # Two of up to 52 places fit in any row: 8 rows, in micro-batches of 3.
  assert (rows.num_rows(16), rows.num_micro_batches) == (9, 3)
  config = rows.update_config
  assert config.layout.packed and config.num_micro_batches == 3


def test_shared_rows_are_problems():
  rows = _plan(shared_prompt=True, sequences_per_microbatch=8)
  assert rows.length == 23 + 4 * 28
  assert (rows.num_rows(16), rows.num_micro_batches) == (4, 2)
  assert rows.rows_per_microbatch == 2
  sharder = Sharder(make_mesh({'sequence': 4, 'fsdp': 2}))
  split = _plan(sharder, shared_prompt=True)
  assert split.length == 136 == 24 + 4 * 28  # of 8 pieces


def test_the_start_up_plan_says_what_a_row_is():
  def edit(config):
    config.phases.head.packed_length = 128
    config.phases.head.sequences_per_microbatch = 3
    config.phases.joint.shared_prompt = True
    config.phases.joint.sequences_per_microbatch = 8

  text = plan.describe(parts.setup(edit))
  for part in (
    # 16 responses and 4 demonstrations, two a row at the worst.
    'responses + 4 demonstrations = 20 sequences in 12 rows',
    'rows of 128 places (packed_length), each with several trajectories of up '
    'to 52; 3 rows a micro-batch, and of 4 micro-batches only those are run',
    'shared: rows of 23 prompt + 4 x 28 response places = 135 instead of 208; '
    '2 rows a micro-batch, 2 micro-batches',
  ):
    assert part in text, text


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(packed_length=-1), 'packed_length=-1 must be >= 0'),
    (
      dict(packed_length=51, sequences_per_microbatch=1),
      'packed_length=51 must hold the longest trajectory, 52 tokens',
    ),
    (dict(packed_length=64), 'packed_length needs sequences_per_microbatch'),
    (
      dict(packed_length=64, sequences_per_microbatch=4, shared_prompt=True),
      'two ways to lay out a row',
    ),
    (
      dict(shared_prompt=True, lm_coefficient=0.1, demonstrations_per_step=4),
      'a demonstration has a prompt of its own',
    ),
    (
      dict(shared_prompt=True, sequences_per_microbatch=2),
      'sequences_per_microbatch=2 must be a multiple of samples_per_prompt=4',
    ),
  ],
)
def test_what_does_not_go_together_is_named(changes, message):
  with pytest.raises(UserError, match=f'phases.joint.*{message}'):
    _plan(**changes)


def test_a_packed_length_that_the_mesh_cannot_split_is_named():
  sharder = Sharder(make_mesh({'sequence': 4, 'fsdp': 2}))
  with pytest.raises(UserError, match='packed_length=60.*of 8 .*such as 64'):
    _plan(sharder, packed_length=60, sequences_per_microbatch=2)


def _run(folder, **layout):
  """Rows of metrics of a short run in float64, and what it ends with."""

  def edit(config):
    config.model.dtype = config.model.param_dtype = 'float64'
    warmup, joint = config.phases.warmup, config.phases.joint
    warmup.demonstrations_per_step = 16
    joint.steps, joint.updates_per_rollout, joint.evaluate_every = 3, 2, 0
    joint.score_loss = 'soft'
    config.phase_order = ('warmup', 'joint')
    if 'packed_length' in layout:
      for phase in (warmup, joint):
        phase.sequences_per_microbatch = 1
        phase.update(layout)
    else:
      joint.update(layout)

  with parts.one_device():
    run = run_lib.Run(
      parts.recipe(edit), epath.Path(folder), parts.Nothing(), Stop()
    )
  written = []
  run.writer.write = lambda step, phase, row: written.append(row)
  try:
    run.fresh()
    for run.phase_index in (0, 1):
      run.phase_step = 0
      run.run_phase()
    return written, jax.device_get(run.state['params'])
  finally:
    run.close()


def test_a_run_is_the_same_with_packed_rows_and_with_shared_prompts(
  tmp_path, monkeypatch
):
  """Demonstrations, several updates a rollout, old and reference log-probs."""
  monkeypatch.setattr(jax, 'jit', quick.jit)
  with jax.enable_x64(True):
    want, want_params = _run(tmp_path / 'plain')
    assert len(want) == 43
    assert any(row.get('reward/mean', 0) for row in want)
    for name in ('loss/policy', 'policy/kl', 'loss/score'):
      assert all(abs(row[name]) > 1e-9 for row in want[-2:]), name
    for name, layout in {
      'packed': dict(packed_length=156),
      'shared': dict(shared_prompt=True, sequences_per_microbatch=4),
    }.items():
      found, params = _run(tmp_path / name, **layout)
      for row, want_row in zip(found, want, strict=True):
        assert row.keys() == want_row.keys()
        for key, value in want_row.items():
          if not key.startswith('time/') and key != 'update/padding':
            np.testing.assert_allclose(
              row[key], value, rtol=1e-8, atol=1e-10, err_msg=f'{name} {key}'
            )
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
        params,
        want_params,
      )
      padding, want_padding = (
        [row['update/padding'] for row in rows] for rows in (found, want)
      )
      if name == 'packed':
        assert all(np.array(padding) < np.array(want_padding))
