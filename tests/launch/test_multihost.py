"""Several processes are one run: same draws, same numbers, and no silence.

Each process has fake CPU devices and they talk over gloo on 127.0.0.1. The
problems, draws and (in float64) tokens of a job do not depend on its number of
processes; the metrics agree to 1e-9, before and after a restart on another
number. A process that dies ends the others within their time limit, with a
line that names it, and the same command goes on to the same numbers.
"""

import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import CheckpointManager
from tests.launch import jobs, several

pytestmark = pytest.mark.crash

JOINT64 = 'float64,joint'
TOLERANCE = 1e-9


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('xla')


@pytest.fixture(scope='module')
def start64(cache, tmp_path_factory):
  """The flag that starts a run from a policy that answers now and then."""
  workdir = tmp_path_factory.mktemp('warm') / 'run'
  several.run(workdir, cache, 'float64,warmup', 1, 1)
  return f'--config.start_from={workdir / "checkpoints"}'


def _run(name, variant, processes, devices, start, cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp(name) / 'run'
  job = several.run(
    workdir,
    cache,
    variant,
    processes,
    devices,
    start,
    record=workdir.parent / 'rollouts',
  )
  return workdir, job


@pytest.fixture(scope='module')
def one(start64, cache, tmp_path_factory):
  return _run('one', JOINT64, 1, 8, start64, cache, tmp_path_factory)


@pytest.fixture(scope='module')
def two(start64, cache, tmp_path_factory):
  return _run('two', JOINT64, 2, 4, start64, cache, tmp_path_factory)


def _rollouts(workdir) -> dict[str, np.ndarray]:
  """What a run has drawn, all processes together, by global index."""
  found = []
  for path in (workdir.parent / 'rollouts').glob('*.npz'):
    with np.load(path) as arrays:
      found.append(dict(arrays))
  found.sort(key=lambda arrays: arrays['draw_P'][0])
  return {name: np.concatenate([x[name] for x in found]) for name in found[0]}


def _assert_close(found, expected, what):
  if isinstance(expected, float) or isinstance(found, float):
    np.testing.assert_allclose(
      np.asarray(found, float),
      np.asarray(expected, float),
      rtol=TOLERANCE,
      atol=TOLERANCE,
      err_msg=what,
    )
  else:
    assert found == expected, what


def _assert_same_numbers(found, expected):
  """Metrics, evaluations, final state and what goes with it, to 1e-9."""
  rows = jobs.metrics_without_times(found)
  wanted = jobs.metrics_without_times(expected)
  assert [r['step'] for r in rows] == [r['step'] for r in wanted]
  for row, other in zip(rows, wanted, strict=True):
    assert row.keys() == other.keys()
    for name, value in other.items():
      _assert_close(row[name], value, f'{name} at step {other["step"]}')
  evaluations = jobs.evaluations(found)
  for name, fields in jobs.evaluations(expected).items():
    for field, value in fields.items():
      got = evaluations[name][field]
      if field == 'scores':
        np.testing.assert_allclose(got, value, rtol=0, atol=TOLERANCE)
      else:
        np.testing.assert_array_equal(got, value, err_msg=f'{name} {field}')
  state, extra, step = jobs.final_state(found)
  wanted_state, wanted_extra, wanted_step = jobs.final_state(expected)
  assert (step, extra) == (wanted_step, wanted_extra)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE),
    state,
    wanted_state,
  )


def test_two_processes_are_one_run(one, two):
  (one, _), (two, job) = one, two
  expected, found = _rollouts(one), _rollouts(two)
  assert len(found['draw_P']) == 5 * 8
  for name in ('draw_P', 'prompt_PS', 'token_PNR', 'length_PN'):
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
  _assert_same_numbers(two, one)
  # It was worth comparing: rewards differ within groups, the policy moves.
  rows = jobs.metrics_without_times(one)
  assert any(0 < row.get('reward/mean', 0) < 1 for row in rows)
  assert any(row.get('loss/policy') for row in rows)
  # Process 0 alone prints; gloo's own line is not ours.
  assert 'joint: done at step 5/5' in job.processes[0].stderr()
  assert not job.processes[1].stderr().strip()
  assert 'report:' not in job.processes[1].out.read_text()


@pytest.mark.parametrize(('processes', 'devices'), [(1, 8), (4, 2)])
def test_resume_on_another_number(
  one, two, processes, devices, cache, start64, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(two[0], workdir)
  # As a preemption before the last step would have left it.
  shutil.rmtree(workdir / 'checkpoints' / '5')
  (workdir / 'checkpoints' / 'integrity' / '5.json').unlink()
  (workdir / 'evaluation' / 'joint-signs.npz').unlink()
  job = several.run(workdir, cache, JOINT64, processes, devices, start64)
  assert 'resumed from checkpoint step 4' in job.processes[0].stderr()
  _assert_same_numbers(workdir, one[0])


def test_float32_draws(cache, tmp_path_factory):
  """float32 promises equal tokens but where two perturbed logits are close.

  On this recipe none are, so all are equal; parameters drift by rounding.
  """
  end = '--config.start_from=', cache, tmp_path_factory  # fresh parameters
  expected = _rollouts(_run('one32', 'float32,joint', 1, 8, *end)[0])
  found = _rollouts(_run('two32', 'float32,joint', 2, 4, *end)[0])
  np.testing.assert_array_equal(found['draw_P'], expected['draw_P'])
  np.testing.assert_array_equal(found['prompt_PS'], expected['prompt_PS'])
  differing = (found['token_PNR'] != expected['token_PNR']).any(axis=-1)
  assert differing.sum() == 0, f'{differing.sum()} of {differing.size} differ'
  np.testing.assert_allclose(
    found['score_PN'], expected['score_PN'], atol=1e-4, rtol=0
  )


def test_signal_and_deaths(one, start64, cache, tmp_path):
  """SIGTERM to one process stops all; a dead one ends the other, named."""
  workdir = tmp_path / 'run'

  # The signal reaches process 1 alone, in step 1; both save and stop there.
  job = several.Job(workdir, cache, JOINT64, 2, 4, start64, watch=1)
  job.signal_at(lambda events: events[-1] == 'status update', signal.SIGTERM)
  assert job.wait(90) == [130, 130], job.processes[0].stderr()[-2000:]
  assert 'interrupted by SIGTERM' in job.processes[0].stderr()
  with CheckpointManager(
    workdir / 'checkpoints', read_only=True
  ) as checkpoints:
    (stopped,) = checkpoints.good_steps()
  # On a busy machine the next step has begun before both know.
  assert stopped in (1, 2)

  for victim, event, number, seconds in (
    # In the update of the next step, in the save after it, in a rollout.
    (1, 'status update', 1, 0.02),
    (0, f'writing {stopped + 1}', 1, 0.001),
    (1, 'status rollout', 2, 0.005),
  ):
    job = several.Job(
      workdir,
      cache,
      JOINT64,
      2,
      4,
      start64,
      watch=victim,
      die=(event, number, seconds),
    )
    events = job.events()
    died = time.monotonic()
    codes = job.wait(90)
    survivor = job.processes[1 - victim]
    assert events[-1] == event, events
    assert codes[victim] == -signal.SIGALRM
    assert codes[1 - victim] == 75, survivor.stderr()[-2000:]
    last = survivor.stderr().rstrip().splitlines()[-1]
    assert re.match(
      rf'error: host \S+ \(process {victim}(, the coordinator)?\) '
      r'(has not been heard of for 1\d s|is gone); ',
      last,
    ), last
    assert 'it resumes from the last checkpoint' in last
    late = survivor.ended - died
    assert late < several.PEER_TIMEOUT + 10, late

  job = several.run(workdir, cache, JOINT64, 2, 4, start64)
  assert 'resumed from checkpoint step' in job.processes[0].stderr()
  _assert_same_numbers(workdir, one[0])
