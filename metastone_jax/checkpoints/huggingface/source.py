"""What a pretrained model is, whatever file it came in.

A source gives named tensors in Hugging Face's names and layout, read by slice,
a Hugging Face `config.json` as a dict, and the small files (tokenizer,
generation settings, chat template) that travel with the weights.
"""

import abc
import dataclasses
from typing import Any

import numpy as np

# Small files that are carried from a source to a run and to an export.
CARRIED = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
  'LICENSE',
)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Shape and dtype of a stored tensor."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    """Bytes of the whole tensor."""
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class TensorSource(abc.ABC):
  """A pretrained model on disk; a context manager.

  Attributes:
    name: its path, for messages.
    config: a Hugging Face config.json.
    tensors: name -> shape and dtype of every tensor.
    files: name -> content of the carried files it has (see CARRIED).
  """

  name: str
  config: dict[str, Any]
  tensors: dict[str, TensorInfo]
  files: dict[str, bytes]

  @abc.abstractmethod
  def read(
    self, name: str, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """A tensor, or the part of it that `index` (one slice a dimension) names.

    Raises:
      UserError: the file is damaged.
    """

  def close(self) -> None:  # noqa: B027 (nothing to release, by default)
    """Releases files."""

  def __enter__(self) -> 'TensorSource':
    return self

  def __exit__(self, *exc) -> None:
    self.close()
