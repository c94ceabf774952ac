"""The programs of one iteration of a recipe, lowered for a machine.

  update    one optimiser update of the phase
  log_prob  the frozen reference (or old policy) over the whole rollout
  rollout   one wave of one host's problems, on that host's devices

Shapes alone are needed: no weights, no tokenizer, no data.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.attention import PLAIN, Layout
from kernels.attention import choose as choose_attention
from metastone_jax.compile_check import accounting
from metastone_jax.compile_check.targets import Target
from metastone_jax.errors import UserError
from metastone_jax.model import (
  ModelConfig,
  abstract_params,
  param_axes,
  preset,
  unstack_params,
)
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.parallel.mesh import MESH_AXES, mesh_shape
from metastone_jax.sampling import SamplingConfig
from metastone_jax.training.loop import programs
from metastone_jax.training.loop.recipe import PhaseConfig, Recipe
from metastone_jax.training.loop.row_plan import RowPlan
from metastone_jax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a recipe on a machine.

  Attributes:
    name: 'update', 'log_prob' or 'rollout'.
    lower: traces and lowers it.
    devices: of its mesh.
    work: of one run, per device, without the bytes between devices.
    times: runs in one iteration.
    attention: kind of whole-sequence attention in it.
    resident: bytes a device keeps beside it while it runs.
  """

  name: str
  lower: Callable[[], Any]
  devices: int
  work: accounting.Work
  times: float
  attention: str
  resident: float


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
  def slots(self) -> int:
    """Responses that one host draws at a time."""
    return self.recipe.sampling.num_slots(
      self.problems_per_host * self.phase.samples_per_prompt
    )

  @property
  def wave(self) -> tuple[int, int]:
    """(problems, candidates of each) that fill the slots."""
    candidates = min(self.slots, self.phase.samples_per_prompt)
    return self.slots // candidates, candidates

  @property
  def waves(self) -> int:
    """How often a host fills its slots a step."""
    responses = self.problems_per_host * self.phase.samples_per_prompt
    return -(-responses // self.slots)

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


def _struct(sharder: Sharder, shape, dtype, *axes) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
    shape, dtype, sharding=sharder.sharding(axes, shape)
  )


def abstract_batch(
  row_plan: RowPlan,
  sharder: Sharder,
  *,
  trajectories: int,
  only_log_prob: bool = False,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch of so many trajectories, see `training.step`."""
  phase = row_plan.phase
  shape = row_plan.num_rows(trajectories), row_plan.length
  integer, real, flag = jnp.int32, jnp.float32, jnp.bool_
  fields = {
    'tokens_BT': integer,
    'target_BT': integer,
    'position_BT': integer,
    'segment_BT': integer,
    'temperature_B': real,
  }
  if not only_log_prob:
    fields |= {
      'row_B': jnp.uint32,
      'policy_mask_BT': flag,
      'advantage_B': real,
      'sampler_log_prob_BT': real,
      'step_mask_BT': flag,
      'correct_B': flag,
      'score_weight_B': real,
    }
    if phase.updates_per_rollout > 1:
      fields['old_log_prob_BT'] = real
    elif phase.score_loss != 'bce':
      fields['step_logit_BT'] = real
    if phase.objective_config.kl_coefficient:
      fields['ref_log_prob_BT'] = real
  if row_plan.sequences_per_row > 1:
    fields = {
      name if name.endswith('_BT') else f'{name}T': dtype
      for name, dtype in fields.items()
    } | {'sequence_BT': integer}
  return {
    name: _struct(sharder, shape, dtype, 'batch', 'length')
    if name.endswith('_BT')
    else _struct(sharder, shape[:1], dtype, 'batch')
    for name, dtype in fields.items()
  }


def _params(config: ModelConfig, sharder: Sharder, *, unstacked: bool):
  """Parameters in the compute dtype, as decoding or training holds them."""
  shapes = abstract_params(config)
  if unstacked:
    shapes = jax.eval_shape(functools.partial(unstack_params, config), shapes)
  return jax.tree.map(
    lambda x, axes: _struct(sharder, x.shape, config.dtype, *axes),
    shapes,
    param_axes(config, unstacked=unstacked),
  )


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


def recipe_programs(plan: Plan, devices: list, host_devices: list):
  """All programs of one iteration.

  Args:
    plan: the recipe on the machine.
    devices: of the machine, described.
    host_devices: of one of its hosts.

  Returns:
    A list of `Program`.
  """
  phase, model = plan.phase, plan.model
  sharder = Sharder(make_mesh(plan.mesh, devices))
  row_plan = RowPlan.of(phase, plan.recipe.data, sharder)
  tensor = plan.mesh['tensor']
  kind = attention_kind(
    plan, row_plan.length, row_plan.layout, split=plan.mesh['sequence']
  )
  pieces = row_plan.num_micro_batches
  common = dict(
    length=row_plan.length,
    devices=len(devices),
    tensor=tensor,
    flash=kind != 'xla',
  )
  state = abstract_state(model, plan.recipe.optimiser, sharder)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)

  def lower_update():
    program = programs.update_program(
      row_plan,
      model_config=model,
      opt_config=plan.recipe.optimiser,
      sharder=sharder,
    )
    batch = abstract_batch(
      row_plan, sharder, trajectories=phase.rows_per_update
    )
    return program.lower(
      state,
      batch,
      {'backbone': scalar, 'head': scalar},
      jax.ShapeDtypeStruct((), jnp.uint32),
    )

  found = [
    Program(
      'update',
      lower_update,
      len(devices),
      accounting.update(
        model,
        rows=row_plan.num_rows(phase.rows_per_update),
        micro_batches=pieces,
        **common,
      ),
      phase.updates_per_rollout,
      kind,
      plan.reference_bytes,
    )
  ]
  passes = bool(phase.objective_config.kl_coefficient) + (
    phase.updates_per_rollout > 1
  )
  rows = row_plan.num_rows(phase.rollouts_per_step)

  def lower_log_prob():
    program = programs.log_prob_program(
      row_plan, model_config=model, sharder=sharder
    )
    return program.lower(
      _params(model, sharder, unstacked=False),
      abstract_batch(
        row_plan,
        sharder,
        trajectories=phase.rollouts_per_step,
        only_log_prob=True,
      ),
    )

  if passes:
    found.append(
      Program(
        'log_prob',
        lower_log_prob,
        len(devices),
        accounting.forward_pass(
          model,
          rows=rows,
          micro_batches=row_plan.log_prob_micro_batches,
          **common,
        ),
        passes,
        kind,
        # The reference is an argument; masters and moments wait.
        plan.state_bytes,
      )
    )
  found.append(_rollout(plan, host_devices))
  return found


def _rollout(plan: Plan, devices: list) -> Program:
  """One wave of one host."""
  data, draw, model = plan.recipe.data, plan.recipe.sampling, plan.model
  sharder = Sharder(make_mesh(plan.rollout_mesh, devices))
  P, N = plan.wave
  S, R = data.max_prompt_length, data.max_response_length
  # Which ids end a step or a response changes no shape.
  sampling = SamplingConfig(
    max_response_length=R,
    eos_id=1,
    pad_id=0,
    step_ids=(2,),
    think_start_id=3,
    think_end_id=4,
    temperature=draw.temperature,
    top_k=draw.top_k,
    top_p=draw.top_p,
  )

  def lower():
    integer = jnp.int32
    return programs.rollout_program(
      sampling, model_config=model, sharder=sharder
    ).lower(
      _params(model, sharder, unstacked=True),
      _struct(sharder, (P, S), integer, 'batch', None),
      _struct(sharder, (P,), integer, 'batch'),
      jax.ShapeDtypeStruct((), integer),
      _struct(sharder, (P,), integer, 'batch'),
      jax.ShapeDtypeStruct((N,), integer),
    )

  tensor, count = plan.rollout_mesh['tensor'], len(devices)
  steps = plan.lengths.expected_longest(P * N)
  step = accounting.decode_step(
    model,
    problems=P,
    candidates=N,
    prompt=S / 2,
    # Rows that have ended are still read until the wave ends.
    context=steps / 2,
    devices=count,
    tensor=tensor,
  )
  prefill = accounting.forward_pass(
    model,
    rows=P,
    length=S,
    micro_batches=1,
    devices=count,
    tensor=tensor,
    flash=True,
  )
  return Program(
    'rollout',
    lower,
    count,
    step * steps + prefill,
    plan.waves,
    attention_kind(plan, S, PLAIN, split=1),
    plan.state_bytes + plan.reference_bytes,
  )
