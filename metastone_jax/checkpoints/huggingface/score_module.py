"""The released score head file: `score_module.pt`, or the same as safetensors.

Keys 0.weight (E, D), 0.bias (E), 3.weight (1, E), 3.bias (1), E = 2D as
released: what `torch.nn.Sequential(Linear, ReLU, Dropout, Linear)` loads
(SPEC 7). The file says how many hidden units E there are. A .pt is read with
torch's weights-only reader, which runs no code from the file; torch is imported
only here and only for it (extra `export`).
"""

from collections.abc import Mapping

import numpy as np
from etils import epath

from metastone_jax.checkpoints.huggingface.names import score_tensors
from metastone_jax.checkpoints.huggingface.safetensors_files import (
  SafetensorsFile,
)
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig

PICKLED = 'score_module.pt'
SAFE = 'score_module.safetensors'
# Metadata of SAFE: the block whose input the head reads.
FEATURE_LAYER = 'feature_layer'


def import_torch(purpose: str = 'to read'):
  """torch, or a UserError that says how to get it."""
  try:
    import torch
  except ImportError as error:
    other = '' if purpose != 'to read' else f', or give the head as {SAFE}'
    raise UserError(
      f'torch is needed {purpose} {PICKLED}: pip install '
      f"'metastone_jax[export]'{other}"
    ) from error
  return torch


def score_width(path: epath.Path, width: int) -> int | None:
  """`ModelConfig.score_width` of a head file; None where it has 2D units.

  Args:
    path: a .pt or .safetensors file.
    width: D of the backbone.

  Raises:
    UserError: no such file, or not a state dict.
  """
  _check_there(path)
  name = '0.weight'
  if path.name.endswith('.safetensors'):
    file = SafetensorsFile(path)
    shape = file.tensors[name].shape if name in file.tensors else ()
    file.close()
  else:
    state = _read_pickled(path)
    shape = state[name].shape if name in state else ()
  # Of a file without it, reading says what is wrong.
  return None if not shape or shape[0] == 2 * width else shape[0]


def _check_there(path: epath.Path) -> None:
  if not path.exists():
    raise UserError(f'there is no score head file {path}')


def _read_pickled(path: epath.Path) -> dict[str, np.ndarray]:
  """The tensors of a .pt file, float32."""
  torch = import_torch()
  try:
    with path.open('rb') as stream:
      tree = torch.load(stream, map_location='cpu', weights_only=True)
  except Exception as error:  # whatever a damaged file makes torch raise
    raise UserError(
      f'{path} is no plain state dict of tensors, and nothing else is read '
      '(a pickle can run code); save it with torch.save('
      'module.state_dict(), path)'
    ) from error
  if not isinstance(tree, Mapping) or not all(
    isinstance(value, torch.Tensor) for value in tree.values()
  ):
    raise UserError(
      f'{path} holds a {type(tree).__name__}, not a state dict of tensors; '
      'save it with torch.save(module.state_dict(), path)'
    )
  return {name: value.detach().float().numpy() for name, value in tree.items()}


def read_score_module(
  path: epath.Path, config: ModelConfig
) -> dict[str, np.ndarray]:
  """The head's tensors by their released keys, float32.

  Args:
    path: a .pt or .safetensors file.
    config: of the backbone; the head must have its width and score units.

  Raises:
    UserError: no such file, not a state dict, other keys, another width, or a
      head that reads another layer.
  """
  _check_there(path)
  if path.name.endswith('.safetensors'):
    file = SafetensorsFile(path)
    state = {name: file.read(name) for name in file.tensors}
    layer = file.metadata.get(FEATURE_LAYER, str(config.split))
    file.close()
    if layer != str(config.split):
      raise UserError(
        f'{path} reads the stream that enters block {layer}, this config that '
        f'of block {config.split}; set model.feature_layer={layer}'
      )
  else:
    state = _read_pickled(path)
  wanted = {tensor.name: tensor for tensor in score_tensors(config)}
  for name in wanted:
    if name not in state:
      raise UserError(
        f'{path} has no {name}; a score head has {", ".join(wanted)}'
      )
  for name in state:
    if name not in wanted:
      raise UserError(
        f'{path} has an unexpected {name}; a score head has {", ".join(wanted)}'
      )
  for name, tensor in wanted.items():
    if state[name].shape != tensor.shape:
      raise UserError(
        f'{path}: {name} has shape {state[name].shape}, not {tensor.shape}: '
        f'the head belongs to another width than this backbone of '
        f'{config.width} and {config.score_units} score units'
      )
  return {name: np.asarray(state[name], np.float32) for name in wanted}


def write_pickled(
  path: epath.Path, state: Mapping[str, np.ndarray], torch
) -> None:
  """Writes float32 tensors as the released code saves `score_module.pt`."""
  # Copied: torch does not take arrays that may not be written to.
  tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
  with path.open('wb') as stream:
    torch.save(tensors, stream)
