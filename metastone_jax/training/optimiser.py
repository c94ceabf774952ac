"""AdamW for backbone and score head apart: clipping, moments, learning rate.

Source: SPEC 4 (gradient clip 1.0, backbone and head separately; separate
learning rates; weight decay 0.01). Learning rates are arguments of the update,
so a schedule needs no recompilation and no hidden counter.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metastone_jax.errors import UserError

GROUPS = ('backbone', 'head')


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
  """AdamW, the same form for both groups.

  Attributes:
    clip_norm: largest global gradient norm of each group.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled, times the learning rate; matrices only.
    first_moment_dtype: 'float32' or 'bfloat16', which saves 2 bytes a
      parameter.
  """

  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  first_moment_dtype: str = 'float32'

  def __post_init__(self):
    if self.clip_norm <= 0:
      raise UserError(f'optimiser.clip_norm={self.clip_norm} must be positive')
    if self.first_moment_dtype not in ('float32', 'bfloat16'):
      raise UserError(
        f'optimiser.first_moment_dtype={self.first_moment_dtype!r}; use '
        'float32 or bfloat16'
      )


def split_groups(params: dict[str, Any]) -> dict[str, Any]:
  """{'backbone': ..., 'head': ...} of a parameter (or gradient) tree."""
  backbone = {k: v for k, v in params.items() if k != 'score_head'}
  return {'backbone': backbone, 'head': params['score_head']}


def join_groups(groups: dict[str, Any]) -> dict[str, Any]:
  """The inverse of `split_groups`."""
  return {**groups['backbone'], 'score_head': groups['head']}


def _transform(config: OptimiserConfig) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      # None: as the parameters, which are float64 in some tests.
      mu_dtype='bfloat16' if config.first_moment_dtype == 'bfloat16' else None,
    ),
    optax.add_decayed_weights(
      config.weight_decay,
      mask=lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key.endswith(('kernel', 'embedding')), tree
      ),
    ),
  )


def init(config: OptimiserConfig, params: dict[str, Any]) -> dict[str, Any]:
  """Fresh moments of both groups."""
  transform = _transform(config)
  return {
    name: transform.init(group) for name, group in split_groups(params).items()
  }


def apply(
  config: OptimiserConfig,
  grads: dict[str, Any],
  opt_state: dict[str, Any],
  params: dict[str, Any],
  learning_rates: dict[str, jax.Array],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, jax.Array]]:
  """One AdamW update.

  Args:
    config: see OptimiserConfig.
    grads: gradient, in the tree of the parameters.
    opt_state: from `init` or the last update.
    params: float32 masters.
    learning_rates: scalar per group; 0 leaves the group as it is.

  Returns:
    new params, new opt_state, and the gradient norms before clipping.
  """
  transform = _transform(config)
  grads, groups = split_groups(grads), split_groups(params)
  new_groups, new_state, norms = {}, {}, {}
  for name in GROUPS:
    norms[f'grad_norm/{name}'] = optax.tree.norm(grads[name])
    updates, new_state[name] = transform.update(
      grads[name], opt_state[name], groups[name]
    )
    rate = learning_rates[name]
    new_groups[name] = jax.tree.map(
      lambda p, u, rate=rate: p - jnp.asarray(rate, p.dtype) * u,
      groups[name],
      updates,
    )
  return join_groups(new_groups), new_state, norms
