"""What the places of a row are: which place may read which, beside segments.

A row is a list of T stored places. Its original order matters (causality) and
may differ from the stored one: with a row split over n devices the places are
stored in zig-zag order, 2n pieces of which device i holds i and 2n - 1 - i, so
that every device has the same share of the causal triangle (Brandon et al.
2023, "Striped Attention"; here as in Llama 3's context parallelism).

With a shared prompt the first `prompt_length` places are read by all that
follows, and what follows are blocks of `response_length` that do not read one
another.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static; the same for every row of a batch.

  Attributes:
    packed: rows may hold several segments; else one, padded on the right.
    zigzag: devices a row is split over in zig-zag order; 1 = original order.
    prompt_length: places of a prompt that all responses share; 0 = none.
    response_length: places of each response after it.
  """

  packed: bool = False
  zigzag: int = 1
  prompt_length: int = 0
  response_length: int = 0

  def __post_init__(self):
    if self.zigzag < 1:
      raise ValueError(f'zigzag={self.zigzag} must be at least 1')
    if (self.prompt_length > 0) != (self.response_length > 0):
      raise ValueError(
        'a shared prompt needs both prompt_length and response_length, got '
        f'{self.prompt_length} and {self.response_length}'
      )

  @property
  def is_causal(self) -> bool:
    """Whether order alone decides: stored place t reads s where s <= t."""
    return self.zigzag == 1 and not self.prompt_length

  def check(self, length: int) -> None:
    """Raises ValueError unless rows of that length can be laid out so."""
    if self.zigzag > 1 and length % (2 * self.zigzag):
      raise ValueError(
        f'{length} places do not divide into the {2 * self.zigzag} pieces of '
        f'a zig-zag over {self.zigzag} devices'
      )
    if self.prompt_length and (
      (length - self.prompt_length) % self.response_length
    ):
      raise ValueError(
        f'{length} places are no prompt of {self.prompt_length} and whole '
        f'responses of {self.response_length}'
      )

  def places(self, length: int) -> np.ndarray:
    """int32 (T,): the original place of each stored place."""
    self.check(length)
    place = np.arange(length, dtype=np.int32)
    if self.zigzag == 1:
      return place
    pieces = place.reshape(2 * self.zigzag, -1)
    early, late = pieces[: self.zigzag], pieces[: self.zigzag - 1 : -1]
    return np.stack([early, late], axis=1).reshape(-1)

  def reads(self, query, key):
    """Whether original place `query` may read `key`; broadcasts, any backend.

    Args:
      query: integer original places.
      key: the same.
    """
    causal = query >= key
    if not self.prompt_length:
      return causal
    S, R = self.prompt_length, self.response_length
    # Floor division sends every place of the prompt to a negative block.
    return causal & ((key < S) | ((query - S) // R == (key - S) // R))


# Rows of one segment each, in their order.
PLAIN = Layout()
