"""Points of a scaling-law sweep: `train` a model, `sample` from it.

Contract:
- `train`: point {recipe: path of a config file, changes: {dotted key: value}}.
  Trains it in `folder/run` and goes on there after any interruption.
- `sample`: point {train: name of the trained point, budget: thinking tokens or
  0, task, problems P, samples N, ks, first_milestones, slots}. Draws N samples
  of P held-out problems once and derives every k and strategy from them. Keeps
  in its folder: `samples.npz` (EvaluationSamples), `marks.npz` (StepMarks) and
  `values.npz` (LawValues: each row's accuracy and cost a PROBLEM, what a
  bootstrap over problems needs). Candidates are kept while they are drawn: an
  interrupted point goes on.

Rows of `sample`, one a strategy, k and first milestone: width, parameters,
seed, budget, strategy, first_milestone (tokens; pruned alone), k, accuracy in
[0, 1] with low and high (95 %, over problems), thinking_tokens a problem,
compute = parameters x thinking_tokens, flops a problem (prompt, whole
responses, attention, scoring), drawn_share of the thinking tokens that a
strategy without pruning draws, problems, samples.
"""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

import metastone_jax
from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples, intervals
from metastone_jax.scaling import compute, strategies
from metastone_jax.scaling.job import REMOVE_POINT, needs_keys
from metastone_jax.scaling.runs.kept_candidates import (
  BudgetSampler,
  KeptCandidates,
)
from metastone_jax.scaling.runs.pruned import StepMarks
from metastone_jax.telemetry import files
from metastone_jax.training import loop
from metastone_jax.training.loop.draws import stack

_SLOTS = 512  # responses that are drawn at a time, where a point names none
_SAMPLE_KEYS = (
  *('train', 'budget', 'task', 'problems', 'samples'),
  *('ks', 'first_milestones'),
)


def train(point: Mapping[str, Any], job) -> list[dict[str, Any]]:
  """Trains the point's recipe; one row: size, seed, steps.

  `train.json` keeps the seconds of its phases and of the evaluations between
  them, over all interruptions, apart from the row: they differ from try to try.

  Args:
    point: see the module docstring; `width` and `seed` are set in the recipe
      by `changes` and repeated for the table.
    job: of the sweep.

  Raises:
    UserError: no such recipe, or one that is wrong.
    Interrupted: asked to stop; the run is saved.
  """
  needs_keys(point, 'recipe')
  recipe = recipe_of(point)
  job.check_stop()
  run = job.folder / 'run'
  loop.train(recipe, run, check=job.check_stop)
  config = loop.Setup.build(recipe, run, phases=False).model_config
  with CheckpointManager(run / 'checkpoints', read_only=True) as manager:
    extra, _ = manager.read_extra(None)
  files.write_json_atomic(
    job.folder / 'train.json',
    {'seconds': round(sum(extra['seconds'].values()), 3)},
  )
  return [
    {
      'width': config.width,
      'parameters': config.num_backbone_parameters,
      'head_parameters': config.num_score_parameters,
      'seed': recipe.seed,
      'steps': sum(phase.steps for phase in recipe.phases),
    }
  ]


def recipe_of(point: Mapping[str, Any]) -> loop.Recipe:
  """The recipe file of a point, with its changes.

  Raises:
    UserError: no such file, no `get_config`, or a recipe that is wrong.
  """
  config = load_config(point['recipe']).to_dict()
  for key, value in point.get('changes', {}).items():
    *parents, last = key.split('.')
    place = config
    for name in parents:
      place = place.get(name)
      if not isinstance(place, dict):
        raise UserError(
          f'point {point["name"]}: changes.{key}: {point["recipe"]} has no '
          f'{name}'
        )
    place[last] = value
  return loop.parse_recipe(config)


def draws_of(folders: Sequence[epath.Path]) -> list[str]:
  """Sentences on how the runs in these folders draw, each once."""
  found = set()
  for folder in folders:
    recipe = kept_recipe(folder / 'run')
    if recipe is not None:
      draw = recipe.sampling
      found.add((draw.evaluation_temperature, draw.evaluation_top_p))
  return [
    f'Samples are drawn at temperature {temperature:g}, top-p {top_p:g}.'
    for temperature, top_p in sorted(found)
  ]


def check_done(point: Mapping[str, Any], folder: epath.Path) -> None:
  """Refuses a trained point whose recipe is another one now.

  Args:
    point: of the sweep, done.
    folder: its.

  Raises:
    UserError: some value of the recipe has changed since it was trained.
  """
  recipe = kept_recipe(folder / 'run')
  if recipe is None:  # no point that trains
    return
  both = (loop.config_dict(r) for r in (recipe, recipe_of(point)))
  for key, was, now in loop.differences(*both):
    # Where it started lies in the folder of the sweep, which may have moved.
    if key != 'start_from':
      raise UserError(
        f'point {point["name"]}: {point["recipe"]} has changed since it was '
        f'trained in {folder}: {key} was {was!r}, is {now!r}; give the sweep '
        'another --workdir, or remove the folder of this point and of those '
        'that need it'
      )


def kept_recipe(run: epath.Path) -> loop.Recipe | None:
  """The recipe that a run's folder was trained by; None = it is none."""
  path = run / 'config.json'
  if not path.exists():
    return None
  return loop.recipe_from_dict(json.loads(path.read_text()))


def load_config(text: str):
  """What `get_config` of a config file returns.

  Args:
    text: PATH or PATH:ARGUMENT; a relative path counts from the current folder,
      or from the root of the project.

  Raises:
    UserError: there is no such file, or it has no `get_config`.
  """
  name, _, argument = text.partition(':')
  root = pathlib.Path(metastone_jax.__file__).parents[1]
  paths = [pathlib.Path(name), root / name]
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    raise UserError(
      f'recipe {name}: no such file here or in {root}; start the sweep in the '
      'root of the project, or name the file by its whole path'
    )
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'recipe {path} has no get_config(); is it a config file?')
  return module.get_config(*([argument] if argument else []))


def sample(point: Mapping[str, Any], job) -> list[dict[str, Any]]:
  """Draws the point's samples once; rows of every strategy and k.

  Args:
    point: see the module docstring.
    job: of the sweep.

  Raises:
    UserError: the run is not there, N below the largest k, a bad budget.
    Interrupted: asked to stop; what is drawn is kept.
  """
  needs_keys(point, *_SAMPLE_KEYS)
  ks, number = point['ks'], point['samples']
  if max(ks) > number:
    raise UserError(
      f'point {point["name"]}: k={max(ks)} needs as many samples a problem, it '
      f'has {number}; at least twice as many make k={max(ks)} steady'
    )
  run = job.folder_of(point['train']) / 'run'
  setup = _setup(run, job)
  samples, marks = _drawn(point, run, setup, job)
  values = LawValues.of(
    samples, marks, ks, point['first_milestones'], setup, job.check_stop
  )
  values.save(job.folder / 'values.npz')
  config = setup.model_config
  fixed = {
    'width': config.width,
    'parameters': config.num_backbone_parameters,
    'seed': setup.recipe.seed,
    'budget': point['budget'],
  }
  sizes = {'problems': samples.shape[0], 'samples': number}
  return [{**fixed, **row, **sizes} for row in values.rows(fixed['parameters'])]


def _setup(run: epath.Path, job) -> loop.Setup:
  """Of a trained point; three budgets share one."""
  key = ('setup', str(run))
  if key not in job.cache:
    recipe = kept_recipe(run)
    if recipe is None:
      raise UserError(f'{run} is no folder of a run: it has no config.json')
    job.cache[key] = loop.Setup.build(recipe, run, phases=False)
  return job.cache[key]


def _drawn(point, run, setup, job) -> tuple[EvaluationSamples, StepMarks]:
  """Samples and their marks: kept ones, or drawn and kept."""
  paths = job.folder / 'samples.npz', job.folder / 'marks.npz'
  shape = point['problems'], point['samples']
  if all(path.exists() for path in paths):  # stopped after the drawing
    samples = EvaluationSamples.load(paths[0])
    if samples.shape == shape and samples.task == point['task']:
      return samples, StepMarks.load(paths[1])
  draw = setup.evaluation_sampling
  if not 0 <= point['budget'] < draw.max_response_length:
    raise UserError(
      f'point {point["name"]}: budget={point["budget"]} thinking tokens must '
      f'be 0 (none) or below {draw.max_response_length}, the longest response'
    )
  sampler = BudgetSampler.build(
    setup,
    draw,
    problems=shape[0],
    samples=shape[1],
    slots=point.get('slots', _SLOTS),
  )
  kept = KeptCandidates(job.folder / 'candidates')
  sampler = dataclasses.replace(
    sampler, budget=point['budget'] or None, kept=kept
  )
  evaluator = loop.Evaluator(setup, sampler)
  if evaluator.count(point['task'], shape[0]) < shape[0]:
    raise UserError(
      f'point {point["name"]}: task {point["task"]} has fewer than {shape[0]} '
      'held-out problems'
    )
  job.status('reading the checkpoint')
  params = loop.load_params(setup, str(run / 'checkpoints'), None)
  with kept:
    samples = evaluator.evaluate(
      params,
      point['task'],
      num_problems=shape[0],
      num_samples=shape[1],
      progress=lambda done, total: job.status(f'{done} of {total} responses'),
      pause=job.check_stop,
    )
  drawn = sorted(sampler.drawn, key=lambda c: (c.request.draw, c.number))
  marks = StepMarks.of_rollout(
    stack(drawn, shape[0], draw),
    evaluator.batch(point['task'], shape[0])[2],
    draw.aggregator,
  )
  marks.save(paths[1])
  samples.save(paths[0])
  kept.remove()
  return samples, marks


@dataclasses.dataclass(frozen=True, eq=False)
class LawValues:
  """What every row of a sample point says of each problem; M rows.

  Attributes:
    strategy_M: name of a strategy.
    k_M: samples an answer.
    first_M: tokens at the first milestone; 0 = no pruning.
    accuracy_PM: expected correctness.
    thinking_PM: thinking tokens.
    flops_PM: FLOPs.
    problem_ids: of the P problems.
  """

  strategy_M: np.ndarray
  k_M: np.ndarray
  first_M: np.ndarray
  accuracy_PM: np.ndarray
  thinking_PM: np.ndarray
  flops_PM: np.ndarray
  problem_ids: np.ndarray

  @classmethod
  def of(cls, samples, marks, ks, firsts, setup, pause) -> 'LawValues':
    """Every strategy at every k.

    Args:
      samples: P x N.
      marks: theirs.
      ks: samples an answer.
      firsts: first milestones of pruning.
      setup: of the run.
      pause: called between the k.
    """
    found = []  # (strategy, k, first milestone, Outcome)
    milestones = {
      first: marks.milestones(samples, first, setup.model_config)
      for first in firsts
    }
    for k in sorted(set(ks)):
      pause()
      for name, outcome in strategies.outcomes(samples, k).items():
        found.append((name, k, 0, outcome))
      for first, seen in milestones.items():
        outcome = strategies.pruned_best_of_k(samples, seen, k)
        found.append(('pruned', k, first, outcome))
    names, ks, firsts, outcomes = zip(*found, strict=True)
    return cls(
      np.array(names),
      np.array(ks),
      np.array(firsts),
      *(
        np.stack([getattr(outcome, name) for outcome in outcomes], axis=1)
        for name in ('accuracy_P', 'thinking_P', 'flops_P')
      ),
      np.array(samples.problem_ids),
    )

  def rows(self, parameters: int) -> list[dict[str, Any]]:
    """Rows of the table, without what is the same in all of them."""
    found = intervals.column_intervals(
      self.accuracy_PM, [intervals.SHARE] * len(self.k_M)
    )
    whole = {
      int(k): self.thinking_PM[:, m].mean()
      for m, k in enumerate(self.k_M)
      if not self.first_M[m]
    }
    rows = []
    for m, interval in enumerate(found):
      k, thinking = int(self.k_M[m]), float(self.thinking_PM[:, m].mean())
      rows.append(
        {
          'strategy': str(self.strategy_M[m]),
          'first_milestone': int(self.first_M[m]) or None,
          'k': k,
          'accuracy': interval.mean,
          'low': interval.low,
          'high': interval.high,
          'thinking_tokens': thinking,
          'compute': float(compute.parameters_x_tokens(parameters, thinking)),
          'flops': float(self.flops_PM[:, m].mean()),
          'drawn_share': thinking / float(whole[k]),
        }
      )
    return rows

  def save(self, path: epath.PathLike) -> epath.Path:
    """Writes one compressed .npz, whole or not at all."""
    return files.write_arrays(path, dataclasses.asdict(self))

  @classmethod
  def load(cls, path: epath.PathLike) -> 'LawValues':
    """Reads what `save` wrote; `UserError` names a missing or broken file."""
    with files.reading_arrays(path, 'file of values', REMOVE_POINT) as data:
      return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls)})
