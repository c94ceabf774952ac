"""Safetensors files read by slice and written as a stream.

The format (8-byte length, JSON header, raw row-major data) is read here
directly, because the package maps whole files into memory, which cannot be
done on `gs://`, and has no writer that takes one tensor at a time.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from metastone_jax.checkpoints.huggingface.source import (
  CARRIED,
  TensorInfo,
  TensorSource,
)
from metastone_jax.errors import UserError

INDEX = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, as in the package


class SafetensorsFile:
  """One open file.

  Attributes:
    tensors: name -> shape and dtype.
    metadata: texts that came with them.

  Raises:
    UserError: not a safetensors file, or cut off.
  """

  def __init__(self, path: epath.Path):
    self.path = path
    self._stream = path.open('rb')
    size = path.stat().length
    head = self._stream.read(8)
    length = struct.unpack('<Q', head)[0] if len(head) == 8 else 0
    if not 2 <= length <= _MAX_HEADER:
      raise UserError(f'{path} is no safetensors file; copy it again')
    if 8 + length > size:
      raise UserError(f'{path} is truncated inside its header; copy it again')
    try:
      header = json.loads(self._stream.read(length))
      self.metadata = dict(header.pop('__metadata__', None) or {})
      self._place = {k: v['data_offsets'] for k, v in header.items()}
      codes = {k: v['dtype'] for k, v in header.items()}
      shapes = {k: tuple(v['shape']) for k, v in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f'{path} has a damaged safetensors header; copy it again'
      ) from error
    self._start = 8 + length
    self.tensors: dict[str, TensorInfo] = {}
    for name, code in codes.items():
      if code not in _DTYPES:
        raise UserError(
          f'{path}: tensor {name} has dtype {code}, which is not supported '
          f'(supported: {", ".join(_DTYPES)}); use unquantised weights'
        )
      info = TensorInfo(shapes[name], _DTYPES[code])
      first, last = self._place[name]
      if last - first != info.nbytes:
        raise UserError(
          f'{path}: tensor {name} of shape {info.shape} has {last - first} '
          f'bytes, not {info.nbytes}; copy the file again'
        )
      if self._start + last > size:
        raise UserError(
          f'{path} is truncated: tensor {name} ends at byte '
          f'{self._start + last}, the file at {size}; copy it again'
        )
      self.tensors[name] = info

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """A tensor or a part of it; only the rows in question are read."""
    info = self.tensors[name]
    shape = info.shape
    row_bytes = info.nbytes // shape[0] if shape and shape[0] else info.nbytes
    start, stop = 0, shape[0] if shape else 1
    if index and shape:
      start, stop, _ = index[0].indices(shape[0])
    array = np.empty((stop - start, *shape[1:]) if shape else (), info.dtype)
    self._stream.seek(self._start + self._place[name][0] + start * row_bytes)
    raw = memoryview(array.reshape(-1).view(np.uint8))
    done = 0
    while done < len(raw):
      count = self._stream.readinto(raw[done:])
      if not count:
        raise UserError(f'{self.path} ended early while reading {name}')
      done += count
    if index:
      array = array[(slice(None), *index[1:])]
    return array

  def close(self) -> None:
    """Closes the file."""
    self._stream.close()


class SafetensorsFolder(TensorSource):
  """A Hugging Face folder: config.json and one or more safetensors files.

  Raises:
    UserError: no such folder, no config.json, only .bin files, a missing or
      damaged shard.
  """

  def __init__(self, folder: epath.PathLike):
    root = epath.Path(folder)
    self.name = str(root)
    if not root.is_dir():
      raise UserError(f'{root} is no folder; give a Hugging Face model folder')
    self.config = _read_json(root / 'config.json')
    self.files = {
      name: (root / name).read_bytes()
      for name in CARRIED
      if (root / name).exists()
    }
    self._files: list[SafetensorsFile] = []
    self._of_tensor: dict[str, SafetensorsFile] = {}
    self.tensors = {}
    for name in self._shards(root):
      file = SafetensorsFile(root / name)
      self._files.append(file)
      for tensor, info in file.tensors.items():
        self._of_tensor[tensor] = file
        self.tensors[tensor] = info

  def _shards(self, root: epath.Path) -> list[str]:
    index = root / INDEX
    single = root / 'model.safetensors'
    if index.exists():
      weights = _read_json(index).get('weight_map')
      if not isinstance(weights, dict) or not weights:
        raise UserError(f'{index} has no weight_map; copy it again')
      names = sorted(set(weights.values()))
      missing = [name for name in names if not (root / name).exists()]
      if missing:
        raise UserError(
          f'{root / missing[0]} is missing ({len(missing)} of {len(names)} '
          f'shards named in {INDEX}); copy the folder again'
        )
      return names
    if single.exists():
      return [single.name]
    others = sorted(
      p.name for p in root.iterdir() if p.name.endswith('.safetensors')
    )
    if 'score_module.safetensors' in others:
      others.remove('score_module.safetensors')
    if len(others) == 1:
      return others
    if any(p.name.endswith(('.bin', '.pt', '.pth')) for p in root.iterdir()):
      raise UserError(
        f'{root} has weights as .bin or .pt only, which can run code when read;'
        ' convert them once: python -c "from transformers import '
        f"AutoModelForCausalLM as M; M.from_pretrained('{root}')."
        f"save_pretrained('{root}')\""
      )
    raise UserError(
      f'{root} has no model.safetensors and no {INDEX}; give a Hugging Face '
      'model folder'
    )

  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """See TensorSource."""
    return self._of_tensor[name].read(name, index)

  def close(self) -> None:
    """Closes every shard."""
    for file in self._files:
      file.close()


def _read_json(path: epath.Path) -> dict[str, Any]:
  if not path.exists():
    raise UserError(
      f'{path} does not exist; give a Hugging Face model folder (config.json '
      'and safetensors)'
    )
  try:
    tree = json.loads(path.read_text())
    if isinstance(tree, dict):
      return tree
  except ValueError:
    pass
  raise UserError(f'{path} is no JSON object; copy it again')


def plan_shards(
  sizes: Mapping[str, int], max_bytes: int
) -> list[tuple[str, list[str]]]:
  """(file name, tensors) of each shard, in order; one file if all fit.

  Args:
    sizes: tensor -> bytes, in the order of writing.
    max_bytes: of a shard; a larger tensor has a shard of its own.
  """
  groups: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if groups[-1] and filled + size > max_bytes:
      groups.append([])
      filled = 0
    groups[-1].append(name)
    filled += size
  if len(groups) == 1:
    return [('model.safetensors', groups[0])]
  return [
    (f'model-{i + 1:05d}-of-{len(groups):05d}.safetensors', group)
    for i, group in enumerate(groups)
  ]


def write_file(
  path: epath.Path,
  infos: Mapping[str, TensorInfo],
  arrays: Iterable[np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> int:
  """Writes one file; `arrays` come one at a time in the order of `infos`.

  Returns:
    Bytes written.
  """
  header: dict[str, Any] = {
    '__metadata__': {'format': 'pt', **(metadata or {})}
  }
  offset = 0
  for name, info in infos.items():
    header[name] = {
      'dtype': _CODES[info.dtype],
      'shape': list(info.shape),
      'data_offsets': [offset, offset + info.nbytes],
    }
    offset += info.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # data is aligned
  with path.open('wb') as stream:
    stream.write(struct.pack('<Q', len(text)))
    stream.write(text)
    for (name, info), array in zip(infos.items(), arrays, strict=True):
      if array.shape != info.shape or array.dtype != info.dtype:
        raise ValueError(f'{name}: {array.shape} {array.dtype} is not {info}')
      stream.write(
        memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
      )
  return 8 + len(text) + offset
