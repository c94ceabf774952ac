"""Tokenizers: Hugging Face `tokenizer.json` folders, and the one shipped here.

Ids always come from the tokenizer, never from constants, and a text that must
be one token (a step mark, `<think>`) is looked up by `id_of`, which refuses a
text that the tokenizer splits: the first id of an encoding is not the id of a
text. Encoding adds no special tokens of its own; special tokens in the text
are recognised. Decoding keeps special tokens.
"""

import functools
import json
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from etils import epath

from metastone_jax import errors

STEP_MARKS = ('.\n\n',)

_TINY_FOLDER = epath.Path(__file__).parent / 'tiny_tokenizer'
_DEFAULT_EOS = '<|im_end|>'
_DEFAULT_PAD = '<|endoftext|>'


class Tokenizer:
  """Text to ids and back.

  Args:
    backend: the loaded tokenizer.
    name: where it came from, for messages.
    eos_token: the token that ends a response.
    pad_token: the token that fills rows on the right.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    name: str,
    eos_token: str = _DEFAULT_EOS,
    pad_token: str = _DEFAULT_PAD,
  ):
    self._backend = backend
    # A stored tokenizer may truncate or pad; both would change ids silently.
    backend.no_truncation()
    backend.no_padding()
    self.name = name
    self.eos_token = eos_token
    self.pad_token = pad_token

  @classmethod
  def from_folder(
    cls,
    path: epath.PathLike,
    *,
    eos_token: str | None = None,
    pad_token: str | None = None,
  ) -> 'Tokenizer':
    """Loads a Hugging Face folder (local or remote).

    Args:
      path: folder with `tokenizer.json` and, usually, `tokenizer_config.json`.
      eos_token: overrides the one in `tokenizer_config.json`.
      pad_token: likewise.

    Returns:
      The tokenizer.

    Raises:
      UserError: no such file, or a file that cannot be read.
    """
    folder = epath.Path(path)
    file = folder / 'tokenizer.json'
    if not file.exists():
      raise errors.UserError(
        f'tokenizer file {file} does not exist; give the folder that holds a '
        'Hugging Face tokenizer.json'
      )
    try:
      backend = tokenizers.Tokenizer.from_str(file.read_text())
    except Exception as error:  # The package raises bare Exception.
      raise errors.UserError(
        f'tokenizer file {file} cannot be read ({_one_line(error)}); '
        'copy it again'
      ) from error
    settings = _read_settings(folder / 'tokenizer_config.json')
    return cls(
      backend,
      name=str(folder),
      eos_token=eos_token or settings.get('eos_token') or _DEFAULT_EOS,
      pad_token=pad_token or settings.get('pad_token') or _DEFAULT_PAD,
    )

  @classmethod
  def tiny(cls) -> 'Tokenizer':
    """The shipped tokenizer; see `build_tiny_tokenizer`."""
    return cls.from_folder(_TINY_FOLDER)

  def encode(self, text: str) -> list[int]:
    """Ids of a text; nothing is added around it."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    encodings = self._backend.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids, special tokens included."""
    ids = [int(i) for i in ids]
    return self._backend.decode(ids, skip_special_tokens=False)

  def decode_rows(self, ids_BR: np.ndarray, length_B: np.ndarray) -> list[str]:
    """Text of the first `length_B[b]` ids of each row of a padded array."""
    rows = [
      row[:length].tolist()
      for row, length in zip(np.asarray(ids_BR), length_B, strict=True)
    ]
    return self._backend.decode_batch(rows, skip_special_tokens=False)

  @functools.cached_property
  def vocab_size(self) -> int:
    """Largest id + 1: the embedding rows that a model needs at least."""
    return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

  def id_of(self, token_text: str, *, fix: str | None = None) -> int:
    """The id of a text that must be exactly one token.

    Args:
      token_text: the text.
      fix: what the user can do if it is not, for the message.

    Returns:
      Its id.

    Raises:
      UserError: the tokenizer splits the text or does not know it.
    """
    ids = self.encode(token_text)
    if len(ids) == 1 and self.decode(ids) == token_text:
      return ids[0]
    fix = fix or 'use a tokenizer that has it as one token'
    raise errors.UserError(
      f'tokenizer {self.name} does not have {token_text!r} as one token '
      f'(it encodes to {ids}); {fix}'
    )

  @functools.cached_property
  def pad_id(self) -> int:
    """Id that fills rows on the right."""
    return self.id_of(self.pad_token, fix='name another pad_token')

  @functools.cached_property
  def eos_id(self) -> int:
    """Id that ends a response."""
    return self.id_of(self.eos_token, fix='name another eos_token')

  @functools.cached_property
  def think_start_id(self) -> int:
    """Id of <think>."""
    return self.id_of('<think>', fix='add it to tokenizer.json as a token')

  @functools.cached_property
  def think_end_id(self) -> int:
    """Id of </think>."""
    return self.id_of('</think>', fix='add it to tokenizer.json as a token')

  def step_ids(self, marks: Sequence[str] = STEP_MARKS) -> tuple[int, ...]:
    """Ids of the step marks (SPEC section 2).

    Args:
      marks: texts, each exactly one token.

    Returns:
      Their ids, in order.

    Raises:
      UserError: no mark, or a mark that is not one token.
    """
    if isinstance(marks, str):
      marks = (marks,)
    if not marks:
      raise errors.UserError(
        'no step mark is configured, so there would be no steps to score; '
        f'set data.step_marks, e.g. to {STEP_MARKS!r}'
      )
    fix = 'set data.step_marks to texts that are one token each'
    return tuple(self.id_of(mark, fix=fix) for mark in marks)


def _read_settings(file: epath.Path) -> dict[str, str]:
  """The special tokens of a tokenizer_config.json; empty without one."""
  if not file.exists():
    return {}
  try:
    settings = json.loads(file.read_text())
  except ValueError as error:
    raise errors.UserError(
      f'tokenizer file {file} is no JSON ({_one_line(error)}); copy it again'
    ) from error
  tokens = {}
  for name in ('eos_token', 'pad_token'):
    value = settings.get(name)
    # Older files hold the token as an object.
    tokens[name] = value.get('content') if isinstance(value, dict) else value
  return tokens


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())[:120]
