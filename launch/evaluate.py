r"""Evaluates a checkpoint on held-out problems: table, plots, report.

  python -m launch.evaluate --checkpoint=runs/tiny --samples=64

Pass@1, majority, score-weighted vote, SPRM best-of-k and oracle pass@k with
95 % intervals, and every response with its score as JSON lines in the released
format. Finished tasks are kept: the same command again goes on.
"""

import dataclasses
import hashlib
import json

from absl import flags
from etils import epath
from ml_collections import config_flags

from launch import cli
from metastone_jax import evaluation
from metastone_jax.checkpoints import (
  CheckpointManager,
  Pretrained,
  is_ours,
  write_json_atomic,
)
from metastone_jax.errors import UserError
from metastone_jax.parallel import distributed
from metastone_jax.telemetry import Progress
from metastone_jax.training import loop

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Folder of a run or of launch.ingest.',
)
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Tasks, lengths and sampling; default: those of the run.',
  lock_config=True,
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default: newest.')
_OUT = flags.DEFINE_string(
  'out', None, 'Folder of the report; default RUN/evaluate-STEP.'
)
_TASKS = flags.DEFINE_list(
  'tasks', None, 'Tasks of the run to evaluate; default: all.'
)
_PROBLEMS = flags.DEFINE_integer('problems', 512, 'Held-out problems a task.')
_SAMPLES = flags.DEFINE_integer('samples', 64, 'Responses a problem.')
_KS = flags.DEFINE_list('k', ['1', '2', '8', '32'], 'Candidates k to report.')
_SLOTS = flags.DEFINE_integer(
  'slots',
  None,
  "Responses that a host draws at a time; default: the recipe's, or 512.",
  lower_bound=1,
)
_TOKEN_IDS = flags.DEFINE_bool(
  'token_ids', False, 'Also write the token ids into the result file.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'complete',
  ['complete', 'trace'],
  "'complete': whole responses, each scored by its thinking; 'trace' (the "
  'paper): k thinking traces, the answer written once from the best; accuracy '
  'only.',
)
_DRAWS = flags.DEFINE_integer(
  'draws', 4, 'Answers a problem for each k in --mode=trace.'
)
_RELEASED = flags.DEFINE_bool(
  'released_scores',
  False,
  'Score and select as the released code does: a think tag counts only where '
  'it occurs once, a response without step marks scores 0, the highest score '
  'wins even if its response was cut off.',
)


def _ks() -> tuple[int, ...]:
  """The values of --k.

  Raises:
    UserError: not integers >= 1, or none at most --samples.
  """
  try:
    ks = tuple(sorted({int(k) for k in _KS.value}))
  except ValueError:
    raise UserError(f'--k={_KS.value}: give whole numbers') from None
  if not ks or ks[0] < 1:
    raise UserError(f'--k={_KS.value}: k must be at least 1')
  if ks[0] > _SAMPLES.value:
    raise UserError(
      f'--k={ks[0]} needs at least {ks[0]} samples a problem; raise --samples'
    )
  return tuple(k for k in ks if k <= _SAMPLES.value)


def _recipe(root: epath.Path) -> loop.Recipe:
  """The recipe of a run, or --config for the model of this folder."""
  if _CONFIG.value is not None:
    recipe = loop.parse_recipe(_CONFIG.value)
    model = {k: v for k, v in recipe.model.items() if k != 'preset'}
    return dataclasses.replace(recipe, model={**model, 'source': str(root)})
  path = root / 'config.json'
  if not path.exists():
    raise UserError(
      f'{root} comes from launch.ingest and has no tasks of its own; give '
      '--config, for example --config=configs/smollm2_135m.py'
    )
  return loop.recipe_from_dict(json.loads(path.read_text()))


def _draws_key(recipe: loop.Recipe, sampling) -> str:
  """A short name of everything, beside the checkpoint, that draws depend on."""
  text = json.dumps(
    [dataclasses.asdict(x) for x in (recipe.data, sampling)]
    + [recipe.seed, dict(recipe.model)],
    sort_keys=True,
  )
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _evaluate_traces(evaluator, params, tasks, sampling, ks, out) -> None:
  """Prints and saves accuracy and tokens of one answer from k traces."""
  with Progress() as progress:
    for task in tasks:
      rows = []
      for k in ks:
        progress.phase(f'{task}, k = {k}', _PROBLEMS.value * _DRAWS.value)
        found = loop.answer_from_traces(
          evaluator,
          params,
          task,
          sampling,
          k=k,
          num_problems=_PROBLEMS.value,
          num_draws=_DRAWS.value,
          progress=lambda done, total: progress.update(done),
        )
        accuracy = evaluation.bootstrap_interval(found.correct_PR.mean(axis=1))
        rows.append(
          {
            'k': k,
            'accuracy': accuracy.as_dict(),
            'tokens': float(found.tokens_PR.mean()),
          }
        )
        progress.note(
          f'{task}: the best of {k} traces answers '
          f'{100 * accuracy.mean:.1f} % right ({100 * accuracy.low:.1f} to '
          f'{100 * accuracy.high:.1f}), {rows[-1]["tokens"]:.0f} tokens an '
          'answer'
        )
      write_json_atomic(out / f'{task}-trace.json', rows)


def main() -> None:
  """Parses, loads, evaluates, reports."""
  if _CHECKPOINT.value is None:
    raise UserError('--checkpoint is missing: name the folder of a run')
  if _MODE.value == 'trace':
    cli.refuse_several('launch.evaluate --mode=trace')
  ks = _ks()
  root = epath.Path(_CHECKPOINT.value)
  if root.name == 'checkpoints':
    root = root.parent
  if not is_ours(root):
    raise UserError(
      f'{root} is no folder of ours (it has no model.json); give the folder of '
      'a run or of launch.ingest'
    )
  recipe = _recipe(root)
  setup = loop.Setup.build(recipe, root)
  with CheckpointManager(root / 'checkpoints', read_only=True) as manager:
    extra, step = manager.read_extra(_STEP.value)
  with Pretrained(root) as pretrained:
    params = pretrained.load(
      setup.model_config, setup.sharder, step=step, verified=True
    )
  sampling = setup.evaluation_sampling
  if _RELEASED.value:
    sampling = dataclasses.replace(
      sampling, released_selection=True, score_side='serve'
    )
  evaluator = loop.Evaluator(
    setup,
    loop.Sampler.build(
      setup,
      sampling,
      problems=max(1, -(-_PROBLEMS.value // setup.hosts.count)),
      samples=_SAMPLES.value,
      slots=_SLOTS.value or recipe.sampling.slots or 512,
    ),
  )
  key = _draws_key(recipe, sampling)
  tasks = _TASKS.value or list(evaluator.task_names())
  out = epath.Path(_OUT.value or root / f'evaluate-{step}')
  stage = f'step {step} ({extra["phase"]})'
  if _MODE.value == 'trace':
    _evaluate_traces(evaluator, params, tasks, sampling, ks, out)
    return
  primary = distributed.is_primary()
  with Progress(enabled=primary) as progress:
    for task in tasks:
      kind = '-released' if _RELEASED.value else ''
      name = f'{task}-{_PROBLEMS.value}x{_SAMPLES.value}-step{step}{kind}-{key}'
      path = out / f'{name}.npz'
      ids = '-token_ids' if _TOKEN_IDS.value else ''
      results = out / f'{name}{ids}.jsonl'
      done = path.exists() and results.exists()
      if distributed.from_primary('evaluated', done):
        samples = evaluation.EvaluationSamples.load(path)
      else:
        total = _PROBLEMS.value * _SAMPLES.value
        progress.phase(f'evaluate {task}', total)
        samples, drawn = evaluator.draw(
          params,
          task,
          num_problems=_PROBLEMS.value,
          num_samples=_SAMPLES.value,
          progress=lambda done, total: progress.update(done),
          keep_token_ids=_TOKEN_IDS.value,
        )
        if not primary:
          continue
        samples = dataclasses.replace(samples, released=_RELEASED.value)
        evaluation.write_results(
          results,
          questions=[problem.question for problem in drawn.problems],
          answers=[problem.answer for problem in drawn.problems],
          texts_PN=drawn.texts_PN,
          samples=samples,
          seconds=drawn.seconds,
          token_ids=drawn.token_ids,
        )
        # Last: it says that the task is done.
        samples.save(path)
      if not primary:
        continue
      summary = evaluation.summarise(samples, ks)
      progress.note('\n' + evaluation.terminal_summary(summary))
      write_json_atomic(out / f'{task}{kind}.json', summary)
      report = evaluation.write_report(
        out / f'report-{task}{kind}',
        title=f'{recipe.name}, {stage}: {task}',
        summaries={stage: summary},
        samples=samples,
        config_text=json.dumps(loop.config_dict(recipe), indent=2),
        command=cli.command_line('launch.evaluate'),
        versions=loop.versions(),
      )
      progress.note(f'report: {report}')


if __name__ == '__main__':
  cli.run(main)
