"""The run: starts, every kind of step, a mesh, stopping."""

import math

import jax
import numpy as np
import pytest
from etils import epath

from metastone_jax import telemetry
from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.training import loop
from metastone_jax.training import state as state_lib
from metastone_jax.training.loop import run as run_lib
from metastone_jax.training.loop import stages as stages_lib
from tests.training.loop import parts


class Stop:
  """A stop request that has or has not arrived."""

  def __init__(self, requested=False):
    self.requested = requested
    self.signal_name = 'SIGTERM'


def make_run(edit, workdir, requested=False):
  with parts.one_device():
    return run_lib.Run(
      parts.recipe(edit),
      epath.Path(workdir),
      parts.Nothing(),
      Stop(requested),
    )


class Given(Exception):  # noqa: N818
  """The folder is somebody else's now."""


def test_a_check_that_raises_ends_the_run_and_saves_nothing(tmp_path):
  looks = []

  def check():
    looks.append(0)
    if len(looks) == 2:
      raise Given

  def edit(config):
    config.checkpoint.every = 1  # the second step would be saved

  with parts.one_device(), pytest.raises(Given):
    loop.train(parts.recipe(edit), tmp_path / 'run', check=check)
  with CheckpointManager(tmp_path / 'run' / 'checkpoints') as checkpoints:
    assert checkpoints.latest_step() == 1
  # Who has the folder next goes on from there.
  with parts.one_device():
    loop.train(parts.recipe(edit), tmp_path / 'run')


def _leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_start_from(tmp_path):
  """Parameters of the named step; moments, counters and data are fresh."""
  setup = parts.setup()
  folder = tmp_path / 'other' / 'checkpoints'
  states = {
    step: state_lib.init_state(
      setup.model_config, setup.recipe.optimiser, step, setup.sharder
    )
    for step in (10, 20)
  }
  with CheckpointManager(folder) as checkpoints:
    for step, state in states.items():
      checkpoints.save(step, {'train': state}, {})
  for wanted, expected in ((-1, 20), (10, 10)):

    def edit(config, wanted=wanted):
      config.start_from = str(folder)
      config.start_from_step = wanted

    run = make_run(edit, tmp_path / f'run{wanted}')
    try:
      run.fresh()
      for found, value in zip(
        _leaves(run.state['params']),
        _leaves(states[expected]['params']),
        strict=True,
      ):
        np.testing.assert_array_equal(found, value)
      assert run.iteration == 0 and int(run.state['step']) == 0
      assert not any(x.any() for x in _leaves(run.state['opt']))
    finally:
      run.close()


# phase -> changes to the joint phase of the small recipe.
VARIANTS = {
  # The first of these updates is on-policy, the second is not.
  'two_updates': dict(
    updates_per_rollout=2, drop_zero_variance=True, score_loss='soft'
  ),
  'dr_grpo': dict(
    objective='dr_grpo',
    objective_options=dict(fixed_length=28),
    lm_coefficient=0.5,
    demonstrations_per_step=4,
    sequences_per_microbatch=5,
    score_loss='bce',
  ),
  'dapo': dict(objective='dapo', objective_options={}, overlong_buffer=16),
  'gspo': dict(
    objective='gspo',
    objective_options=dict(kl_coefficient=1e-2),
    overlong_buffer=0,
    score_coefficient=0.0,
  ),
}


@pytest.fixture(scope='module')
def variants(tmp_path_factory):
  """One step of each variant, one after another."""

  def edit(config):
    joint = config.phases.joint.to_dict() | {'steps': 1}
    for name, changes in VARIANTS.items():
      config.phases[name] = joint | changes
    config.phase_order = tuple(VARIANTS)

  run = make_run(edit, tmp_path_factory.mktemp('variants') / 'run')
  draw = np.random.default_rng(0)

  def write(request):
    """Answers of every kind, so that every term has something to do."""
    problems, _, _ = run.rollouts.problems.batch_at(run.rollouts.position, 4)
    p = request.draw - run.rollouts.problems.global_index(run.rollouts.position)
    kinds = ('right', 'wrong', 'unparsed', 'cut')
    texts = [
      # The first group has one reward: all wrong, of one length.
      parts.written(run.setup, problems[p], kinds[n if p else 1])
      for n in range(4)
    ]
    return parts.rollout(run.setup, [texts], draw)

  run.rollouts.sampler = lambda phase: parts.FakeSampler(run.setup, write)
  run.fresh()
  found = {}
  asked = []
  wanted_rows = run.wanted_rows

  def watched_rows(*args):
    asked.append(wanted_rows(*args))
    return asked[-1]

  run.wanted_rows = watched_rows
  for index, phase in enumerate(run.recipe.phases):
    run.phase_index, run.phase_step = index, 0
    run.start_phase(phase)
    before = jax.device_get(run.state)
    update, log_prob = run.programs(phase)
    metrics, device_metrics, tokens = run.one_step(
      phase, update, log_prob, telemetry.Stopwatch()
    )
    found[phase.name] = dict(
      before=before,
      after=jax.device_get(run.state),
      reference=run.reference is not None,
      metrics=metrics,
      updates=[
        {k: float(v) for k, v in values.items()}
        for values in jax.device_get(device_metrics)
      ],
      tokens=tokens,
      rows=asked[-1].rows,
      problems=run.rollouts.position.index,
      demonstrations=run.demonstration_position.index,
    )
  run.close()
  return found


@pytest.mark.parametrize('name', VARIANTS)
def test_each_variant_makes_a_step(variants, name):
  found = variants[name]
  for values in found['updates']:
    for metric, value in values.items():
      assert math.isfinite(value), metric
    assert values['grad_norm/backbone'] > 0
  changed = [
    (a != b).any()
    for a, b in zip(
      _leaves(found['before']['params']['embedding']),
      _leaves(found['after']['params']['embedding']),
      strict=True,
    )
  ]
  assert all(changed)
  assert found['tokens'] > 0
  assert found['problems'] == 4 * (list(VARIANTS).index(name) + 1)
  # Fields that no term of the phase reads do not travel to the devices.
  trains_head = name != 'gspo'
  assert ('step_mask_BT' in found['rows']) == trains_head
  assert ('score/kept_negative' in found['updates'][0]) == trains_head
  assert ('ref_log_prob_BT' in found['rows']) == found['reference']


def test_old_log_probs_are_those_before_the_first_update(variants):
  found = variants['two_updates']
  assert len(found['updates']) == 2
  assert int(found['after']['step']) == int(found['before']['step']) + 2
  rows = found['rows']
  mask = rows['policy_mask_BT']
  # The reference is the policy as the phase finds it.
  assert (rows['old_log_prob_BT'][mask] < 0).all()
  np.testing.assert_array_equal(
    rows['old_log_prob_BT'], rows['ref_log_prob_BT']
  )
  first, second = found['updates']
  np.testing.assert_allclose(first['policy/kl'], 0, atol=1e-9)
  np.testing.assert_allclose(first['policy/ratio_mean'], 1, rtol=1e-6)
  assert second['policy/kl'] > 1e-9
  assert second['policy/ratio_mean'] != 1
  for name in ('dr_grpo', 'dapo', 'gspo'):
    assert 'old_log_prob_BT' not in variants[name]['rows']


def test_reference_only_with_a_kl_coefficient(variants):
  assert variants['two_updates']['reference'] and variants['gspo']['reference']
  assert not variants['dapo']['reference']


def test_demonstrations_are_consumed_where_asked(variants):
  consumed = [variants[name]['demonstrations'] for name in VARIANTS]
  assert consumed == [0, 4, 4, 4]
  assert variants['dr_grpo']['updates'][0]['loss/lm'] > 0
  assert 'loss/lm' not in variants['dapo']['updates'][0]


def test_dropped_groups_have_no_policy_rows(variants):
  rows = variants['two_updates']['rows']
  kept = rows['policy_mask_BT'].any(axis=1).reshape(4, 4)
  np.testing.assert_array_equal(kept.all(axis=1), [False, True, True, True])
  np.testing.assert_array_equal(kept.any(axis=1), [False, True, True, True])


def _only_joint(mesh):
  def edit(config):
    config.phase_order = ('joint',)
    config.phases.joint.steps = 1
    config.mesh = mesh
    # Untrained draws neither end nor answer; every step counts all the same.
    config.phases.joint.score_loss = 'bce'

  return edit


def test_mesh_makes_the_same_step(tmp_path):
  """fsdp 4 x tensor 2 on eight devices: the whole job, one joint step."""
  with parts.one_device():
    loop.train(parts.recipe(_only_joint(dict(fsdp=1))), tmp_path / 'one')
  report = loop.train(
    parts.recipe(_only_joint(dict(fsdp=4, tensor=2))), tmp_path / 'eight'
  )
  assert report.exists()
  one, eight = (
    telemetry.read_metrics(tmp_path / name) for name in ('one', 'eight')
  )
  assert len(one) == len(eight) == 2  # the step, the evaluation
  for row, other in zip(one, eight, strict=True):
    names = [name for name in row if not name.startswith('time/')]
    assert [n for n in other if not n.startswith('time/')] == names
    for name in names:
      if isinstance(row[name], float):
        np.testing.assert_allclose(
          other[name], row[name], rtol=2e-4, atol=1e-5, err_msg=name
        )
      else:
        assert other[name] == row[name], name
  states = []
  for name in ('one', 'eight'):
    with CheckpointManager(
      tmp_path / name / 'checkpoints', read_only=True
    ) as checkpoints:
      states.append(checkpoints.restore()[0]['train']['params'])
  # One AdamW step moves every weight by about its rate, 1e-3, whatever the
  # size of its gradient: rounding decides only where that is almost zero.
  for a, b in zip(_leaves(states[0]), _leaves(states[1]), strict=True):
    assert np.mean(np.abs(a - b) > 1e-4) < 0.02


def test_too_long_prompts_are_refused_before_anything_is_written(tmp_path):
  def edit(config):
    config.data.max_prompt_length = 6
    config.data.max_response_length = 60

  with pytest.raises(UserError, match='data.max_prompt_length'):
    make_run(edit, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


class FakeEvaluator:
  """Reports progress and then fails the test if it was to be stopped."""

  def task_names(self):
    return ('signs',)

  def count(self, task, wanted):
    return wanted

  def evaluate(self, params, task, *, progress, pause, **_):
    progress(1, 2)
    pause()
    raise LookupError('went on')


def test_only_a_saved_state_is_left_by_a_signal(tmp_path):
  """Inside a phase the evaluation ends first: its steps are not saved yet."""
  recipe = parts.recipe()
  stages = stages_lib.Stages(
    recipe,
    epath.Path(tmp_path),
    FakeEvaluator(),
    None,
    parts.Nothing(),
    lambda: 'SIGTERM',
  )
  with pytest.raises(LookupError, match='went on'):
    stages.small(None, recipe.phases[1], 42)
  with pytest.raises(stages_lib.Interrupted, match='SIGTERM'):
    stages.full(None, recipe.phases[1], 43)


def test_damaged_config_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"name": "sm')
  with pytest.raises(UserError, match='config.json is damaged'):
    loop.train(parts.recipe(), tmp_path)
