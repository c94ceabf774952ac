"""A model as a Hugging Face folder with both heads.

The folder is made under another name and appears whole or not at all;
config.json, without which nothing loads it, is the last file to be written.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath

from metastone_jax.checkpoints.huggingface import score_module
from metastone_jax.checkpoints.huggingface.config import write_config
from metastone_jax.checkpoints.huggingface.names import (
  Tensor,
  backbone_tensors,
  score_tensors,
)
from metastone_jax.checkpoints.huggingface.safetensors_files import (
  INDEX,
  plan_shards,
  write_file,
)
from metastone_jax.checkpoints.huggingface.source import TensorInfo
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig
from metastone_jax.telemetry.files import whole_folder

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}
_SHARD_BYTES = 5_000_000_000

# A tensor of the file, whole and in the file's layout, on the host.
ReadTensor = Callable[[Tensor], np.ndarray]


def export_folder(
  out: epath.PathLike,
  config: ModelConfig,
  read_tensor: ReadTensor,
  *,
  dtype: str = 'bfloat16',
  files: Mapping[str, bytes] | None = None,
  card: str = '',
  overwrite: bool = False,
  shard_bytes: int = _SHARD_BYTES,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> epath.Path:
  """Writes the folder.

  Args:
    out: its path; must not exist, or be empty.
    config: shapes of the model.
    read_tensor: gives one tensor at a time.
    dtype: of the tensors, 'float32' or 'bfloat16'.
    files: small files that came with the model (tokenizer, config.json, ...).
    card: text of README.md.
    overwrite: replace a folder that is there.
    shard_bytes: largest safetensors file.
    progress: called with (bytes done, bytes in all).

  Returns:
    The folder.

  Raises:
    UserError: the folder exists, an unknown dtype, or a full disk; nothing is
      left behind.
  """
  if dtype not in DTYPES:
    raise UserError(f'--dtype={dtype}: use one of {", ".join(DTYPES)}')
  out = check_free(out, overwrite=overwrite)
  torch = score_module.import_torch('to write')  # before any work
  files = dict(files or {})
  base = files.pop('config.json', None)
  tree = write_config(
    config, dtype, base=json.loads(base) if base is not None else None
  )
  with whole_folder(out, 'nothing was exported') as folder:
    _write_weights(
      folder, config, read_tensor, DTYPES[dtype], shard_bytes, progress, torch
    )
    for name, content in files.items():
      (folder / name).write_bytes(content)
    if card:
      (folder / 'README.md').write_text(card)
    (folder / 'config.json').write_text(json.dumps(tree, indent=2) + '\n')
  return out


def check_free(out: epath.PathLike, *, overwrite: bool = False) -> epath.Path:
  """The path of an export that may be made.

  Raises:
    UserError: something is there that is not an earlier export to replace.
  """
  out = epath.Path(out)
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return out
  names = {path.name for path in out.iterdir()} if out.is_dir() else set()
  # Never a run or another folder of somebody's work.
  exported = {'config.json', score_module.SAFE} <= names
  if exported and 'model.json' not in names:
    if overwrite:
      return out
    raise UserError(f'{out} exists already; give another --out, or --overwrite')
  raise UserError(f'{out} exists already and is no export; give another --out')


def _write_weights(
  folder, config, read_tensor, dtype, shard_bytes, progress, torch
):
  tensors = {tensor.name: tensor for tensor in backbone_tensors(config)}
  infos = {k: TensorInfo(t.shape, dtype) for k, t in tensors.items()}
  total = sum(info.nbytes for info in infos.values())
  done = 0

  def arrays(names: list[str]) -> Iterator[np.ndarray]:
    nonlocal done
    for name in names:
      tensor = tensors[name]
      yield read_tensor(tensor).astype(dtype, copy=False)
      done += infos[name].nbytes
      progress(done, total)

  shards = plan_shards({k: v.nbytes for k, v in infos.items()}, shard_bytes)
  for file, names in shards:
    write_file(folder / file, {k: infos[k] for k in names}, arrays(names))
  if len(shards) > 1:
    index = {
      'metadata': {'total_size': total},
      'weight_map': {name: file for file, names in shards for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')
  # The head is small and judged by its last digits: kept in float32.
  head = {
    tensor.name: read_tensor(tensor).astype(np.float32)
    for tensor in score_tensors(config)
  }
  write_file(
    folder / score_module.SAFE,
    {name: TensorInfo(x.shape, x.dtype) for name, x in head.items()},
    head.values(),
    # Which residual stream it reads, for whoever serves it.
    {score_module.FEATURE_LAYER: str(config.split)},
  )
  score_module.write_pickled(folder / score_module.PICKLED, head, torch)


def tensor_reader(params: Mapping[str, Any]) -> ReadTensor:
  """ReadTensor of parameters on devices (every shard on this host's)."""

  def read(tensor: Tensor) -> np.ndarray:
    leaf: Any = params
    for key in tensor.path:
      leaf = leaf[key]
    if tensor.layer is not None:
      leaf = _layer(leaf, tensor.layer)
    # On the device, where a transpose is several times faster than numpy's.
    turned = _turned(tuple(np.argsort(tensor.order).tolist()))(leaf)
    return np.asarray(jax.device_get(turned))[: tensor.view[0]].reshape(
      tensor.shape
    )

  return read


@jax.jit
def _layer(stack: jax.Array, layer: int) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False)


@functools.cache
def _turned(order: tuple[int, ...]):
  return jax.jit(lambda x: jnp.transpose(x, order))
