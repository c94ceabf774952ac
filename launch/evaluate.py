r"""Evaluates checkpoints on problems: table, plots, report, result file.

  python -m launch.evaluate --checkpoint=runs/tiny --samples=64
  python -m launch.evaluate --checkpoint=models/qwq-32b --data=questions \
    --tasks=aime24,aime25,ceval --effort=high --repeats=16
  python -m launch.evaluate --checkpoint=runs/a,runs/b     # paired comparison

Pass@1, majority, score-weighted vote, SPRM best-of-k and oracle pass@k with
95 % intervals, calibration and AUC of the score, tokens and FLOPs an answer;
every response with its score as JSON lines in the released format; the pass
rate of each problem. Responses are kept as they come: the same command again
goes on, after Ctrl-C too; on more problems or samples it draws the rest alone,
and with another verifier or deadline it judges the same responses again.
"""

import dataclasses
import json
from collections.abc import Mapping

from absl import flags
from etils import epath

from launch import cli
from launch.evaluation_files import Files, plain
from launch.evaluation_keys import Keys
from launch.evaluation_model import Checkpoint, Model, names_of
from launch.evaluation_plan import Plan
from metastone_jax import evaluation
from metastone_jax.checkpoints import Pretrained, write_json_atomic
from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.parallel import distributed
from metastone_jax.tasks.base import SPLITS
from metastone_jax.telemetry import Progress, StopRequest
from metastone_jax.telemetry.files import writing
from metastone_jax.telemetry.progress import format_count
from metastone_jax.training import loop

_CHECKPOINT = flags.DEFINE_multi_string(
  'checkpoint',
  [],
  'Folder of a run or of launch.ingest, or PATH@STEP; several (A,B or the flag '
  'again) are compared on the same problems.',
)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder of the report; default RUN/evaluate-STEP.'
)
_PROBLEMS = flags.DEFINE_integer(
  'problems',
  None,
  'Problems a task, where it has so many; default 512, and with --split=train '
  'all of those that have an end.',
  lower_bound=1,
)
_SPLIT = flags.DEFINE_enum(
  'split',
  'heldout',
  list(SPLITS),
  "Of the problems; 'train' measures the pass rates that a filter by "
  'difficulty reads, of all training problems.',
)
_SLOTS = flags.DEFINE_integer(
  'slots',
  None,
  "Responses that a host draws at a time; default: the recipe's, or 512.",
  lower_bound=1,
)
_TOKEN_IDS = flags.DEFINE_bool(
  'token_ids', False, 'Also write the token ids into the result file.'
)


@dataclasses.dataclass
class Job:
  """One call of this command.

  Attributes:
    plan: what is drawn.
    progress: shown to the user.
    stop: whether the user or the machine wants to stop.
  """

  plan: Plan
  progress: Progress
  stop: StopRequest

  def pause(self) -> None:
    """Raises Interrupted if any process was asked to stop."""
    signal = distributed.any_wish('stop', self.stop.signal_name)
    if signal is not None:
      raise loop.Interrupted(signal)

  def hurry(self) -> bool:
    """Whether to pause at once; several processes must agree on it first."""
    return self.stop.requested and not distributed.several()

  def evaluate(
    self, model: Model, out: epath.Path
  ) -> dict[tuple[str, int], EvaluationSamples]:
    """(task, k of traces or 0) -> samples; on process 0.

    Args:
      model: to evaluate.
      out: folder of the results.
    """
    plan, setup = self.plan, model.setup
    sampling = plan.sampling(
      setup.evaluation_sampling, setup.tokenizer.has_think_tags
    )
    for note in model.notes:
      self.progress.note(note)
    if plan.thinking is not None and sampling.thinking_budget is None:
      self.progress.note(
        f'{model.checkpoint.root} has no think tags: --effort sets k alone'
      )
    most = max(model.problems.values())
    evaluator = loop.Evaluator(
      setup,
      loop.Sampler.build(
        setup,
        sampling,
        problems=max(1, -(-most // setup.hosts.count)),
        samples=plan.samples * (max(plan.ks) if plan.traces else 1),
        slots=_SLOTS.value or model.recipe.sampling.slots or 512,
      ),
      _SPLIT.value,
    )
    params = _Params(model)
    found = {}
    for task, count in model.problems.items():
      root, step = model.checkpoint.root, model.checkpoint.step
      keys = Keys.of(root, step, setup, task, _SPLIT.value, sampling)
      for k in plan.ks if plan.traces else (0,):
        files = Files(
          out,
          _file_name(task, k),
          f'{count}x{plan.samples}',
          step,
          plan.text(),
          keys,
          _TOKEN_IDS.value,
        )
        samples = self._task(evaluator, params, task, count, k, files)
        if samples is not None:
          found[task, k] = samples
          self._report(model, files, samples)
    return found

  def _task(self, evaluator, params, task, count, k, files):
    """Samples of one task: read, or drawn and written."""
    if distributed.from_primary('evaluated', files.done()):
      if not distributed.is_primary():
        return None
      return EvaluationSamples.load(files.samples)
    plan, progress = self.plan, self.progress
    total = count * plan.samples
    with loop.KeptResponses(files.kept) as kept:
      # Each process asks for those of its own problems alone.
      there = {
        (p, n): response
        for (p, n), response in kept.found.items()
        if p < count and n < plan.samples
      }
      name = f'evaluate {task}' + (f', k = {k}' if k else '')
      progress.phase(name, total, initial=len(there))
      if there:
        progress.note(f'{task}: {len(there)} of {total} responses are there')
      fresh, shown = [], [0]

      def keep(response: loop.Kept) -> None:
        kept.add(response)
        fresh.append(response)

      hosts = evaluator.setup.hosts.count

      def advance(done: int, total: int) -> None:
        del total
        drawn = sum(response.tokens for response in fresh[shown[0] :]) * hosts
        shown[0] = len(fresh)
        progress.update(done, tokens=drawn)

      options = dict(
        num_problems=count,
        progress=advance,
        pause=self.pause,
        verified=lambda done, total: progress.status(
          f'verified {done} of {total}'
        ),
        keep_token_ids=_TOKEN_IDS.value,
        kept=there,
        keep=keep,
      )
      if k:
        samples, drawn = loop.answer_from_traces(
          evaluator,
          params(),
          task,
          evaluator.sampler.config,
          k=k,
          num_draws=plan.samples,
          **options,
        )
      else:
        samples, drawn = evaluator.draw(
          params(),
          task,
          num_samples=plan.samples,
          hurry=self.hurry,
          **options,
        )
      progress.update(total)
      if fresh:
        tokens = sum(response.tokens for response in fresh)
        seconds = sum(response.seconds for response in fresh) * hosts
        progress.note(
          f'{task}: {len(fresh)} responses, {format_count(tokens)} tokens in '
          f'{seconds:.1f} s, {format_count(tokens / seconds)} tokens/s a host'
        )
      kept.flush()
      distributed.barrier('responses are kept')
      if not distributed.is_primary():
        return None
      samples = dataclasses.replace(samples, released=plan.released)
      questions = [problem.question for problem in drawn.problems]
      with writing(files.out, 'no results; the responses are kept'):
        evaluation.write_results(
          files.results,
          questions=questions,
          answers=[problem.answer for problem in drawn.problems],
          texts_PN=drawn.texts_PN,
          samples=samples,
          seconds=drawn.seconds,
          token_ids=drawn.token_ids,
        )
        evaluation.write_pass_rates(files.pass_rates, questions, samples)
        # Last: it says that the task is done.
        samples.save(files.samples)
    return samples

  def _report(self, model: Model, files: Files, samples) -> None:
    ks = (1,) if self.plan.traces else self.plan.ks
    summary = evaluation.summarise(samples, ks)
    self.progress.note('\n' + evaluation.terminal_summary(summary))
    stage = model.checkpoint.stage
    with writing(files.out, 'no report; the results are kept'):
      write_json_atomic(files.summary, summary)
      report = evaluation.write_report(
        files.report,
        title=f'{model.recipe.name}, {stage}: {files.task}',
        summaries={stage: summary},
        samples=samples,
        config_text=json.dumps(loop.config_dict(model.recipe), indent=2),
        command=cli.command_line('launch.evaluate'),
        versions=loop.versions(),
        notes=model.notes,
      )
    self.progress.note(f'report: {report}')

  def compare(
    self,
    names: list[str],
    models: list[Model],
    found: list[Mapping[tuple[str, int], EvaluationSamples]],
    out: epath.Path,
  ) -> None:
    """Writes one report a task, of all checkpoints against the first.

    Args:
      names: of the checkpoints.
      models: likewise.
      found: their samples, see `evaluate`.
      out: folder of the reports.
    """
    ks = (1,) if self.plan.traces else self.plan.ks
    for task, k in found[0]:
      samples = {
        name: some[task, k] for name, some in zip(names, found, strict=True)
      }
      title = f'{task}, {k} traces' if k else task
      summaries = {
        name: evaluation.summarise(x, ks) for name, x in samples.items()
      }
      with writing(out, 'no comparison; the results are kept'):
        report = evaluation.write_report(
          out / f'compare-{_file_name(task, k)}{self.plan.text()}',
          title=f'{title}: {", ".join(names)}',
          summaries=summaries,
          samples=samples,
          config_text=json.dumps(
            {
              name: loop.config_dict(model.recipe)
              for name, model in zip(names, models, strict=True)
            },
            indent=2,
          ),
          command=cli.command_line('launch.evaluate'),
          versions=loop.versions(),
          notes=models[0].notes,
          to_first=True,
        )
      self.progress.note(f'comparison: {report}')


def _file_name(task: str, k: int) -> str:
  """Of a task, the split and k of the form of traces (0: whole responses)."""
  split = '' if _SPLIT.value == 'heldout' else f'-{_SPLIT.value}'
  return plain(task) + split + (f'-traces{k}' if k else '')


class _Params:
  """Weights, read when a task is the first to want them."""

  def __init__(self, model: Model):
    self._model, self._params = model, None

  def __call__(self):
    if self._params is None:
      model = self._model
      with Pretrained(model.checkpoint.root) as pretrained:
        self._params = pretrained.load(
          model.setup.model_config,
          model.setup.sharder,
          step=model.checkpoint.step,
          verified=True,
        )
    return self._params


def main() -> None:
  """Parses, loads, evaluates, reports."""
  texts = [x for text in _CHECKPOINT.value for x in text.split(',') if x]
  if not texts:
    raise UserError('--checkpoint is missing: name the folder of a run')
  plan = Plan.from_flags()
  if plan.traces:
    cli.refuse_several('launch.evaluate --mode=trace')
  checkpoints = [Checkpoint.find(text) for text in texts]
  names = names_of(checkpoints)
  models: list[Model] = []
  for checkpoint in checkpoints:
    first = models[0].recipe if models else None
    models.append(Model.build(checkpoint, first, _PROBLEMS.value, _SPLIT.value))
  found = []
  primary = distributed.is_primary()
  with StopRequest() as stop, Progress(enabled=primary) as progress:
    job = Job(plan, progress, stop)
    for name, model in zip(names, models, strict=True):
      default = model.checkpoint.root / f'evaluate-{model.checkpoint.step}'
      out = epath.Path(_OUT.value or default)
      if len(models) > 1:
        progress.note(f'\n{name}, {model.checkpoint.stage}')
        if _OUT.value:
          out = out / name.strip('/').replace('/', '_')
      # Its processes must not stay while the next model is evaluated.
      with model.setup.verifiers:
        found.append(job.evaluate(model, out))
    if len(models) > 1 and primary:
      first = models[0].checkpoint
      job.compare(
        names,
        models,
        found,
        epath.Path(_OUT.value or first.root / f'evaluate-{first.step}'),
      )


if __name__ == '__main__':
  cli.run(main)
