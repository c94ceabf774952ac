"""A checkpoint to evaluate: its recipe, with the tasks that were asked for.

A run has a recipe of its own; a folder of launch.ingest gets one that says
nothing but where the model is and how to draw (SPEC 5: temperature 0.6, top_p
0.95). Flags and --config change it. Of several checkpoints the first one's
problems, seed, lengths and draws are those of all, so that they are compared
on the same draws of the same problems.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from metastone_jax.checkpoints import CheckpointManager, Pretrained, is_ours
from metastone_jax.data import tokenizer_from_files
from metastone_jax.errors import UserError
from metastone_jax.tasks import takes_folder, task_names
from metastone_jax.training import loop
from metastone_jax.training.loop.recipe_data import DataConfig
from metastone_jax.training.loop.recipe_phase import PhaseConfig

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Tasks, lengths and sampling; default: those of the run.',
  lock_config=True,
)
_STEP = flags.DEFINE_integer(
  'step', None, 'Checkpoint step; default: newest. Also --checkpoint=PATH@STEP.'
)
_TASKS = flags.DEFINE_list(
  'tasks',
  None,
  'Tasks to evaluate, also such that are not in the recipe; default: all of '
  'the recipe.',
)
_DATA = flags.DEFINE_string(
  'data',
  None,
  'Folder of the question files of tasks that are not in the recipe.',
)
_MAX_TOKENS = flags.DEFINE_integer(
  'max_tokens',
  None,
  "Of a response; default: the recipe's, or what the context of an ingested "
  'model leaves, at most 32768.',
  lower_bound=1,
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', None, "0 = greedy; default: the recipe's, or 0.6."
)
_TOP_P = flags.DEFINE_float(
  'top_p', None, "1 = off; default: the recipe's, or 0.95."
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  "Of the computation; default: the recipe's, or float32.",
)

_LONGEST = 32768  # tokens of a response, as in the paper
_WIDEST = 2**17  # tokens of a prompt
# Prompts are padded to a multiple of this.
_PROMPT_STEP = 32
_PROBLEMS = 512
# No response is so short.
_TO_BE_FOUND = 1
# What an evaluation knows of training: nothing that could fail to fit.
_NO_TRAINING = dict(
  steps=1,
  policy_coefficient=0.0,
  score_coefficient=0.0,
  lm_coefficient=1.0,
  demonstrations_per_step=1,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Where a model is.

  Attributes:
    root: folder of a run or of launch.ingest.
    step: of its checkpoint.
    phase: that it belongs to.
  """

  root: epath.Path
  step: int
  phase: str

  @classmethod
  def find(cls, text: str) -> 'Checkpoint':
    """Of `PATH` or `PATH@STEP`.

    Raises:
      UserError: no folder of ours, or no such step.
    """
    path, step = text, _STEP.value
    if found := re.fullmatch(r'(.+)@(\d+)', text):
      path, step = found[1], int(found[2])
    root = epath.Path(path)
    if root.name == 'checkpoints':
      root = root.parent
    if not is_ours(root):
      raise UserError(
        f'{root} is no folder of ours (it has no model.json); give the folder '
        'of a run or of launch.ingest'
      )
    with CheckpointManager(root / 'checkpoints', read_only=True) as manager:
      extra, step = manager.read_extra(step)
    return cls(root, step, extra['phase'])

  @property
  def stage(self) -> str:
    """Of the run, for titles."""
    return f'step {self.step} ({self.phase})'


def names_of(checkpoints: list[Checkpoint]) -> list[str]:
  """Short names that differ: folder, path, step, as much as it takes.

  Raises:
    UserError: two are the same.
  """
  ways = (
    lambda c: c.root.name,
    lambda c: f'{c.root.name}@{c.step}',
    lambda c: str(c.root),
    lambda c: f'{c.root}@{c.step}',
  )
  for way in ways:
    names = [way(c) for c in checkpoints]
    if len(set(names)) == len(names):
      return names
  raise UserError(
    f'--checkpoint names one twice: {", ".join(names)}; leave one out'
  )


def recipe_of(checkpoint: Checkpoint, first: loop.Recipe | None) -> loop.Recipe:
  """The recipe of a checkpoint, with what the flags say.

  Args:
    checkpoint: the model.
    first: of the first checkpoint, whose problems and draws are shared.

  Raises:
    UserError: flags that do not fit.
  """
  root = checkpoint.root
  path = root / 'config.json'
  if _CONFIG.value is not None:
    recipe = loop.parse_recipe(_CONFIG.value)
    model = {k: v for k, v in recipe.model.items() if k != 'preset'}
    recipe = dataclasses.replace(recipe, model={**model, 'source': str(root)})
  elif path.exists():
    recipe = loop.recipe_from_dict(json.loads(path.read_text()))
  else:
    recipe = _plain_recipe(root)
  data, draw, model = recipe.data, recipe.sampling, dict(recipe.model)
  if first is not None:
    shared = first.data
    return dataclasses.replace(
      recipe,
      phases=(PhaseConfig('none', **_NO_TRAINING),),
      seed=first.seed,
      sampling=first.sampling,
      data=dataclasses.replace(
        data,
        **{
          name: getattr(shared, name)
          for name in (
            'tasks',
            'task_options',
            'seed',
            'num_demonstrations',
            'max_response_length',
          )
        },
      ),
      model=_with_dtype(model),
    )
  tasks, options = _tasks(data, root)
  changes: dict[str, Any] = {'tasks': tasks, 'task_options': options}
  if _MAX_TOKENS.value is not None:
    changes['max_response_length'] = _MAX_TOKENS.value
  drawn = {
    'evaluation_temperature': _TEMPERATURE.value,
    'evaluation_top_p': _TOP_P.value,
  }
  return dataclasses.replace(
    recipe,
    phases=(PhaseConfig('none', **_NO_TRAINING),),
    data=dataclasses.replace(data, **changes),
    sampling=dataclasses.replace(
      draw, **{k: v for k, v in drawn.items() if v is not None}
    ),
    model=_with_dtype(model),
  )


def _with_dtype(model: Mapping[str, Any]) -> dict[str, Any]:
  return {**model, **({'dtype': _DTYPE.value} if _DTYPE.value else {})}


def _tasks(data: DataConfig, root: epath.Path):
  """(share, options) of each task that is evaluated."""
  names = _TASKS.value or list(data.tasks)
  if not names:
    raise UserError(
      f'{root} comes from launch.ingest and has no tasks of its own; give '
      '--tasks, for example --tasks=aime24,aime25 --data=FOLDER, or --config'
    )
  if len(set(names)) < len(names):
    raise UserError(f'--tasks={",".join(names)} names a task twice')
  options = {k: v for k, v in data.task_options.items() if k in names}
  if _DATA.value is not None:
    # Those of the recipe have their problems already.
    given = [n for n in names if n in data.tasks or n in options]
    new = [n for n in names if n not in given]
    readers = [n for n in new if takes_folder(n, {})]
    if given and not new:
      raise UserError(
        f'--data={_DATA.value}: the recipe says where the problems of '
        f'{", ".join(given)} are; change it with --config'
      )
    # A name that nobody knows is told of where the tasks are built.
    known = [n for n in new if n in task_names() or ':' in n]
    if not readers and known == new:
      raise UserError(
        f'--data={_DATA.value}: none of {", ".join(names)} reads files; leave '
        '--data out'
      )
    options |= {name: {'folder': _DATA.value} for name in readers}
  shares = {name: data.tasks.get(name, 0.0) or 1.0 for name in names}
  return shares, options


def _plain_recipe(root: epath.Path) -> loop.Recipe:
  """Of a folder that comes with none."""
  with Pretrained(root) as pretrained:
    tokenizer, _ = tokenizer_from_files(pretrained.files, pretrained.where)
    marks = tokenizer.find_step_marks()[:1]
  if not marks:
    raise UserError(
      f'the tokenizer of {root} has no usual step mark as one token; give '
      '--config with data.step_marks'
    )
  return loop.parse_recipe(
    {
      'name': root.name,
      'seed': 0,
      'model': {'source': str(root)},
      'data': {
        'tokenizer': 'source',
        'step_marks': tuple(marks),
        'max_prompt_length': 1,
        'max_response_length': _TO_BE_FOUND,
      },
      'sampling': {'evaluation_temperature': 0.6, 'evaluation_top_p': 0.95},
      'phases': {'none': _NO_TRAINING},
    }
  )


def num_problems(asked: int | None, split: str, limit: int | None) -> int:
  """How many problems of a task are evaluated.

  Args:
    asked: --problems; None: 512, or all of a finite training set, which is
      measured for a filter by difficulty.
    split: of the problems.
    limit: how many there are; None = no end.
  """
  if limit is None:
    return asked or _PROBLEMS
  if asked is None and split == 'train':
    return limit
  return min(asked or _PROBLEMS, limit)


@dataclasses.dataclass(frozen=True)
class Model:
  """A checkpoint, ready to be evaluated.

  Attributes:
    checkpoint: where it is.
    recipe: of the evaluation, with all lengths.
    setup: built from it.
    problems: how many of each task.
    notes: what a reader should know of that.
  """

  checkpoint: Checkpoint
  recipe: loop.Recipe
  setup: loop.Setup
  problems: Mapping[str, int]
  notes: tuple[str, ...]

  @classmethod
  def build(
    cls,
    checkpoint: Checkpoint,
    first: loop.Recipe | None,
    problems: int | None,
    split: str,
  ) -> 'Model':
    """Finds problems and lengths; no weights yet.

    Args:
      checkpoint: of the model.
      first: see `recipe_of`.
      problems: of each task, see `num_problems`.
      split: of the problems.

    Raises:
      UserError: flags, tasks and model do not go together, or a task has no
        problems in the split.
    """
    recipe = recipe_of(checkpoint, first)
    data = recipe.data
    # How long prompts may be is not known before they are read.
    wide = dataclasses.replace(
      recipe, data=dataclasses.replace(data, max_prompt_length=_WIDEST)
    )
    setup = loop.Setup.build(wide, checkpoint.root, phases=False)
    evaluator = loop.Evaluator(setup, None, split)
    names = evaluator.task_names()
    if missing := [name for name in data.tasks if name not in names]:
      raise UserError(
        f'{", ".join(missing)}: no {split} problems; leave that out with '
        '--tasks, or give another --split'
      )
    counts, notes, longest = {}, [], 0
    for task in names:
      limit = evaluator.limit(task)
      counts[task] = num_problems(problems, split, limit)
      if counts[task] == limit:
        notes.append(
          f'{task} has {counts[task]} problems; all of them are evaluated'
        )
      source = evaluator.dataset(task).dataset
      longest = max(
        longest,
        *(int(source[i]['prompt_length']) for i in range(counts[task])),
      )
    prompt = data.max_prompt_length
    if longest > prompt:
      prompt = -(-longest // _PROMPT_STEP) * _PROMPT_STEP
    response = data.max_response_length
    if response == _TO_BE_FOUND:
      with Pretrained(checkpoint.root) as pretrained:
        context = pretrained.context
      response = _LONGEST if context is None else context - prompt
      response = min(_LONGEST, response)
      if response < 2:
        raise UserError(
          f'a prompt of {longest} tokens leaves no room in the context of '
          f'{context} tokens of {checkpoint.root}'
        )
      notes.append(
        f'responses of up to {response:,} tokens; --max_tokens changes it'
      )
    recipe = dataclasses.replace(
      recipe,
      data=dataclasses.replace(
        data, max_prompt_length=prompt, max_response_length=response
      ),
    )
    sampling = dataclasses.replace(
      setup.evaluation_sampling, max_response_length=response
    )
    setup = dataclasses.replace(
      setup, recipe=recipe, evaluation_sampling=sampling
    )
    return cls(checkpoint, recipe, setup, counts, tuple(notes))
