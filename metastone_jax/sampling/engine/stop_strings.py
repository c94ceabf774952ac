"""Texts that end a response, whatever tokens spell them."""

import dataclasses
from collections.abc import Callable, Sequence

from metastone_jax.errors import UserError
from metastone_jax.sampling.engine.candidates import Draft


@dataclasses.dataclass(frozen=True)
class StopStrings:
  """What `Engine.run` takes as `stop`.

  A response ends with the first token that completes one of the strings, which
  it keeps (as `stop_strings` of transformers). Traces end by </think> only.

  Attributes:
    strings: none of them empty.
    decode: token ids -> text.
  """

  strings: tuple[str, ...]
  decode: Callable[[Sequence[int]], str]

  def __post_init__(self):
    if not all(self.strings):
      raise UserError(
        'a stop string is empty; every response would end at once'
      )

  def __call__(self, draft: Draft) -> int | None:
    """How many tokens of the candidate to keep; None = it goes on."""
    if draft.request.ends == 'trace' or not self.strings:
      return None
    new = len(draft.parts[-1][0])
    # A string that ends in a new token may begin in an old one; tokens without
    # a text of their own (special ones, parts of a character) are few.
    longest = max(len(x.encode()) for x in self.strings)
    first = max(0, draft.drawn - new - 2 * longest - 16)
    tokens = draft.token_R[first:].tolist()
    if not self._has(tokens):
      return None
    for count in range(len(tokens) - new + 1, len(tokens)):
      if self._has(tokens[:count]):
        return first + count
    return draft.drawn

  def _has(self, tokens: Sequence[int]) -> bool:
    text = self.decode(tokens)
    return any(string in text for string in self.strings)
