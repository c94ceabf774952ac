"""The compiled programs of a run: what training jits, launch.compile compiles.

Each takes shapes, not a run: nothing here needs a tokenizer, a task or data.
"""

import functools

import jax

from metastone_jax.model import ModelConfig
from metastone_jax.parallel import Sharder
from metastone_jax.training import step as step_lib
from metastone_jax.training.loop.row_plan import RowPlan
from metastone_jax.training.optimiser import OptimiserConfig
from metastone_jax.training.state import abstract_state


def update_program(
  plan: RowPlan,
  *,
  model_config: ModelConfig,
  opt_config: OptimiserConfig,
  sharder: Sharder,
):
  """The jitted update: (state, batch, rates, seed) -> (state, metrics).

  The state is donated and keeps its shardings.
  """
  shardings = None
  if sharder.mesh is not None:
    state = abstract_state(model_config, opt_config, sharder)
    shardings = (jax.tree.map(lambda x: x.sharding, state), None)
  return jax.jit(
    functools.partial(
      step_lib.update,
      model_config=model_config,
      opt_config=opt_config,
      config=plan.update_config,
      sharder=sharder,
    ),
    donate_argnums=0,
    out_shardings=shardings,
  )


def log_prob_program(
  plan: RowPlan, *, model_config: ModelConfig, sharder: Sharder
):
  """The jitted pass (params, batch) -> old or reference log-probs."""
  return jax.jit(
    functools.partial(
      step_lib.log_prob_pass,
      model_config=model_config,
      num_micro_batches=plan.log_prob_micro_batches,
      sharder=sharder,
      with_step_logit=False,
      layout=plan.layout,
    )
  )
