"""The training run: phases of steps, checkpoints, evaluations, the report.

Everything that a step depends on is in the checkpoint or is a pure function of
(recipe, step): the same command after a crash gives the same bits, except
metrics named time/*.
"""

import dataclasses
import functools
import json
import math
import platform
import shlex
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from metastone_jax import evaluation
from metastone_jax import telemetry as telemetry_lib
from metastone_jax.checkpoints import CheckpointManager, write_json_atomic
from metastone_jax.data import DataPosition
from metastone_jax.errors import UserError
from metastone_jax.training import optimiser
from metastone_jax.training import state as state_lib
from metastone_jax.training import step as step_lib
from metastone_jax.training.loop import collect as collect_lib
from metastone_jax.training.loop import plan
from metastone_jax.training.loop.heldout import Evaluator
from metastone_jax.training.loop.recipe import PhaseConfig, Recipe
from metastone_jax.training.loop.setup import Setup

_SHOWN = {
  'loss/lm': 'lm',
  'loss/score': 'score loss',
  'reward/mean': 'reward',
  'score/auc_within': 'AUC within',
}


class Interrupted(Exception):  # noqa: N818 (a state, not an error)
  """The run was asked to stop; its state is saved."""


def learning_rates(phase: PhaseConfig, step: int) -> dict[str, float]:
  """Both rates at a step (0-based) of a phase: rise, then the schedule."""
  factor = min(1.0, (step + 1) / max(1, phase.warmup_steps))
  if phase.schedule == 'cosine':
    progress = step / max(1, phase.steps)
    factor *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
  return {
    'backbone': phase.backbone_learning_rate * factor,
    'head': phase.head_learning_rate * factor,
  }


def versions() -> dict[str, str]:
  """Versions that a result depends on."""
  import flax
  import optax

  from metastone_jax import __version__

  return {
    'metastone_jax': __version__,
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'optax': optax.__version__,
  }


class Run:
  """One training run in one folder; `train` drives it."""

  def __init__(self, recipe: Recipe, workdir: epath.Path, progress, stop):
    self.recipe = recipe
    self.workdir = workdir
    self.progress = progress
    self.stop = stop
    self.setup = Setup.build(recipe)
    self.sampler = self.setup.sampler(self.setup.train_sampling)
    self.demonstrations = self.setup.demonstrations()
    self.problems = self.setup.problems('train')
    widest = max(recipe.phases, key=lambda phase: phase.rollouts_per_step)
    self.evaluator = Evaluator(
      self.setup,
      problems_per_call=widest.prompts_per_step or 64,
      samples_per_call=widest.samples_per_prompt,
      # The same draws as in training share their compiled program.
      sampler=self.sampler
      if self.setup.evaluation_sampling == self.setup.train_sampling
      else None,
    )
    ends = np.cumsum([phase.steps for phase in recipe.phases])
    self.manager = CheckpointManager(
      workdir / 'checkpoints',
      max_to_keep=recipe.checkpoint.max_to_keep,
      keep_steps=[int(end) for end in ends],
      config_path=workdir / 'config.json',
    )
    self.writer = telemetry_lib.MetricWriter(
      workdir / 'metrics',
      sinks=recipe.sinks,
      config=config_dict(recipe),
      primary=jax.process_index() == 0,
    )
    self.summaries: dict[str, Any] = {}
    self.samples: dict[str, Any] = {}
    self.seconds: dict[str, float] = {}

  # State.

  def fresh(self) -> None:
    """Step 0 of phase 0."""
    self.writer.restore(None)
    stale = self.workdir / 'evaluation'
    if stale.exists():
      stale.rmtree()
    self.iteration = self.phase_index = self.phase_step = 0
    self.demonstration_position = self.demonstrations.start()
    self.problem_position = self.problems.start()
    self.reference = None
    self.state = state_lib.init_state(
      self.setup.model_config,
      self.recipe.optimiser,
      self.recipe.seed,
      self.setup.sharder,
    )
    if self.recipe.start_from:
      self.state['params'] = load_params(
        self.setup,
        self.recipe.start_from,
        None if self.recipe.start_from_step < 0 else self.recipe.start_from_step,
      )

  def resume(self, step: int | None, fallback: bool) -> None:
    """Continues from a checkpoint of this folder."""
    extra, step = self.manager.read_extra(step, fallback=fallback)
    abstract = {
      'train': state_lib.abstract_state(
        self.setup.model_config, self.recipe.optimiser, self.setup.sharder
      )
    }
    if extra['has_reference']:
      abstract['reference'] = abstract['train']['params']
    tree, extra, _ = self.manager.restore(step, abstract)
    self.state, self.reference = tree['train'], tree.get('reference')
    self.iteration = step
    self.phase_index = extra['phase_index']
    self.phase_step = extra['phase_step']
    self.demonstration_position = DataPosition.from_json(
      extra['demonstration_position']
    )
    self.problem_position = DataPosition.from_json(extra['problem_position'])
    self.seconds = dict(extra['seconds'])
    self.writer.restore(extra['metrics'])
    logging.info('resumed from checkpoint step %d', step)
    self.progress.note(f'resumed from checkpoint step {step}')

  def save(self, *, wait: bool) -> None:
    """Everything a restart needs, under the number of steps done."""
    tree = {'train': self.state}
    if self.reference is not None:
      tree['reference'] = self.reference
    extra = {
      'phase_index': self.phase_index,
      'phase_step': self.phase_step,
      'phase': self.recipe.phases[self.phase_index].name,
      'demonstration_position': self.demonstration_position.to_json(),
      'problem_position': self.problem_position.to_json(),
      'has_reference': self.reference is not None,
      'metrics': self.writer.state(),
      'config': config_dict(self.recipe),
      'versions': versions(),
      'seconds': self.seconds,
    }
    self.manager.save(self.iteration, tree, extra, wait=wait)

  # Phases.

  def start_phase(self, phase: PhaseConfig) -> None:
    """New moments; the reference is the policy as the phase finds it."""
    self.state['opt'] = jax.jit(
      functools.partial(optimiser.init, self.recipe.optimiser)
    )(self.state['params'])
    if self.setup.sharder.mesh is not None:
      self.state = jax.device_put(self.state, self._shardings())
    self.reference = None
    if phase.policy_coefficient and phase.objective_config.kl_coefficient:
      self.reference = jax.tree.map(jnp.copy, self.state['params'])

  def _shardings(self):
    return state_lib.state_shardings(
      self.setup.model_config,
      jax.eval_shape(lambda: self.state),
      self.setup.sharder,
    )

  def programs(self, phase: PhaseConfig):
    """The update and log-prob programs of a phase."""
    common = dict(
      model_config=self.setup.model_config, sharder=self.setup.sharder
    )
    shardings = None
    if self.setup.sharder.mesh is not None:
      shardings = (self._shardings(), None)
    update = jax.jit(
      functools.partial(
        step_lib.update,
        opt_config=self.recipe.optimiser,
        config=phase.update_config,
        **common,
      ),
      donate_argnums=0,
      out_shardings=shardings,
    )
    log_prob = jax.jit(
      functools.partial(
        step_lib.log_prob_pass,
        num_micro_batches=phase.update_config.num_micro_batches
        if not phase.rollouts_per_step
        % phase.update_config.num_micro_batches
        else 1,
        with_step_logit=False,
        **common,
      )
    )
    return update, log_prob

  def run_phase(self) -> None:
    """The rest of the current phase."""
    phase = self.recipe.phases[self.phase_index]
    if self.phase_step == 0:
      self.start_phase(phase)
    self.progress.phase(phase.name, phase.steps, initial=self.phase_step)
    update, log_prob = self.programs(phase)
    started = time.monotonic()
    self._pending = None
    while self.phase_step < phase.steps:
      watch = telemetry_lib.Stopwatch()
      with watch('step'):
        metrics, device_metrics, tokens = self.one_step(
          phase, update, log_prob, watch
        )
      # Metrics of this step are read once the next one is dispatched.
      self._write_pending()
      self.phase_step += 1
      self.iteration += 1
      self._pending = (phase, metrics, device_metrics, watch.collect(), tokens)
      if (
        phase.evaluate_every
        and self.phase_step % phase.evaluate_every == 0
        and self.phase_step < phase.steps
      ):
        self._write_pending()
        self.small_evaluation(phase)
      due = self.iteration % self.recipe.checkpoint.every == 0
      if due or self.stop.requested or self.phase_step == phase.steps:
        self._write_pending()
        name = f'phase_{phase.name}'
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - started
        started = now
        last = self.phase_step == phase.steps
        self.save(wait=last or self.stop.requested)
      if self.stop.requested:
        raise Interrupted(self.stop.signal_name)

  def one_step(self, phase, update, log_prob, watch):
    """One rollout and its updates, or one supervised update."""
    metrics: dict[str, float] = {}
    tokens = 0
    collected = None
    if phase.prompts_per_step:
      self.progress.status('rollout')
      first = self.problems.global_index(self.problem_position)
      collected = collect_lib.collect(
        self.setup,
        self.sampler,
        self.state['params'],
        phase,
        self.problems.batch_at(self.problem_position, phase.prompts_per_step),
        first,
        watch,
      )
      self.problem_position = self.problems.advance(
        self.problem_position, phase.prompts_per_step
      )
      metrics |= collected.metrics
      tokens += collected.tokens
      rows = self.wanted_rows(phase, collected.rows, log_prob, watch)
    rates = learning_rates(phase, self.phase_step)
    device_rates = jax.device_put(
      {name: np.float32(rate) for name, rate in rates.items()}
    )
    seed = jax.device_put(np.uint32(self.recipe.seed))
    self.progress.status('update')
    device_metrics = []
    with watch('update'):
      for u in range(phase.updates_per_rollout):
        parts = []
        if collected is not None:
          size = phase.rollouts_per_step // phase.updates_per_rollout
          parts.append(
            {name: x[u * size : (u + 1) * size] for name, x in rows.items()}
          )
        if phase.demonstrations_per_step:
          batch = self.demonstrations.batch_at(
            self.demonstration_position, phase.demonstrations_per_step
          )
          self.demonstration_position = self.demonstrations.advance(
            self.demonstration_position, phase.demonstrations_per_step
          )
          parts.append(collect_lib.demonstration_rows(batch, 0))
        joined = collect_lib.join_rows(parts)
        tokens += int(joined['segment_BT'].sum())
        self.state, values = update(
          self.state,
          self.setup.sharder.put_batch(joined),
          device_rates,
          seed,
        )
        device_metrics.append(values)
      if collected is not None:
        # A rollout waits for these parameters anyway; waiting here keeps
        # time/rollout and time/update apart.
        jax.block_until_ready(self.state['params'])
    self.progress.status('')
    metrics |= {f'learning_rate/{name}': rate for name, rate in rates.items()}
    return metrics, device_metrics, tokens

  def wanted_rows(self, phase, rows, log_prob, watch):
    """Adds old and reference log-probs; drops fields no term reads."""
    rows = dict(rows)
    several = phase.updates_per_rollout > 1
    if several or phase.score_loss == 'bce' or not phase.score_coefficient:
      # Off-policy after the first mini-batch: the update computes them fresh.
      del rows['step_logit_BT']
    names = []
    if phase.policy_coefficient:
      if several:
        names.append(('old_log_prob_BT', self.state['params']))
      if self.reference is not None:
        names.append(('ref_log_prob_BT', self.reference))
    if names:
      with watch('log_prob'):
        fields = (
          'tokens_BT',
          'target_BT',
          'position_BT',
          'segment_BT',
          'temperature_B',
        )
        batch = self.setup.sharder.put_batch({n: rows[n] for n in fields})
        for name, params in names:
          rows[name] = jax.device_get(log_prob(params, batch)['log_prob_BT'])
    if not phase.policy_coefficient:
      for name in ('policy_mask_BT', 'advantage_B', 'sampler_log_prob_BT'):
        del rows[name]
    if not phase.score_coefficient:
      for name in ('step_mask_BT', 'correct_B', 'score_weight_B'):
        del rows[name]
    return rows

  def _write_pending(self) -> None:
    if self._pending is None:
      return
    phase, metrics, device_metrics, seconds, tokens = self._pending
    self._pending = None
    found = jax.device_get(device_metrics)
    merged = {
      name: float(np.mean([values[name] for values in found]))
      for name in found[0]
    }
    bad = [k for k, v in merged.items() if not math.isfinite(v)]
    if bad:
      raise UserError(
        f'{bad[0]} is not finite at step {self.iteration} (phase '
        f'{phase.name}); the last checkpoint is before it: lower '
        f'phases.{phase.name}.backbone_learning_rate or head_learning_rate'
      )
    seconds['time/tokens_per_second'] = tokens / max(seconds['time/step'], 1e-9)
    row = {**metrics, **merged, **seconds}
    self.writer.write(self.iteration, phase.name, row)
    self.progress.update(
      self.phase_step,
      tokens=tokens,
      metrics={
        short: row[name] for name, short in _SHOWN.items() if name in row
      },
    )

  # Evaluation.

  def _evaluate(self, task: str, problems: int, samples: int):
    return self.evaluator.evaluate(
      self.state['params'],
      task,
      num_problems=problems,
      num_samples=samples,
      progress=lambda done, total: self.progress.status(
        f'held-out {task} {done}/{total}'
      ),
    )

  def small_evaluation(self, phase: PhaseConfig) -> None:
    """A quick look at the main task, into the metrics."""
    options = self.recipe.evaluation
    task = self.evaluator.task_names()[0]
    samples = self._evaluate(
      task, options.small_problems, options.small_samples
    )
    samples.save(self.workdir / 'evaluation' / f'step-{self.iteration}.npz')
    summary = evaluation.summarise(samples, options.ks, resamples=200)
    self.writer.write(
      self.iteration, phase.name, evaluation.summary_metrics(summary)
    )
    self.progress.status('')

  def stage_evaluation(self) -> None:
    """The full held-out evaluation at the end of a phase, every task."""
    phase = self.recipe.phases[self.phase_index]
    options = self.recipe.evaluation
    last = self.phase_index == len(self.recipe.phases) - 1
    count = options.final_samples if last else options.stage_samples
    started = time.monotonic()
    tasks = self.evaluator.task_names()
    self.progress.phase(f'evaluate {phase.name}', len(tasks))
    for done, task in enumerate(tasks):
      path = self.workdir / 'evaluation' / f'{phase.name}-{task}.npz'
      if path.exists():  # a restart: the draws are the same
        samples = evaluation.EvaluationSamples.load(path)
      else:
        samples = self._evaluate(task, options.problems, count)
        samples.save(path)
      stage = f'after {phase.name}'
      summary = evaluation.summarise(samples, options.ks)
      self.summaries.setdefault(task, {})[stage] = summary
      self.samples.setdefault(task, {})[stage] = samples
      prefix = 'eval' if task == tasks[0] else f'eval_{task}'
      self.writer.write(
        self.iteration,
        phase.name,
        evaluation.summary_metrics(summary, prefix),
      )
      self.progress.note('\n' + evaluation.terminal_summary(summary))
      self.progress.update(done + 1)
      if self.stop.requested:
        raise Interrupted(self.stop.signal_name)
    name = f'evaluate_{phase.name}'
    self.seconds[name] = time.monotonic() - started

  def report(self) -> epath.Path:
    """Writes summary.json and one report a task; returns the main one."""
    write_json_atomic(self.workdir / 'summary.json', self.summaries)
    self.writer.flush()
    rows = telemetry_lib.read_metrics(self.workdir / 'metrics')
    paths = []
    for task, summaries in self.summaries.items():
      first = not paths
      paths.append(
        evaluation.write_report(
          self.workdir / 'report' / ('' if first else task),
          title=f'{self.recipe.name}, seed {self.recipe.seed}: {task}',
          summaries=summaries,
          samples=self.samples[task],
          metrics=rows if first else (),
          config_text=json.dumps(config_dict(self.recipe), indent=2),
          command=shlex.join(['python', '-m', 'launch.train', *sys.argv[1:]]),
          seconds=self.seconds,
          versions=versions(),
        )
      )
    return paths[0]

  def run(self) -> epath.Path:
    """From the current state to the report."""
    while True:
      self.run_phase()
      self.stage_evaluation()
      if self.phase_index == len(self.recipe.phases) - 1:
        break
      self.phase_index += 1
      self.phase_step = 0
    return self.report()

  def past_summaries(self) -> None:
    """Reads the evaluations of phases that were done before a restart."""
    for phase in self.recipe.phases[: self.phase_index]:
      for task in self.evaluator.task_names():
        path = self.workdir / 'evaluation' / f'{phase.name}-{task}.npz'
        if not path.exists():
          raise UserError(
            f'{path} is missing: the evaluation after phase {phase.name} was '
            'removed; restore it or start again in an empty workdir'
          )
        samples = evaluation.EvaluationSamples.load(path)
        stage = f'after {phase.name}'
        self.samples.setdefault(task, {})[stage] = samples
        self.summaries.setdefault(task, {})[stage] = evaluation.summarise(
          samples, self.recipe.evaluation.ks
        )

  def close(self) -> None:
    """Waits for running saves, flushes metrics."""
    self.manager.close()
    self.writer.close()


def config_dict(recipe: Recipe) -> dict[str, Any]:
  """The recipe as JSON-able data."""
  return json.loads(json.dumps(dataclasses.asdict(recipe)))


def recipe_from_dict(tree: dict[str, Any]) -> Recipe:
  """The inverse of `config_dict`."""
  from metastone_jax.training.loop.recipe import parse_recipe

  tree = dict(tree)
  phases = tree.pop('phases')
  return parse_recipe(
    {
      **tree,
      'phase_order': [phase['name'] for phase in phases],
      'phases': {
        phase['name']: {k: v for k, v in phase.items() if k != 'name'}
        for phase in phases
      },
    }
  )


def load_params(setup: Setup, folder: str, step: int | None):
  """Parameters of a checkpoint folder, on this run's devices.

  Raises:
    UserError: no such checkpoint, damaged, or of another shape.
  """
  abstract = state_lib.abstract_state(
    setup.model_config, optimiser.OptimiserConfig(), setup.sharder
  )
  with CheckpointManager(folder, read_only=True) as manager:
    tree, _, _ = manager.restore(
      step, {'train': {'params': abstract['params']}}, partial=True
    )
  return tree['train']['params']


def _check_same_recipe(recipe: Recipe, path: epath.Path) -> None:
  """Refuses to continue a folder with another recipe."""
  old, new = json.loads(path.read_text()), config_dict(recipe)
  if old == new:
    return

  def differing(a, b, where):
    if isinstance(a, dict) and isinstance(b, dict):
      for name in sorted(set(a) | set(b)):
        yield from differing(a.get(name), b.get(name), f'{where}.{name}')
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
      for i, (x, y) in enumerate(zip(a, b, strict=True)):
        yield from differing(x, y, f'{where}[{i}]')
    elif a != b:
      yield f'{where.lstrip(".")}: {a!r} there, {b!r} here'

  raise UserError(
    f'{path} belongs to another recipe ({next(differing(old, new, ""))}); '
    'give the same config to resume, or another --workdir'
  )


def train(
  recipe: Recipe,
  workdir: epath.PathLike,
  *,
  step: int | None = None,
  resume_from_last_good: bool = False,
) -> epath.Path:
  """Trains a recipe in a folder; resumes what is there.

  Args:
    recipe: the run.
    workdir: gets config.json, checkpoints/, metrics/, evaluation/, report/.
    step: checkpoint to resume from; None = the newest.
    resume_from_last_good: pass over damaged checkpoints.

  Returns:
    Path of report.html.

  Raises:
    UserError: bad input.
    Interrupted: SIGTERM or SIGINT arrived; everything is saved.
  """
  workdir = epath.Path(workdir)
  primary = jax.process_index() == 0
  config_path = workdir / 'config.json'
  if config_path.exists():
    _check_same_recipe(recipe, config_path)
  with (
    telemetry_lib.StopRequest() as stop,
    telemetry_lib.Progress(enabled=primary) as progress,
  ):
    progress.phase('set-up', 1)
    run = Run(recipe, workdir, progress, stop)
    try:
      progress.note(plan.describe(run.setup))
      workdir.mkdir(parents=True, exist_ok=True)
      write_json_atomic(config_path, config_dict(recipe))
      if step is not None or run.manager.latest_step() is not None:
        run.resume(step, resume_from_last_good)
        run.past_summaries()
      else:
        run.fresh()
      return run.run()
    finally:
      run.close()
