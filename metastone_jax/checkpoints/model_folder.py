"""A folder of ours: shapes, parameters, and the small files that go with them.

`model.json` (shapes; the folder counts for nothing without it), `checkpoints/`
and `source/` (tokenizer, config.json, ...). `launch.ingest` makes one, and
every run folder is one.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from metastone_jax.checkpoints.manager import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.model import (
  ModelConfig,
  Params,
  RopeScaling,
  abstract_params,
  param_axes,
)
from metastone_jax.parallel import Sharder
from metastone_jax.telemetry.files import (
  write_bytes_atomic,
  write_json_atomic,
)

MODEL = 'model.json'
CHECKPOINTS = 'checkpoints'
SOURCE = 'source'

# Leaf -> the axis that the vocabulary's padding lengthens.
_VOCABULARY_AXIS = {'embedding': 0, 'policy_kernel': 1}


def is_ours(folder: epath.PathLike) -> bool:
  """Whether a folder is one of ours."""
  return (epath.Path(folder) / MODEL).exists()


def write_folder(
  folder: epath.Path,
  config: ModelConfig,
  files: Mapping[str, bytes],
  *,
  trained_score_head: bool = True,
) -> None:
  """Writes source/ and, last, model.json."""
  for name, content in files.items():
    path = folder / SOURCE / name
    if not path.exists() or path.read_bytes() != content:
      write_bytes_atomic(path, content)
  write_json_atomic(
    folder / MODEL,
    {
      'model': dataclasses.asdict(config),
      'trained_score_head': trained_score_head,
    },
  )


def read_folder(
  folder: epath.Path,
) -> tuple[ModelConfig, bool, dict[str, bytes]]:
  """What `write_folder` wrote: (shapes, trained_score_head, files).

  Raises:
    UserError: a damaged model.json.
  """
  path = folder / MODEL
  try:
    tree: dict[str, Any] = json.loads(path.read_text())
    model = dict(tree['model'])
    if model['rope_scaling'] is not None:
      model['rope_scaling'] = RopeScaling(**model['rope_scaling'])
    config, trained = ModelConfig(**model), bool(tree['trained_score_head'])
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f'{path} is damaged ({error}); restore it') from error
  files = {}
  if (folder / SOURCE).exists():
    files = {
      file.name: file.read_bytes()
      for file in (folder / SOURCE).iterdir()
      if not file.name.startswith('.')  # half-written
    }
  return config, trained, files


def restore_params(
  root: epath.Path,
  saved: ModelConfig,
  config: ModelConfig,
  sharder: Sharder,
  *,
  step: int | None = None,
  verified: bool = False,
  head_dtype: str | None = None,
) -> Params:
  """Parameters of a checkpoint, in the layout and dtype that is wanted.

  Args:
    root: the checkpoints.
    saved: shapes they were saved with.
    config: shapes that are wanted; the padding of the vocabulary, the feature
      layer (the border of the two stacks) and the dtype may differ. A score
      head of another width is left out.
    sharder: mesh and rules.
    step: which; None = the newest.
    verified: `step` comes from `CheckpointManager.verified_step`.
    head_dtype: of the score head; None = `config.param_dtype`.

  Raises:
    UserError: no such checkpoint, damaged, or of another shape.
  """
  abstract, axes = abstract_params(saved), param_axes(saved)
  if saved.score_units != config.score_units:
    del abstract['score_head'], axes['score_head']
  with CheckpointManager(root, read_only=True) as manager:
    if not verified:
      step = manager.verified_step(step)
    arrays = manager.arrays(step)

    def as_saved(path, leaf, names):
      name = '/'.join(['train', 'params', *(key.key for key in path)])
      dtype = arrays[name]['dtype'] if name in arrays else leaf.dtype
      return jax.ShapeDtypeStruct(
        leaf.shape, dtype, sharding=sharder.sharding(names, leaf.shape)
      )

    wanted = jax.tree_util.tree_map_with_path(as_saved, abstract, axes)
    tree, _, _ = manager.restore(
      step, {'train': {'params': wanted}}, partial=True, verified=True
    )
  params = tree['train']['params']
  if saved.split != config.split:
    for name in params['low']:
      params['low'][name], params['high'][name] = _restack(config.split)(
        params['low'][name], params['high'][name]
      )
  return _laid_out(params, config, sharder, head_dtype)


def _restack(split: int):
  def restack(low, high):
    both = jnp.concatenate([low, high])
    return both[:split], both[split:]

  return jax.jit(restack)


def _laid_out(params, config, sharder: Sharder, head_dtype) -> Params:
  """Pads or cuts the vocabulary, casts and reshards, one leaf at a time."""
  abstract, axes = abstract_params(config), param_axes(config)

  def visit(tree, shapes, names, head):
    for key in list(tree):
      if isinstance(tree[key], dict):
        visit(tree[key], shapes[key], names[key], key == 'score_head')
        continue
      leaf, x = shapes[key], tree.pop(key)  # the old array may go
      dtype = jnp.dtype(head_dtype) if head and head_dtype else leaf.dtype
      sharding = sharder.sharding(names[key], leaf.shape)
      if x.shape != leaf.shape or x.dtype != dtype:
        x = _fit(_VOCABULARY_AXIS.get(key), leaf.shape, dtype, sharding)(x)
      elif sharding is not None and x.sharding != sharding:
        x = jax.device_put(x, sharding)
      tree[key] = x

  visit(params, abstract, axes, False)
  return params


def _fit(axis, shape, dtype, sharding):
  def fit(x):
    if axis is not None:
      rows = shape[axis]
      x = jax.lax.slice_in_dim(x, 0, min(rows, x.shape[axis]), axis=axis)
      pads = [(0, 0)] * x.ndim
      pads[axis] = (0, rows - x.shape[axis])
      x = jnp.pad(x, pads)
    return x.astype(dtype)

  return jax.jit(fit, out_shardings=sharding)
