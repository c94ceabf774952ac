"""Held-out evaluations during a run, and the report at its end."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from metastone_jax import evaluation
from metastone_jax import telemetry as telemetry_lib
from metastone_jax.checkpoints import write_json_atomic
from metastone_jax.errors import UserError
from metastone_jax.parallel import distributed
from metastone_jax.training.loop import folder
from metastone_jax.training.loop.heldout import Evaluator
from metastone_jax.training.loop.recipe import PhaseConfig, Recipe


class Interrupted(Exception):  # noqa: N818 (a state, not an error)
  """The run was asked to stop; a checkpoint holds its state."""


class Stages:
  """Evaluates, keeps samples and summaries a stage, writes the report.

  Attributes:
    summaries: task -> stage -> summary.
    samples: task -> stage -> EvaluationSamples.
  """

  def __init__(
    self,
    recipe: Recipe,
    workdir: epath.Path,
    evaluator: Evaluator,
    writer: telemetry_lib.MetricWriter,
    progress: telemetry_lib.Progress,
    stop: Callable[[], str | None],
  ):
    self.recipe = recipe
    self.workdir = workdir
    self.evaluator = evaluator
    self.writer = writer
    self.progress = progress
    self.stop = stop
    self.summaries: dict[str, Any] = {}
    self.samples: dict[str, Any] = {}
    if not evaluator.task_names():
      raise UserError(
        'no task has held-out problems, so nothing can be evaluated: hold some '
        "out (heldout='hash' or heldout_path), or add an evaluation set of "
        'share 0 to data.tasks'
      )

  def _evaluate(
    self, params, task: str, problems: int, samples: int, may_stop: bool
  ):
    def progress(done: int, total: int) -> None:
      self.progress.status(f'held-out {task} {done}/{total}')

    def pause() -> None:
      if may_stop and (signal := self.stop()):
        raise Interrupted(signal)

    return self.evaluator.evaluate(
      params,
      task,
      num_problems=self.evaluator.count(task, problems),
      num_samples=samples,
      progress=progress,
      pause=pause,
      verified=lambda done, total: self.progress.status(
        f'held-out {task}: verified {done}/{total}'
      ),
    )

  def small(self, params, phase: PhaseConfig, iteration: int) -> None:
    """A quick look at the main task, into the metrics."""
    options = self.recipe.evaluation
    task = self.evaluator.task_names()[0]
    samples = self._evaluate(
      params,
      task,
      options.small_problems,
      options.small_samples,
      # The steps since the last checkpoint are not saved yet; the loop saves
      # them, with this evaluation's row, right after it.
      may_stop=False,
    )
    if distributed.is_primary():
      samples.save(self.workdir / 'evaluation' / f'step-{iteration}.npz')
    summary = evaluation.summarise(samples, options.ks, resamples=200)
    self.writer.write(
      iteration, phase.name, evaluation.summary_metrics(summary)
    )
    self.progress.status('')

  def full(self, params, phase: PhaseConfig, iteration: int) -> float:
    """The held-out evaluation at the end of a phase, every task; seconds."""
    options = self.recipe.evaluation
    last = phase is self.recipe.phases[-1]
    started = time.monotonic()
    tasks = self.evaluator.task_names()
    self.progress.phase(f'evaluate {phase.name}', len(tasks))
    for done, task in enumerate(tasks):
      path = self.workdir / 'evaluation' / f'{phase.name}-{task}.npz'
      # A restart: the draws are the same.
      if distributed.from_primary('evaluated', path.exists()):
        samples = evaluation.EvaluationSamples.load(path)
      else:
        main = task == tasks[0]
        samples = self._evaluate(
          params,
          task,
          options.problems,
          options.final_samples if last and main else options.stage_samples,
          may_stop=True,
        )
        if distributed.is_primary():
          samples.save(path)
      stage = f'after {phase.name}'
      summary = evaluation.summarise(samples, options.ks)
      self.summaries.setdefault(task, {})[stage] = summary
      self.samples.setdefault(task, {})[stage] = samples
      prefix = 'eval' if task == tasks[0] else f'eval_{task}'
      self.writer.write(
        iteration,
        phase.name,
        evaluation.summary_metrics(summary, prefix),
      )
      self.progress.note('\n' + evaluation.terminal_summary(summary))
      self.progress.update(done + 1)
    return time.monotonic() - started

  def report(self, seconds: dict[str, float]) -> epath.Path:
    """Writes summary.json and one report a task; returns the main one."""
    main = self.workdir / 'report' / 'report.html'
    if not distributed.is_primary():
      return main
    write_json_atomic(self.workdir / 'summary.json', self.summaries)
    self.writer.flush()
    rows = telemetry_lib.read_metrics(self.workdir)
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
          config_text=json.dumps(folder.config_dict(self.recipe), indent=2),
          command=shlex.join(['python', '-m', 'launch.train', *sys.argv[1:]]),
          seconds=seconds,
          versions=folder.versions(),
        )
      )
    return paths[0]

  def restore(self, phases_done: int) -> None:
    """Reads the evaluations of phases that were done before a restart.

    Raises:
      UserError: a file of them is missing.
    """
    for phase in self.recipe.phases[:phases_done]:
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
