"""The released score head file: `score_module.pt`, or the same as safetensors.

Keys 0.weight (2D, D), 0.bias (2D), 3.weight (1, 2D), 3.bias (1): what
`torch.nn.Sequential(Linear, ReLU, Dropout, Linear)` loads (SPEC 7). The .pt is
read with torch's weights-only reader, which runs no code from the file; torch
is imported only here and only for it (extra `export`).
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


def read_score_module(
  path: epath.Path, config: ModelConfig
) -> dict[str, np.ndarray]:
  """The head's tensors by their released keys, float32.

  Args:
    path: a .pt or .safetensors file.
    config: of the backbone, whose width the head must have.

  Raises:
    UserError: no such file, not a state dict, other keys, another width, or a
      head that reads another layer.
  """
  if not path.exists():
    raise UserError(f'there is no score head file {path}')
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
    state = {
      name: value.detach().float().numpy() for name, value in tree.items()
    }
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
        f'{config.width}'
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
