"""A recipe on a machine, in numbers, before anything is lowered."""

import dataclasses

import jax.numpy as jnp

from kernels.attention import Layout
from kernels.attention import choose as choose_attention
from metastone_jax.compile_check import accounting
from metastone_jax.compile_check.targets import Target
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, preset
from metastone_jax.parallel.mesh import MESH_AXES, mesh_shape
from metastone_jax.sampling.engine import EngineConfig
from metastone_jax.training.loop import draws
from metastone_jax.training.loop.recipe import PhaseConfig, Recipe


@dataclasses.dataclass(frozen=True)
class Plan:
  """A recipe on a machine, in numbers.

  Attributes:
    recipe: the recipe.
    phase: the phase that is compiled: the last with rollouts.
    model: shapes.
    target: the machine.
    lengths: response lengths that seconds are for.
    mesh: axis -> size over all devices.
    rollout_mesh: axis -> size over the devices of one host.
    problems_per_host: of one step.
  """

  recipe: Recipe
  phase: PhaseConfig
  model: ModelConfig
  target: Target
  lengths: accounting.Lengths
  mesh: dict[str, int]
  rollout_mesh: dict[str, int]
  problems_per_host: int

  @classmethod
  def make(
    cls, recipe: Recipe, target: Target, lengths: accounting.Lengths
  ) -> 'Plan':
    """Checks that the recipe can be laid out on the machine.

    Raises:
      UserError: no shape, no phase with rollouts, or a mesh of another size.
    """
    phases = [phase for phase in recipe.phases if phase.prompts_per_step]
    if not phases:
      raise UserError(f'recipe {recipe.name} has no phase with rollouts')
    phase = phases[-1]
    host = target.one_host()
    problems, rest = divmod(phase.prompts_per_step, target.hosts)
    if rest:
      raise UserError(
        f'phases.{phase.name}.prompts_per_step={phase.prompts_per_step} do not '
        f'divide over the {target.hosts} hosts of {target.name}'
      )
    model = model_of(recipe)
    if target.chip.platform == 'cuda' and model.attention == 'auto':
      # cuDNN, which a real card gets, does not compile without a card.
      model = dataclasses.replace(model, attention='triton')
    rollout = dict(recipe.rollout_mesh) or {'data': -1}
    return cls(
      recipe=recipe,
      phase=phase,
      model=model,
      target=target,
      lengths=lengths,
      mesh=_sizes(recipe.mesh, target.devices),
      rollout_mesh=_sizes(rollout, host.devices),
      problems_per_host=problems,
    )

  @property
  def shards(self) -> int:
    """Devices of a host that share its slots; the others share weights."""
    return self.rollout_mesh['data'] * self.rollout_mesh['fsdp']

  @property
  def responses_per_host(self) -> int:
    """That one host draws a step."""
    return self.problems_per_host * self.phase.samples_per_prompt

  @property
  def engine(self) -> EngineConfig:
    """The engine of a host during a rollout."""
    data, samples = self.recipe.data, self.phase.samples_per_prompt
    problems = self.problems_per_host
    problems += self.phase.partial_rollouts // self.target.hosts
    return draws.engine_shape(
      problems=problems,
      samples=samples,
      slots=self.recipe.sampling.num_slots(problems * samples),
      devices=self.shards,
      positions=data.max_prompt_length,
      columns=data.max_response_length,
      partial=self.phase.partial_rollouts > 0,
    )

  @property
  def state_bytes(self) -> float:
    """Masters, both moments and the frozen reference, a device."""
    model = self.model
    count = model.num_backbone_parameters + model.num_score_parameters
    width = jnp.dtype(model.param_dtype).itemsize
    moments = jnp.dtype(self.recipe.optimiser.first_moment_dtype).itemsize
    return count * (2 * width + moments) / self.target.devices

  @property
  def reference_bytes(self) -> float:
    """The frozen reference in the compute dtype, a device; 0 without KL."""
    if not self.phase.objective_config.kl_coefficient:
      return 0.0
    width = jnp.dtype(self.model.dtype).itemsize
    return self.model.num_backbone_parameters * width / self.target.devices


def _sizes(mesh, devices: int) -> dict[str, int]:
  return dict(zip(MESH_AXES, mesh_shape(mesh, devices), strict=True))


def model_of(recipe: Recipe) -> ModelConfig:
  """Shapes of `model.preset`, whether or not a source is named.

  Raises:
    UserError: the recipe names no preset.
  """
  name = recipe.model.get('preset')
  if not name:
    raise UserError(
      f'recipe {recipe.name} has no model.preset: name the shape to compile, '
      'for example --config.model.preset=32b'
    )
  choices = {
    key: value
    for key, value in recipe.model_choices.items()
    if key != 'vocab_size'
  }
  return preset(name, **choices)


def attention_kind(
  plan: Plan, length: int, layout: Layout, *, split: int
) -> str:
  """The kind of whole-sequence attention the training programs get."""
  return choose_attention(
    plan.model.attention,
    platform=plan.target.chip.platform,
    length=length,
    head_width=plan.model.head_width,
    dtype=plan.model.dtype,
    layout=dataclasses.replace(layout, zigzag=split),
    shards=split,
  )
