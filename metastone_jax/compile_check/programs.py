"""The programs of one iteration of a recipe, lowered for a machine.

  update    one optimiser update of the phase
  log_prob  the frozen reference (or old policy) over the whole rollout
  prefill   a call of the rollout engine that reads prompts, on one host
  decode    a chunk of its turns, on one host

Shapes alone are needed: no weights, no tokenizer, no data.
"""

import jax
import jax.numpy as jnp

from metastone_jax.compile_check import accounting
from metastone_jax.compile_check.engine_programs import engine_programs
from metastone_jax.compile_check.plan import Plan, attention_kind
from metastone_jax.compile_check.program import (
  Program,
  compute_params,
  struct,
)
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.training.loop import programs
from metastone_jax.training.loop.row_plan import RowPlan
from metastone_jax.training.state import abstract_state


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
    elif phase.score_loss != 'bce' and not phase.partial_rollouts:
      fields['step_logit_BT'] = real
    if phase.objective_config.kl_coefficient:
      fields['ref_log_prob_BT'] = real
  if row_plan.sequences_per_row > 1:
    fields = {
      name if name.endswith('_BT') else f'{name}T': dtype
      for name, dtype in fields.items()
    } | {'sequence_BT': integer}
  return {
    name: struct(sharder, shape, dtype, 'batch', 'length')
    if name.endswith('_BT')
    else struct(sharder, shape[:1], dtype, 'batch')
    for name, dtype in fields.items()
  }


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
      compute_params(model, sharder, unstacked=False),
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
  return found + engine_programs(plan, host_devices)
