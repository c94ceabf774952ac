"""The train state: a plain dict, checkpointed as it is.

{'params': masters, 'opt': {'backbone', 'head'}, 'step': int32 updates done}
"""

from typing import Any

import jax
import jax.numpy as jnp

from metastone_jax.model import (
  ModelConfig,
  Params,
  init_params,
  param_axes,
)
from metastone_jax.parallel import Sharder
from metastone_jax.training import optimiser

TrainState = dict[str, Any]


def _create(config: ModelConfig, opt_config, key) -> TrainState:
  return _around(init_params(config, key), opt_config)


def _around(params: Params, opt_config) -> TrainState:
  return {
    'params': params,
    'opt': optimiser.init(opt_config, params),
    'step': jnp.zeros((), jnp.int32),
  }


def abstract_state(
  config: ModelConfig, opt_config: optimiser.OptimiserConfig, sharder: Sharder
) -> TrainState:
  """Shapes, dtypes and (with a mesh) shardings of the state."""
  shapes = jax.eval_shape(
    lambda key: _create(config, opt_config, key), jax.random.key(0)
  )
  if sharder.mesh is None:
    return shapes
  shardings = state_shardings(config, shapes, sharder)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def state_shardings(
  config: ModelConfig, shapes: TrainState, sharder: Sharder
) -> TrainState:
  """Shardings: moments like their parameters, counters everywhere."""
  axes = {
    jax.tree_util.keystr(path): names
    for path, names in jax.tree_util.tree_leaves_with_path(
      param_axes(config), is_leaf=lambda x: isinstance(x, tuple)
    )
  }

  def sharding(path, leaf):
    # An optimiser leaf's path ends in the path of its parameter, without the
    # 'score_head' level for the head group.
    for start in range(len(path)):
      tail = jax.tree_util.keystr(path[start:])
      for name in (tail, "['score_head']" + tail):
        if name in axes and len(axes[name]) == len(leaf.shape):
          return sharder.sharding(axes[name], leaf.shape)
    return sharder.sharding((None,) * len(leaf.shape), leaf.shape)

  return jax.tree_util.tree_map_with_path(sharding, shapes)


def init_state(
  config: ModelConfig,
  opt_config: optimiser.OptimiserConfig,
  seed: int,
  sharder: Sharder,
  params: Params | None = None,
) -> TrainState:
  """A fresh state, created on its devices (never whole on one host).

  Args:
    config: shapes.
    opt_config: of the optimiser.
    seed: of the parameters.
    sharder: mesh and rules.
    params: parameters to start from; they are given up to the state.
  """
  create = lambda key: _create(config, opt_config, key)  # noqa: E731
  shardings = None
  if sharder.mesh is not None:
    shapes = jax.eval_shape(create, jax.random.key(0))
    shardings = state_shardings(config, shapes, sharder)
  if params is not None:
    around = lambda params: _around(params, opt_config)  # noqa: E731
    return jax.jit(around, out_shardings=shardings, donate_argnums=0)(params)
  return jax.jit(create, out_shardings=shardings)(jax.random.key(seed))
