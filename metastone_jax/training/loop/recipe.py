"""A config file's dict, checked and typed. Every key is known or refused."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, preset
from metastone_jax.tasks import takes_folder
from metastone_jax.training.loop.convert import build, convert
from metastone_jax.training.loop.layouts import apply_layout
from metastone_jax.training.loop.recipe_data import DataConfig, DrawConfig
from metastone_jax.training.loop.recipe_phase import PhaseConfig
from metastone_jax.training.loop.recipe_verify import VerifyConfig
from metastone_jax.training.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Held-out evaluation.

  Attributes:
    problems: held-out problems of each task.
    stage_samples: responses a problem after each phase but the last.
    final_samples: responses a problem after the last phase, on the task with
      the largest share; the other tasks get stage_samples.
    small_problems: problems of the evaluations inside a phase, all tasks.
    small_samples: their responses a problem.
    ks: candidates k that are reported.
  """

  problems: int = 512
  stage_samples: int = 16
  final_samples: int = 64
  small_problems: int = 128
  small_samples: int = 8
  ks: tuple[int, ...] = (1, 2, 8, 32)

  def __post_init__(self):
    if not self.ks:
      raise UserError('evaluation.ks is empty: name the k to report')
    for k in self.ks:
      if k < 1:
        raise UserError(f'evaluation.ks: k must be at least 1, got {k}')
    for name in (
      'problems',
      'stage_samples',
      'final_samples',
      'small_problems',
      'small_samples',
    ):
      if getattr(self, name) < 1:
        raise UserError(
          f'evaluation.{name}={getattr(self, name)} must be at least 1'
        )
    for name in ('stage_samples', 'final_samples', 'small_samples'):
      if getattr(self, name) < min(self.ks):
        raise UserError(
          f'evaluation.{name}={getattr(self, name)} is below every k of '
          f'evaluation.ks={list(self.ks)}; draw more samples or report a '
          'smaller k'
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save.

  Attributes:
    every: steps between checkpoints; phase ends are always saved and kept.
    max_to_keep: newest checkpoints kept beside the phase ends.
  """

  every: int = 50
  max_to_keep: int = 2

  def __post_init__(self):
    for name in ('every', 'max_to_keep'):
      if getattr(self, name) < 1:
        raise UserError(
          f'checkpoint.{name}={getattr(self, name)} must be at least 1'
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything a run is made from.

  Attributes:
    name: of the recipe, in reports.
    seed: of parameters, draws, dropout and data order.
    model: `preset` (fresh parameters; vocab_size may be left to the
      tokenizer) or `source` (a Hugging Face folder, a .gguf file or a folder
      of launch.ingest), and ModelConfig fields that differ.
    start_from: checkpoint folder whose parameters start the run ('' = fresh
      parameters); `start_from_step` names the step, -1 = the newest.
    mesh: axis -> size over all devices; one may be -1.
    rollout_mesh: axis -> size over the devices of ONE host, on which each host
      draws its own problems; dict(tensor=4) splits the weights over 4. Empty =
      whole weights on each device, rows split.
    sinks: further metric sinks, 'tensorboard' and 'wandb'.
  """

  name: str
  seed: int
  model: Mapping[str, Any]
  data: DataConfig
  phases: tuple[PhaseConfig, ...]
  sampling: DrawConfig = DrawConfig()
  verify: VerifyConfig = VerifyConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  optimiser: OptimiserConfig = OptimiserConfig()
  start_from: str = ''
  start_from_step: int = -1
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {'fsdp': -1}
  )
  rollout_mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
  sinks: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.phases:
      raise UserError('phases is empty: name at least one phase')
    names = [phase.name for phase in self.phases]
    if len(set(names)) < len(names):
      # Evaluations are kept under the name of their phase.
      raise UserError(f'phase_order={names} names a phase twice; copy it')
    if not 0 <= self.seed < 2**31:
      raise UserError(f'seed={self.seed} must be in 0..2^31-1')
    self._check_lengths()
    self._check_cold_head()

  def _check_lengths(self):
    """Refuses now what the first rollout would refuse after a warm-up."""
    longest = self.data.max_response_length
    for phase in self.phases:
      where = f'phases.{phase.name}'
      if not 0 <= phase.overlong_buffer <= longest:
        raise UserError(
          f'{where}.overlong_buffer={phase.overlong_buffer} must be between 0 '
          f'(off) and data.max_response_length={longest} tokens'
        )
      objective = phase.objective_config
      if (
        phase.policy_coefficient
        and objective.aggregation == 'sequence_sum_fixed'
        and objective.fixed_length is None
      ):
        raise UserError(
          f'{where}.objective_options: {phase.objective} sums over sequences '
          'and needs fixed_length, in tokens; usual is '
          f'fixed_length={longest}, the longest response'
        )
      total = self.data.max_prompt_length + longest
      if 0 < phase.packed_length < total:
        raise UserError(
          f'{where}.packed_length={phase.packed_length} must hold the longest '
          f'trajectory, {total} tokens (data.max_prompt_length + '
          'data.max_response_length); 0 = off'
        )

  def _check_cold_head(self):
    # Whether a head comes with the parameters is not known here.
    if not (self.start_from or self.model.get('source')):
      self.check_zero_head()

  def check_zero_head(self) -> None:
    """Refuses SPR on a fresh head that is zero: no logit would ever be kept."""
    if self.model.get('score_init') != 'zero':
      return
    for phase in self.phases:
      if not phase.score_coefficient:
        continue
      if phase.score_loss != 'spr':
        return
      raise UserError(
        f"phases.{phase.name}.score_loss='spr' on a cold zero-initialised "
        'head: a logit of exactly 0 is never kept, so it would never learn. '
        "Put a phase with score_loss='bce' or 'soft' before it, start_from a "
        "checkpoint with a trained head, or set model.score_init='torch'"
      )

  @property
  def source(self) -> str | None:
    """The pretrained model that the run starts from, if any.

    Raises:
      UserError: the recipe needs one and names none.
    """
    source = self.model.get('source')
    if source is None and self.model.get('preset'):
      return None
    self.check_complete()
    return source

  def check_complete(self) -> None:
    """Refuses a recipe whose model or problems the user has yet to name.

    Raises:
      UserError: naming everything that is missing, with an example of each.
    """
    missing = []
    if self.model.get('source') == '':
      missing.append(
        'model.source, a Hugging Face folder or one of launch.ingest '
        '(--config.model.source=models/QwQ-32B)'
      )
    if not self.data.tasks:
      missing.append(
        'data.source, a task to take problems from '
        '(--config.data.source=chain_sum)'
      )
    if missing:
      raise UserError(f'recipe {self.name} needs {" and ".join(missing)}')

  @property
  def model_choices(self) -> dict[str, Any]:
    """ModelConfig fields set by the recipe.

    Raises:
      UserError: a value of another type.
    """
    options = {
      key: value
      for key, value in self.model.items()
      if key not in ('preset', 'source')
    }
    hints = typing.get_type_hints(ModelConfig)
    return {
      key: convert(hints[key], value, f'model.{key}') if key in hints else value
      for key, value in options.items()
    }

  def model_config(self, vocab_size: int) -> ModelConfig:
    """Shapes of a preset, with the tokenizer's vocabulary unless it sets one.

    Raises:
      UserError: no preset, or an unknown one.
    """
    name = self.model.get('preset')
    if name is None:
      raise UserError(
        'model.preset is missing: name a shape, such as tiny, or give '
        'model.source'
      )
    return preset(name, **{'vocab_size': vocab_size, **self.model_choices})


def parse_recipe(
  config: Mapping[str, Any], *, layout: str | None = None
) -> Recipe:
  """The typed recipe of a config file's (plain or ml_collections) dict.

  `phases` is a mapping name -> PhaseConfig fields; `phase_order` lists the
  names that run, in order; `layout` and `layouts` see layouts.py; data.source
  is short for data.tasks with one task, data.folder for the option `folder` of
  all tasks that read files.

  Args:
    config: the dict.
    layout: see `apply_layout`.

  Raises:
    UserError: an unknown, missing or ill-typed key, or values that do not go
      together; named by its full path.
  """
  if hasattr(config, 'to_dict'):
    config = config.to_dict()
  config = apply_layout(config, layout)
  data = dict(convert(Mapping[str, Any], config.get('data', {}), 'data'))
  if source := data.pop('source', ''):
    data['tasks'] = {source: 1.0}
  if folder := data.pop('folder', ''):
    data['task_options'] = _with_folder(data, folder)
  config['data'] = data
  phases = convert(
    Mapping[str, Mapping[str, Any]], config.pop('phases', {}), 'phases'
  )
  order = convert(
    tuple[str, ...], config.pop('phase_order', tuple(phases)), 'phase_order'
  )
  for name in order:
    if name not in phases:
      raise UserError(
        f'phase_order names {name!r}; phases has {", ".join(phases)}'
      )
  built = tuple(
    build(PhaseConfig, phases[name], f'phases.{name}.', name=name)
    for name in order
  )
  return build(Recipe, config, '', phases=built)


def _with_folder(data: Mapping[str, Any], folder: str) -> dict[str, Any]:
  """task_options in which every task that reads files knows where they are."""
  options = dict(
    convert(
      Mapping[str, Mapping[str, Any]],
      data.get('task_options', {}),
      'data.task_options',
    )
  )
  for name in data.get('tasks', {}):
    own = options.get(name, {})
    if takes_folder(name, own):
      options[name] = {'folder': folder, **own}
  return options
