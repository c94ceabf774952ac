"""Parameters as plain nested dicts: fresh, abstract, unstacked, their axes."""

import functools

import jax
from flax import nnx

from metastone_jax.model.config import ModelConfig
from metastone_jax.model.transformer import Params, ReflectiveModel

# Logical axes of every leaf, by its name; stacked leaves get 'layer' in front.
_AXES = {
  'embedding': ('vocabulary', 'embed'),
  'policy_kernel': ('embed', 'vocabulary'),
  'final_norm': ('activation',),
  'attention_norm': ('activation',),
  'feed_forward_norm': ('activation',),
  'q_kernel': ('embed', 'heads', 'head_width'),
  'k_kernel': ('embed', 'kv_heads', 'head_width'),
  'v_kernel': ('embed', 'kv_heads', 'head_width'),
  'o_kernel': ('heads', 'head_width', 'embed'),
  'q_bias': ('heads', 'head_width'),
  'k_bias': ('kv_heads', 'head_width'),
  'v_bias': ('kv_heads', 'head_width'),
  'q_norm': ('head_width',),
  'k_norm': ('head_width',),
  'gate_kernel': ('embed', 'feed_forward'),
  'up_kernel': ('embed', 'feed_forward'),
  'down_kernel': ('feed_forward', 'embed'),
  'hidden_kernel': ('embed', 'score_hidden'),
  'hidden_bias': ('score_hidden',),
  'output_kernel': ('score_hidden', None),
  'output_bias': (None,),
}


def unstack_params(config: ModelConfig, params: Params) -> Params:
  """The same parameters with a tree a layer, `blocks`, instead of two stacks.

  What decoding wants: see `ReflectiveModel.layers`. Inside a jitted function,
  or on abstract parameters under `jax.eval_shape`.
  """
  blocks = {}
  for name, first in (('low', 0), ('high', config.split)):
    count = jax.tree.leaves(params[name])[0].shape[0]
    for i in range(count):
      blocks[first + i] = jax.tree.map(lambda x, i=i: x[i], params[name])
  rest = {k: v for k, v in params.items() if k not in ('low', 'high')}
  return {**rest, 'blocks': blocks}


def abstract_params(config: ModelConfig) -> Params:
  """Shapes and dtypes of the parameters, nothing allocated."""
  model = nnx.eval_shape(lambda: ReflectiveModel(config, rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh parameters as a plain nested dict; jit it with out_shardings."""
  return nnx.to_pure_dict(
    nnx.state(ReflectiveModel(config, rngs=nnx.Rngs(params=key)))
  )


def param_axes(config: ModelConfig, *, unstacked: bool = False) -> Params:
  """Logical axis names of every parameter, in the tree of the parameters.

  Args:
    config: shapes.
    unstacked: of the tree that `unstack_params` gives.
  """

  def axes(path, leaf):
    names = _AXES[path[-1].key]
    return ('layer',) * (len(leaf.shape) - len(names)) + names

  abstract = abstract_params(config)
  if unstacked:
    abstract = jax.eval_shape(
      functools.partial(unstack_params, config), abstract
    )
  return jax.tree_util.tree_map_with_path(axes, abstract)
