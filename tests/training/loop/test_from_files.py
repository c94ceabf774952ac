"""Training from files: one set of rows, four formats, the same trajectories."""

import jax
import numpy as np
import pytest
from etils import epath

from metastone_jax import telemetry
from metastone_jax.tasks import registry
from metastone_jax.training.loop import run as run_lib
from tests.tasks.sources import files
from tests.training.loop import parts

FORMATS = ('jsonl', 'parquet', 'array_record', 'tfds')
STEPS = 3


class Go:
  """A stop request that never arrives."""

  requested = False


def _rows():
  """Problems of `signs` as a file has them."""
  task = registry.get_task('signs', min_terms=1, max_terms=2)
  rows = {}
  for i in range(90):
    problem = task.problem(i, 'train')
    thinking, _, _ = task.demonstration(problem).partition('</think>')
    rows[problem.question] = {
      'prompt': problem.question,
      'target': problem.answer,
      'steps': thinking,
      'key': i,
    }
  return list(rows.values())


def _trained(form, folder):
  """Everything that three steps with rollouts and demonstrations leave."""
  options = files.write(folder / form, _rows(), form)

  def edit(config):
    config.data.tasks = {'mine': 1.0}
    config.data.task_options = {
      'mine': dict(
        options,
        verifier='exact',
        fields=dict(
          question='prompt', answer='target', solution='steps', id='key'
        ),
      )
    }
    config.data.num_demonstrations = 20
    config.phase_order = ('joint',)
    config.phases.joint.update(
      steps=STEPS,
      score_loss='bce',
      lm_coefficient=1.0,
      demonstrations_per_step=8,
      backbone_learning_rate=2e-2,
    )

  with parts.one_device():
    run = run_lib.Run(
      parts.recipe(edit), epath.Path(folder / 'run'), parts.Nothing(), Go()
    )
  found = []
  try:
    run.fresh()
    phase = run.recipe.phases[0]
    run.start_phase(phase)
    update, log_prob = run.programs(phase)
    wanted_rows = run.wanted_rows

    def watched(*args):
      rows = wanted_rows(*args)
      found.append({k: np.asarray(v) for k, v in rows.rows.items()})
      return rows

    run.wanted_rows = watched
    for step in range(STEPS):
      run.phase_step = step
      metrics, device_metrics, tokens = run.one_step(
        phase, update, log_prob, telemetry.Stopwatch()
      )
      kept = {k: v for k, v in metrics.items() if not k.startswith('time/')}
      found.append((kept, jax.device_get(device_metrics), tokens))
    found.append(jax.device_get(run.state['params']))
    task = run.setup.mixture.tasks['mine']
    problems = [task.problem(i, 'train') for i in range(300)]
    heldout = [task.problem(i, 'heldout') for i in range(task.num_heldout)]
  finally:
    run.close()
  return problems, heldout, found


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return {
    form: _trained(form, tmp_path_factory.mktemp(form)) for form in FORMATS
  }


@pytest.mark.parametrize('form', FORMATS[1:])
def test_every_format_trains_the_same(form, trained):
  problems, heldout, found = trained[FORMATS[0]]
  others, other_heldout, other = trained[form]
  assert others == problems and other_heldout == heldout
  jax.tree.map(np.testing.assert_array_equal, other, found)


def test_there_was_something_to_learn_from(trained):
  problems, heldout, found = trained[FORMATS[0]]
  assert len({p.id for p in problems}) > 40 and len(heldout) > 2
  rows, (_, device_metrics, tokens) = found[0], found[1]
  assert rows['tokens_BT'].any() and tokens > 100
  assert device_metrics[0]['loss/lm'] > 0
  assert not np.array_equal(found[0]['tokens_BT'], found[2]['tokens_BT'])
