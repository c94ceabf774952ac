"""Which Hugging Face tensor is which of our parameters, and how it lies.

One table for reading and writing. A Hugging Face tensor, reshaped to `view`
and transposed by `order`, is our leaf (of one layer): `q_proj.weight` (H*h, D)
viewed as (H, h, D) and transposed by (2, 0, 1) is q_kernel (D, H, h).
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from metastone_jax.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of the exchange format and its place among our parameters.

  Attributes:
    name: in the file.
    shape: in the file.
    view: the same elements with heads apart; only neighbouring axes of `view`
      are merged in `shape`, and the last of a merged pair is never split.
    order: leaf = transpose(reshape(tensor, view), order).
    path: of our leaf, such as ('low', 'q_kernel').
    layer: index into the stacked leaf; None for a leaf that is not stacked.
    padded: of the leaf's first file axis, rows with the vocabulary's padding.
  """

  name: str
  shape: tuple[int, ...]
  view: tuple[int, ...]
  order: tuple[int, ...]
  path: tuple[str, ...]
  layer: int | None = None
  padded: int | None = None

  @property
  def leaf_view(self) -> tuple[int, ...]:
    """`view` with the padded vocabulary."""
    if self.padded is None:
      return self.view
    return (self.padded, *self.view[1:])

  def to_leaf(self, array: np.ndarray) -> np.ndarray:
    """The leaf of a whole tensor (without vocabulary padding)."""
    return np.transpose(array.reshape(self.view), self.order)

  def file_index(self, view_index: tuple[slice, ...]) -> tuple[slice, ...]:
    """Slices of the file's tensor for slices of the (unpadded) view."""
    index, axis = [], 0
    for size in self.shape:
      part = view_index[axis]
      inner, covered = self.view[axis], axis + 1
      while inner < size:  # merged axes: the later ones are whole
        inner *= self.view[covered]
        covered += 1
      step = math.prod(self.view[axis + 1 : covered])
      start, stop, _ = part.indices(self.view[axis])
      index.append(slice(start * step, stop * step))
      axis = covered
    return tuple(index)


def backbone_tensors(config: ModelConfig) -> Iterator[Tensor]:
  """Every tensor of the policy, in the order of the layers."""
  D, V, F = config.width, config.vocab_size, config.feed_forward
  H, K, h = config.num_heads, config.num_kv_heads, config.head_width
  vocabulary = dict(padded=config.padded_vocab_size)
  yield Tensor(
    'model.embed_tokens.weight',
    (V, D),
    (V, D),
    (0, 1),
    ('embedding',),
    **vocabulary,
  )
  for number in range(config.num_layers):
    low = number < config.split
    stack = 'low' if low else 'high'
    layer = number if low else number - config.split

    def tensor(name, shape, view, order, leaf):
      return Tensor(
        f'model.layers.{number}.{name}',  # noqa: B023 (used at once)
        shape,
        view,
        order,
        (stack, leaf),  # noqa: B023
        layer,  # noqa: B023
      )

    yield tensor('input_layernorm.weight', (D,), (D,), (0,), 'attention_norm')
    for letter, heads in (('q', H), ('k', K), ('v', K)):
      name = f'self_attn.{letter}_proj'
      yield tensor(
        f'{name}.weight',
        (heads * h, D),
        (heads, h, D),
        (2, 0, 1),
        f'{letter}_kernel',
      )
      if config.qkv_bias:
        yield tensor(
          f'{name}.bias', (heads * h,), (heads, h), (0, 1), f'{letter}_bias'
        )
    if config.qk_norm:
      for letter in 'qk':
        yield tensor(
          f'self_attn.{letter}_norm.weight', (h,), (h,), (0,), f'{letter}_norm'
        )
    yield tensor(
      'self_attn.o_proj.weight', (D, H * h), (D, H, h), (1, 2, 0), 'o_kernel'
    )
    yield tensor(
      'post_attention_layernorm.weight', (D,), (D,), (0,), 'feed_forward_norm'
    )
    for name in ('gate', 'up'):
      yield tensor(
        f'mlp.{name}_proj.weight', (F, D), (F, D), (1, 0), f'{name}_kernel'
      )
    yield tensor('mlp.down_proj.weight', (D, F), (D, F), (1, 0), 'down_kernel')
  yield Tensor('model.norm.weight', (D,), (D,), (0,), ('final_norm',))
  if not config.tied_embeddings:
    yield Tensor(
      'lm_head.weight',
      (V, D),
      (V, D),
      (1, 0),
      ('policy_kernel',),
      **vocabulary,
    )


def score_tensors(config: ModelConfig) -> tuple[Tensor, ...]:
  """The released score head: Sequential(Linear, ReLU, Dropout, Linear)."""
  D, E = config.width, config.score_units
  return (
    Tensor('0.weight', (E, D), (E, D), (1, 0), ('score_head', 'hidden_kernel')),
    Tensor('0.bias', (E,), (E,), (0,), ('score_head', 'hidden_bias')),
    Tensor('3.weight', (1, E), (1, E), (1, 0), ('score_head', 'output_kernel')),
    Tensor('3.bias', (1,), (1,), (0,), ('score_head', 'output_bias')),
  )
