"""A killed run, continued by the same command, is the undisturbed run.

Final parameters, both optimisers' states and the reference, every metric but
`time/*`, every evaluation and the summary are compared bit by bit. Where a
kill hits is random (seeded) within the wanted part, and is checked afterwards:
the last event that the killed process wrote says where it was.
"""

import json
import random
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import CheckpointManager
from tests.launch import jobs

pytestmark = pytest.mark.crash


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('xla')


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = jobs.train(workdir, cache)
  assert done.returncode == 0, done.stderr
  return workdir


def _assert_same_run(found, expected):
  state, extra, step = jobs.final_state(found)
  wanted_state, wanted_extra, wanted_step = jobs.final_state(expected)
  assert (step, extra) == (wanted_step, wanted_extra)
  # What the claim is about is there: both heads, both optimisers.
  assert set(state['train']) == {'params', 'opt', 'step'}
  assert set(state['train']['opt']) == {'backbone', 'head'}
  assert 'reference' in state
  jax.tree.map(np.testing.assert_array_equal, state, wanted_state)
  assert jobs.metrics_without_times(found) == jobs.metrics_without_times(
    expected
  )
  evaluations, wanted = jobs.evaluations(found), jobs.evaluations(expected)
  assert list(evaluations) == list(wanted)
  for name, fields in wanted.items():
    for field, value in fields.items():
      np.testing.assert_array_equal(
        evaluations[name][field], value, err_msg=f'{name} {field}'
      )
  assert (found / 'summary.json').read_bytes() == (
    expected / 'summary.json'
  ).read_bytes()


def test_undisturbed_run_is_worth_comparing(undisturbed):
  """Every loss term acts, and the reward and the scores vary."""
  rows = jobs.metrics_without_times(undisturbed)
  assert [row['step'] for row in rows if 'loss/total' in row] == list(
    range(1, 49)
  )
  joint = [r for r in rows if r['phase'] == 'joint' and 'loss/total' in r]
  for name in ('loss/policy', 'loss/score', 'policy/kl', 'grad_norm/head'):
    assert any(row[name] for row in joint), name
  assert any(row['reward/zero_variance_groups'] < 1 for row in joint)
  summary = json.loads((undisturbed / 'summary.json').read_text())
  assert list(summary['signs']) == [
    'after warmup',
    'after head',
    'after joint',
  ]
  assert (undisturbed / 'report' / 'report.html').exists()
  with CheckpointManager(
    undisturbed / 'checkpoints', read_only=True
  ) as checkpoints:
    # The ends of the phases (40, 43, 48), and the two newest of the others.
    assert checkpoints.good_steps() == [40, 42, 43, 45, 48]


def _in_warmup(events):
  updates = events.count('status update')
  return jobs.phase_of(events) == 'warmup' and updates >= _in_warmup.updates


def _in_joint_rollout(events):
  # Not the first one: then everything since the end of the head phase is lost,
  # rollouts and updates too.
  joint = 'phase joint' in events and events[events.index('phase joint') :]
  return (
    bool(joint)
    and joint.count('status rollout') >= 2
    and events[-1] == 'status rollout'
  )


def _saving_in_joint(events):
  return events[-1].startswith('saving ') and jobs.phase_of(events) == 'joint'


def _hit_warmup(events):
  return jobs.phase_of(events) == 'warmup'


def _hit_rollout(events):
  status = [e for e in events if e.startswith('status ')]
  return status[-1] == 'status rollout'


def _hit_saving(events):
  saves = [e for e in events if e.startswith(('saving ', 'saved '))]
  return saves[-1].startswith('saving ')


def test_killed_three_times(undisturbed, cache, tmp_path):
  draw = random.Random(2)
  _in_warmup.updates = draw.randrange(2, 30)
  workdir = tmp_path / 'run'
  for moment, hit, longest in (
    (_in_warmup, _hit_warmup, 0.02),
    (_in_joint_rollout, _hit_rollout, 0.004),
    (_saving_in_joint, _hit_saving, 0.02),
  ):
    for _ in range(4):  # A late signal may hit what follows: again, sooner.
      code, events, stderr = jobs.interrupted_train(
        workdir, cache, moment, draw.uniform(0, longest), signal.SIGKILL
      )
      assert code == -signal.SIGKILL, (code, events[-5:], stderr)
      if hit(events):
        break
      longest /= 4
    else:
      pytest.fail(f'no kill hit {hit.__name__}: {events[-5:]}')
  assert not (workdir / 'summary.json').exists()
  done = jobs.train(workdir, cache)
  assert done.returncode == 0, done.stderr
  resumed = re.search(r'resumed from checkpoint step (\d+)', done.stderr)
  assert 43 <= int(resumed[1]) < 48
  _assert_same_run(workdir, undisturbed)


def test_sigterm_saves_and_the_same_command_goes_on(
  undisturbed, cache, tmp_path
):
  workdir = tmp_path / 'run'
  code, events, stderr = jobs.interrupted_train(
    workdir,
    cache,
    lambda events: (
      jobs.phase_of(events) == 'head' and events[-1] == 'status update'
    ),
    0.0,
    signal.SIGTERM,
  )
  assert code == 130, stderr
  assert stderr.rstrip().endswith(
    'interrupted by SIGTERM: everything is saved; the same command goes on'
  )
  # No more than the step under way was done, and it is saved: a checkpoint
  # that the recipe would not have made.
  with CheckpointManager(
    workdir / 'checkpoints', read_only=True
  ) as checkpoints:
    assert checkpoints.latest_step() == 41
  done = jobs.train(workdir, cache)
  assert done.returncode == 0, done.stderr
  assert 'resumed from checkpoint step 41' in done.stderr
  _assert_same_run(workdir, undisturbed)


def test_truncated_checkpoint(undisturbed, cache, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  step_dir = workdir / 'checkpoints' / '48'
  victim = max(
    (path for path in step_dir.rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  size = victim.stat().st_size
  with open(victim, 'r+b') as file:
    file.truncate(size // 2)

  refused = jobs.train(workdir, cache)
  assert refused.returncode == 2, refused.stderr
  lines = [x for x in refused.stderr.splitlines() if x.startswith('error:')]
  assert len(lines) == 1, refused.stderr
  assert f'checkpoint step 48 ({step_dir}) is damaged' in lines[0]
  assert (
    f'{victim.relative_to(step_dir)} is truncated ({size // 2} of {size}'
    in lines[0]
  )
  assert 'the last good one is step 45' in lines[0]
  assert '--resume_from_last_good' in lines[0]

  done = jobs.train(workdir, cache, '--resume_from_last_good')
  assert done.returncode == 0, done.stderr
  assert 'resumed from checkpoint step 45' in done.stderr
  _assert_same_run(workdir, undisturbed)
