"""Pretrained tensors straight to the devices' shards.

A tensor is read by slice, put on the devices in the file's own layout and
dtype, and transposed, cast and written into its place (a layer of a stack)
there, so the host holds about one tensor at a time.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.checkpoints.huggingface.names import (
  Tensor,
  backbone_tensors,
  score_tensors,
)
from metastone_jax.checkpoints.huggingface.source import TensorSource
from metastone_jax.errors import UserError
from metastone_jax.model import (
  ModelConfig,
  Params,
  abstract_params,
  init_params,
  param_axes,
)
from metastone_jax.parallel import Sharder

# Buffers that old files hold and the config determines.
_IGNORED = ('rotary_emb.inv_freq',)


def check_tensors(source: TensorSource, config: ModelConfig) -> None:
  """Refuses, before anything is read, a source that is not this model.

  Raises:
    UserError: the first missing, unexpected or misshapen tensor, by name.
  """
  wanted = {tensor.name: tensor for tensor in backbone_tensors(config)}
  for name, tensor in wanted.items():
    info = source.tensors.get(name)
    if info is None:
      hint = (
        '; tie_word_embeddings=true in config.json would do without it'
        if name == 'lm_head.weight'
        else ''
      )
      raise UserError(
        f'{source.name} has no tensor {name} of shape {tensor.shape}, which '
        f'its config asks for{hint}'
      )
    if info.shape != tensor.shape:
      rows = (
        f' (vocab_size={config.vocab_size})'
        if tensor.padded is not None
        else ''
      )
      raise UserError(
        f'{source.name}: tensor {name} has shape {info.shape}, but its config '
        f'gives {tensor.shape}{rows}; the weights and config.json do not '
        'belong together'
      )
  for name in source.tensors:
    if name in wanted or name.endswith(_IGNORED):
      continue
    if name == 'lm_head.weight' and config.tied_embeddings:
      head = source.read(name)
      if np.array_equal(head, source.read('model.embed_tokens.weight')):
        continue
      raise UserError(
        f'{source.name} has an lm_head.weight of its own, but its config says '
        'tie_word_embeddings=true; set that to false'
      )
    raise UserError(
      f'{source.name} has an unexpected tensor {name} of shape '
      f'{source.tensors[name].shape}: this model would ignore it'
    )


def load_backbone(
  source: TensorSource,
  config: ModelConfig,
  sharder: Sharder,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Params:
  """Everything but the score head, sharded, in `config.param_dtype`.

  Args:
    source: the pretrained model.
    config: its shapes.
    sharder: mesh and rules.
    progress: called with (bytes done, bytes in all).

  Raises:
    UserError: see `check_tensors`; a damaged file.
  """
  check_tensors(source, config)
  abstract, axes = abstract_params(config), param_axes(config)
  tensors = list(backbone_tensors(config))
  total = sum(source.tensors[tensor.name].nbytes for tensor in tensors)
  params: Params = {'low': {}, 'high': {}}
  done = 0
  for tensor in tensors:
    leaf, names = abstract, axes
    for key in tensor.path:
      leaf, names = leaf[key], names[key]
    *folders, last = tensor.path
    node = functools.reduce(lambda tree, key: tree[key], folders, params)
    sharding = sharder.sharding(names, leaf.shape)
    if tensor.layer is None:
      array = _to_devices(source, tensor, names, sharder)
      node[last] = _turned(tensor.order, leaf.dtype, sharding)(array)
    else:
      array = _to_devices(source, tensor, names[1:], sharder)
      turned = _turned(
        tensor.order, leaf.dtype, sharder.sharding(names[1:], leaf.shape[1:])
      )(array)
      if last not in node:
        node[last] = _empty(leaf.shape, leaf.dtype, sharding)
      node[last] = _put_layer(sharding)(
        node[last], turned, jax.device_put(np.int32(tensor.layer))
      )
    # The next read must not pile up behind the devices.
    jax.block_until_ready(node[last])
    done += source.tensors[tensor.name].nbytes
    progress(done, total)
  return params


def _to_devices(source, tensor: Tensor, names, sharder: Sharder) -> jax.Array:
  """A tensor as `leaf_view`, in its file's dtype, split as its leaf will be."""
  shape = tensor.leaf_view
  view_names = [names[tensor.order.index(axis)] for axis in range(len(shape))]
  rows: dict[tuple[int, int], np.ndarray] = {}

  def read(index: tuple[slice, ...]) -> np.ndarray:
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    # Devices that split the columns of the same rows share one read.
    if bounds[0] not in rows:
      rows[bounds[0]] = _read_rows(source, tensor, *bounds[0])
    return rows[bounds[0]][(slice(None), *index[1:])]

  sharding = sharder.sharding(view_names, shape)
  if sharding is None:
    return jax.device_put(read(tuple(slice(0, n) for n in shape)))
  return jax.make_array_from_callback(shape, sharding, read)


def _read_rows(source, tensor: Tensor, start: int, stop: int) -> np.ndarray:
  """Rows of `leaf_view`; those beyond the vocabulary are 0."""
  inside = min(stop, tensor.view[0])
  shape = (max(inside - start, 0), *tensor.view[1:])
  if not shape[0]:  # nothing but padding
    dtype = source.tensors[tensor.name].dtype
    return np.zeros((stop - start, *shape[1:]), dtype)
  index = (slice(start, inside), *(slice(0, n) for n in shape[1:]))
  part = source.read(tensor.name, tensor.file_index(index)).reshape(shape)
  if inside < stop:
    padding = [(0, stop - inside)] + [(0, 0)] * (part.ndim - 1)
    part = np.pad(part, padding)
  return part


def _empty(shape, dtype, sharding):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


@functools.cache
def _turned(order, dtype, sharding):
  """The tensor as (a layer of) its leaf."""
  return jax.jit(
    lambda x: jnp.transpose(x, order).astype(dtype), out_shardings=sharding
  )


@functools.cache
def _put_layer(sharding):
  """A program of its own: fused with the transpose it is 4x slower on a CPU."""
  return jax.jit(
    lambda stack, x, layer: jax.lax.dynamic_update_index_in_dim(
      stack, x, layer, 0
    ),
    donate_argnums=0,
    out_shardings=sharding,
  )


def load_score_head(
  state: dict[str, np.ndarray], config: ModelConfig, sharder: Sharder
) -> Params:
  """The score head's parameters from its released tensors."""
  axes = param_axes(config)['score_head']
  head = {}
  for tensor in score_tensors(config):
    leaf = tensor.to_leaf(state[tensor.name]).astype(config.param_dtype)
    name = tensor.path[-1]
    sharding = sharder.sharding(axes[name], leaf.shape)
    head[name] = jax.device_put(np.ascontiguousarray(leaf), sharding)
  return head


def fresh_score_head(
  config: ModelConfig, seed: int, sharder: Sharder
) -> Params:
  """A new score head, as `init_params` makes it for this seed."""
  shardings = None
  if sharder.mesh is not None:
    abstract = abstract_params(config)['score_head']
    shardings = sharder.tree_shardings(
      abstract, param_axes(config)['score_head']
    )
  # Nothing else of init_params is computed: XLA drops what is not returned.
  make = jax.jit(
    lambda key: init_params(config, key)['score_head'], out_shardings=shardings
  )
  return make(jax.random.key(seed))
