"""The training run: phases of steps, checkpoints, evaluations, the report.

Everything that a step depends on is in the checkpoint or is a pure function of
(recipe, step): the same command after a crash gives the same bits, except
metrics named time/*.
"""

import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from metastone_jax import telemetry as telemetry_lib
from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.data import DataPosition
from metastone_jax.errors import UserError
from metastone_jax.parallel import distributed
from metastone_jax.training import optimiser
from metastone_jax.training import state as state_lib
from metastone_jax.training.loop import collect as collect_lib
from metastone_jax.training.loop import folder, programs
from metastone_jax.training.loop.batches import (
  RolloutRows,
  count_tokens,
  demonstration_batch,
)
from metastone_jax.training.loop.draws import Sampler
from metastone_jax.training.loop.heldout import Evaluator
from metastone_jax.training.loop.recipe import PhaseConfig, Recipe
from metastone_jax.training.loop.rollouts import Rollouts
from metastone_jax.training.loop.schedule import learning_rates
from metastone_jax.training.loop.setup import Setup
from metastone_jax.training.loop.stages import Interrupted, Stages

_SHOWN = {
  'loss/lm': 'lm',
  'loss/score': 'score loss',
  'reward/mean': 'reward',
  'score/auc_within': 'AUC within',
}


class Run:
  """One training run in one folder; `train` drives it."""

  def __init__(
    self,
    recipe: Recipe,
    workdir: epath.Path,
    progress,
    stop,
    check: Callable[[], None] = lambda: None,
  ):
    self.recipe = recipe
    self.workdir = workdir
    self.progress = progress
    self.stop = stop  # only asked through stop_requested()
    self.check = check
    self.setup = Setup.build(recipe, workdir)
    self.demonstrations = None
    if any(phase.demonstrations_per_step for phase in recipe.phases):
      self.demonstrations = self.setup.demonstrations()
    self.rollouts = Rollouts(self.setup)
    widest = max(recipe.phases, key=lambda phase: phase.rollouts_per_step)
    # Prompts that are too long are refused now, not after the warm-up.
    problems = self.rollouts.problems
    problems.batch_at(problems.start(), widest.prompts_per_step or 1)
    # Before anything is written: a start that is refused leaves no folder.
    self._start_params = None
    if not (workdir / 'config.json').exists():
      self._start_params = folder.start_params(self.setup, progress.status)
    share = (widest.prompts_per_step or 64) // self.setup.hosts.count
    evaluator = Evaluator(
      self.setup,
      # The same draws as in training share their compiled programs.
      Sampler.build(
        self.setup,
        self.setup.evaluation_sampling,
        problems=max(1, share),
        samples=widest.samples_per_prompt,
      ),
    )
    ends = np.cumsum([phase.steps for phase in recipe.phases])
    self.writer = telemetry_lib.MetricWriter(
      workdir,
      sinks=recipe.sinks,
      config=folder.config_dict(recipe),
      primary=distributed.is_primary(),
    )
    self.manager = CheckpointManager(
      workdir / 'checkpoints',
      max_to_keep=recipe.checkpoint.max_to_keep,
      keep_steps=[int(end) for end in ends],
      config_path=workdir / 'config.json',
    )
    self.stages = Stages(
      recipe, workdir, evaluator, self.writer, progress, self.stop_requested
    )
    self.seconds: dict[str, float] = {}

  def stop_requested(self) -> str | None:
    """The signal that any process has got; all get the same answer.

    Asked at the same points by all: at the ends of steps, and between the
    pieces of an evaluation.
    """
    self.check()
    return distributed.any_wish(
      'stop', self.stop.signal_name if self.stop.requested else None
    )

  # State.

  def fresh(self) -> None:
    """Step 0 of phase 0."""
    self.writer.restore(None)
    stale = self.workdir / 'evaluation'
    if distributed.is_primary() and stale.exists():
      stale.rmtree()
    self.iteration = self.phase_index = self.phase_step = 0
    self.demonstration_position = None
    if self.demonstrations is not None:
      self.demonstration_position = self.demonstrations.start()
    self.rollouts.fresh()
    self.reference = None
    params, self._start_params = self._start_params, None
    self.state = state_lib.init_state(
      self.setup.model_config,
      self.recipe.optimiser,
      self.recipe.seed,
      self.setup.sharder,
      params or folder.start_params(self.setup, self.progress.status),
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
      dtype = self.setup.model_config.dtype
      abstract['reference'] = jax.tree.map(
        lambda x: x.update(dtype=jnp.dtype(dtype)), abstract['train']['params']
      )
    tree, extra, _ = self.manager.restore(step, abstract)
    self.state, self.reference = tree['train'], tree.get('reference')
    self.iteration = step
    self.phase_index = extra['phase_index']
    self.phase_step = extra['phase_step']
    self.demonstration_position = None
    if self.demonstrations is not None:
      self.demonstration_position = DataPosition.from_json(
        extra['demonstration_position']
      )
    self.rollouts.restore(extra, self.recipe.phases[self.phase_index])
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
      'demonstration_position': self.demonstration_position
      and self.demonstration_position.to_json(),
      **self.rollouts.state(self.recipe.phases[self.phase_index]),
      'has_reference': self.reference is not None,
      'metrics': self.writer.state(),
      'config': folder.config_dict(self.recipe),
      'versions': folder.versions(),
      'seconds': self.seconds,
    }
    self.manager.save(self.iteration, tree, extra, wait=wait)

  # Phases.

  def start_phase(self, phase: PhaseConfig) -> None:
    """New moments; the reference is the policy as the phase finds it."""
    shardings = None
    if self.setup.sharder.mesh is not None:
      shardings = state_lib.state_shardings(
        self.setup.model_config,
        jax.eval_shape(lambda: self.state),
        self.setup.sharder,
      )['opt']
    self.state['opt'] = jax.jit(
      functools.partial(optimiser.init, self.recipe.optimiser),
      out_shardings=shardings,
    )(self.state['params'])
    self.reference = None
    if phase.policy_coefficient and phase.objective_config.kl_coefficient:
      # In the compute dtype, which it is cast to wherever it is used: the same
      # numbers in half the memory.
      dtype = self.setup.model_config.dtype
      self.reference = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.array(x, dtype), tree)
      )(self.state['params'])

  def programs(self, phase: PhaseConfig):
    """The update and log-prob programs of a phase."""
    rows = self.setup.row_plan(phase)
    shapes = dict(
      model_config=self.setup.model_config, sharder=self.setup.sharder
    )
    return (
      programs.update_program(rows, opt_config=self.recipe.optimiser, **shapes),
      programs.log_prob_program(rows, **shapes),
    )

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
        self.stages.small(self.state['params'], phase, self.iteration)
      due = self.iteration % self.recipe.checkpoint.every == 0
      stop = self.stop_requested()
      if due or stop or self.phase_step == phase.steps:
        self._write_pending()
        name = f'phase_{phase.name}'
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - started
        started = now
        last = self.phase_step == phase.steps
        self.save(wait=last or stop is not None)
      if stop:
        raise Interrupted(stop)

  def one_step(self, phase, update, log_prob, watch):
    """One rollout and its updates, or one supervised update."""
    metrics: dict[str, float] = {}
    tokens = 0
    rows = None
    if phase.prompts_per_step:
      self.progress.status('rollout')
      collected = self.rollouts.collect(
        phase,
        self.state['params'],
        watch,
        last=self.phase_step == phase.steps - 1,
      )
      metrics |= collected.metrics
      tokens += collected.tokens + int(collected.row_length_B.sum())
      rows = self.wanted_rows(phase, collected, log_prob, watch)
    rates = learning_rates(phase, self.phase_step)
    device_rates, seed = self.setup.sharder.put_replicated(
      (
        {name: np.float32(rate) for name, rate in rates.items()},
        np.uint32(self.recipe.seed),
      )
    )
    self.progress.status('update')
    device_metrics = []
    padding = []
    with watch('update'):
      for u in range(phase.updates_per_rollout):
        demonstrations = None
        if phase.demonstrations_per_step:
          batch = self.demonstrations.batch_at(
            self.demonstration_position, phase.demonstrations_per_step
          )
          self.demonstration_position = self.demonstrations.advance(
            self.demonstration_position, phase.demonstrations_per_step
          )
          demonstrations = collect_lib.demonstration_rows(batch, 0)
          tokens += count_tokens(demonstrations)
        if rows is None:
          batch, share = demonstration_batch(
            self.setup.hosts, self.setup.row_plan(phase), demonstrations
          )
        else:
          batch, share = rows.update_batch(
            u, phase.updates_per_rollout, demonstrations
          )
        padding.append(share)
        self.state, values = update(self.state, batch, device_rates, seed)
        device_metrics.append(values)
      if rows is not None:
        # A rollout waits for these parameters anyway; waiting here keeps
        # time/rollout and time/update apart.
        jax.block_until_ready(self.state['params'])
    self.progress.status('')
    metrics['update/padding'] = float(np.mean(padding))
    metrics |= {f'learning_rate/{name}': rate for name, rate in rates.items()}
    return metrics, device_metrics, tokens

  def wanted_rows(self, phase, collected, log_prob, watch) -> RolloutRows:
    """Adds old and reference log-probs; drops fields no term reads."""
    rows = dict(collected.rows)
    several = phase.updates_per_rollout > 1
    if (
      several
      or phase.partial_rollouts
      or phase.score_loss == 'bce'
      or not phase.score_coefficient
    ):
      # Off-policy after the first mini-batch, or before this step: the update
      # computes them fresh.
      del rows['step_logit_BT']
    if not phase.policy_coefficient:
      for name in ('policy_mask_BT', 'advantage_B', 'sampler_log_prob_BT'):
        del rows[name]
    if not phase.score_coefficient:
      for name in ('step_mask_BT', 'correct_B', 'score_weight_B'):
        del rows[name]
    lengths = collected.row_length_B, collected.prompt_length_B
    rows = RolloutRows(
      self.setup.hosts, self.setup.row_plan(phase), rows, *lengths
    )
    names = []
    if phase.policy_coefficient:
      if several:
        names.append(('old_log_prob_BT', self.state['params']))
      if self.reference is not None:
        names.append(('ref_log_prob_BT', self.reference))
    if names:
      with watch('log_prob'):
        batch = rows.log_prob_batch()
        for name, params in names:
          rows.add(name, log_prob(params, batch)['log_prob_BT'])
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

  def run(self) -> epath.Path:
    """From the current state to the report."""
    while True:
      self.run_phase()
      phase = self.recipe.phases[self.phase_index]
      self.seconds[f'evaluate_{phase.name}'] = self.stages.full(
        self.state['params'], phase, self.iteration
      )
      if stop := self.stop_requested():
        raise Interrupted(stop)
      if self.phase_index == len(self.recipe.phases) - 1:
        break
      self.phase_index += 1
      self.phase_step = 0
    return self.stages.report(self.seconds)

  def close(self) -> None:
    """Ends verifiers, waits for running saves, flushes metrics."""
    self.setup.verifiers.close()
    self.manager.close()
    self.writer.close()
