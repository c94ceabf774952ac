"""Tokenizers: Hugging Face and SentencePiece files, and the one shipped here.

Ids always come from the tokenizer, never from constants, and a text that must
be one token (a step mark, `<think>`) is looked up by `id_of`, which refuses a
text that the tokenizer splits: the first id of an encoding is not the id of a
text. Encoding adds no special tokens of its own; special tokens in the text
are recognised. Decoding keeps special tokens.

Not every model has `<think>` and `</think>` as tokens. They are looked for
when a tokenizer is loaded; without them the ids are -1, which no token has.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import logging
from etils import epath

from metastone_jax import errors
from metastone_jax.data import tokenizer_backends

STEP_MARKS = ('.\n\n',)
# What may close a step, the most telling first; see `find_step_marks`.
STEP_MARK_CANDIDATES = ('.\n\n', '\n\n', '.\n', '\n')
THINK_TAGS = ('<think>', '</think>')
NO_ID = -1

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
    think_tags: the two texts around the thinking, each one token; () for a
      model without; None to look for `<think>` and `</think>`.
    stop_ids: ids, besides that of `eos_token`, that end a response.
    special_tokens: 'bos_token' and the like -> text, for chat templates.
    folder: where the files lie, if anywhere.

  Raises:
    UserError: a think tag that is not one token, or only one of a pair.
  """

  def __init__(
    self,
    backend: tokenizer_backends.Backend | tokenizers.Tokenizer,
    *,
    name: str,
    eos_token: str = _DEFAULT_EOS,
    pad_token: str = _DEFAULT_PAD,
    think_tags: Sequence[str] | None = None,
    stop_ids: Sequence[int] = (),
    special_tokens: Mapping[str, str] | None = None,
    folder: epath.Path | None = None,
  ):
    if isinstance(backend, tokenizers.Tokenizer):
      backend = tokenizer_backends.HuggingFaceBackend(backend)
    self._backend = backend
    self.name = name
    self.eos_token = eos_token
    self.pad_token = pad_token
    self.special_tokens = dict(special_tokens or {})
    self.folder = folder
    self._other_stop_ids = tuple(stop_ids)
    self.think_tags = self._check_think_tags(think_tags)

  @classmethod
  def from_folder(
    cls,
    path: epath.PathLike,
    *,
    eos_token: str | None = None,
    pad_token: str | None = None,
    think_tags: Sequence[str] | None = None,
  ) -> 'Tokenizer':
    """Loads the tokenizer of a model (local or remote).

    Args:
      path: folder with `tokenizer.json` or, failing that, a SentencePiece
        `tokenizer.model`, and usually `tokenizer_config.json`; or one of the
        first two files itself.
      eos_token: overrides the one in `tokenizer_config.json`.
      pad_token: likewise. Where neither names one that the tokenizer has, rows
        are filled with `<|endoftext|>`, else the unknown token, else eos.
      think_tags: see the class.

    Returns:
      The tokenizer.

    Raises:
      UserError: no such file, a file that cannot be read or does not belong
        to the others, a missing package, or bad think tags.
    """
    backend, settings, folder = tokenizer_backends.load_backend(path)
    _check_stop_ids(backend, settings.stop_ids, str(path))
    known = {**backend.special_tokens, **settings.special_tokens}
    eos = eos_token or known.get('eos_token')
    if eos is None and settings.stop_ids:
      eos = backend.token_texts(settings.stop_ids[:1])[0]
    eos = eos or _DEFAULT_EOS
    if pad_token is None:
      choices = (known.get('pad_token'), _DEFAULT_PAD, known.get('unk_token'))
      pad_token = _choose_pad(backend, (*choices, eos), str(path))
    return cls(
      backend,
      name=str(path),
      eos_token=eos,
      pad_token=pad_token,
      think_tags=think_tags,
      stop_ids=settings.stop_ids,
      special_tokens=known,
      folder=folder,
    )

  @classmethod
  def tiny(cls) -> 'Tokenizer':
    """The shipped tokenizer; see `build_tiny_tokenizer`."""
    return cls.from_folder(_TINY_FOLDER)

  def encode(self, text: str) -> list[int]:
    """Ids of a text; nothing is added around it."""
    return self._backend.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    return self._backend.encode_batch(texts)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids, special tokens included."""
    return self._backend.decode([int(i) for i in ids])

  def decode_rows(self, ids_BR: np.ndarray, length_B: np.ndarray) -> list[str]:
    """Text of the first `length_B[b]` ids of each row of a padded array."""
    rows = [
      row[:length].tolist()
      for row, length in zip(np.asarray(ids_BR), length_B, strict=True)
    ]
    return self._backend.decode_batch(rows)

  @functools.cached_property
  def vocab_size(self) -> int:
    """Largest id + 1: the embedding rows that a model needs at least."""
    return max(self._backend.ids) + 1

  def id_of(self, token_text: str, *, fix: str | None = None) -> int:
    """The id of a text that must be exactly one token.

    The text is taken as it stands inside a longer one: where a tokenizer puts
    a blank before each text (SentencePiece), that blank does not count.

    Args:
      token_text: the text.
      fix: what the user can do if it is not, for the message.

    Returns:
      Its id.

    Raises:
      UserError: the tokenizer splits the text or does not know it.
    """
    token_id = self._backend.id_of(token_text)
    if token_id is not None:
      return token_id
    fix = fix or 'use a tokenizer that has it as one token'
    raise errors.UserError(
      f'tokenizer {self.name} does not have {token_text!r} as one token '
      f'(it encodes to {self._backend.encode_inside(token_text)}); {fix}'
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
  def stop_ids(self) -> tuple[int, ...]:
    """All ids that end a response, `eos_id` first.

    The others are those of `generation_config.json`: a model may have learnt
    several. One of them may be `pad_id`.
    """
    return tuple(dict.fromkeys((self.eos_id, *self._other_stop_ids)))

  @property
  def stop_tokens(self) -> tuple[str, ...]:
    """Texts of `stop_ids`."""
    return tuple(self._backend.token_texts(self.stop_ids))

  @property
  def has_think_tags(self) -> bool:
    """Whether thinking is marked by two tokens, `think_tags`."""
    return bool(self.think_tags)

  @functools.cached_property
  def think_start_id(self) -> int:
    """Id of <think>; -1 without think tags."""
    return self.id_of(self.think_tags[0]) if self.think_tags else NO_ID

  @functools.cached_property
  def think_end_id(self) -> int:
    """Id of </think>; -1 without think tags."""
    return self.id_of(self.think_tags[1]) if self.think_tags else NO_ID

  def sampling_ids(self) -> dict[str, Any]:
    """The ids that `sampling.SamplingConfig` takes, but for the step marks."""
    return {
      'eos_id': self.eos_id,
      'more_eos_ids': self.stop_ids[1:],
      'pad_id': self.pad_id,
      'think_start_id': self.think_start_id,
      'think_end_id': self.think_end_id,
    }

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
    found = ', '.join(map(repr, self.find_step_marks())) or 'none of the usual'
    fix = (
      'set data.step_marks to texts that are one token each; this tokenizer '
      f'has as one token: {found}'
    )
    return tuple(self.id_of(mark, fix=fix) for mark in marks)

  def find_step_marks(
    self, candidates: Sequence[str] = STEP_MARK_CANDIDATES
  ) -> tuple[str, ...]:
    """The candidates that are one token each, in their order."""
    return tuple(c for c in candidates if self._backend.id_of(c) is not None)

  def step_ids_ending(self, text: str) -> tuple[int, ...]:
    """Ids of all vocabulary entries whose text ends with a text.

    A tokenizer may merge what stands before a mark into it: Qwen has 30
    entries that end in ".\\n\\n", so that ")." and a blank line are one token
    other than the mark. A step closed by such a token is missed by `step_ids`
    (and by the released code); give the ids from here to count it.

    Args:
      text: the end, e.g. ".\\n\\n".

    Returns:
      The ids, ascending.

    Raises:
      UserError: an empty text, or one that no entry ends with.
    """
    ids = self._backend.ids if text else ()
    texts = self._backend.token_texts(ids)
    found = tuple(
      i for i, token in zip(ids, texts, strict=True) if token.endswith(text)
    )
    if found:
      return found
    raise errors.UserError(
      f'tokenizer {self.name} has no token that ends with {text!r}; give the '
      'end of a step mark, e.g. "\\n"'
    )

  def _check_think_tags(self, tags: Sequence[str] | None) -> tuple[str, ...]:
    """The tags, each one token; () without."""
    if tags is None:
      found = [
        tag for tag in THINK_TAGS if self._backend.id_of(tag) is not None
      ]
      if len(found) == 1:
        raise errors.UserError(
          f'tokenizer {self.name} has only {found[0]!r} of the think tags '
          f'{THINK_TAGS!r} as one token; name two tokens as think_tags, or '
          'think_tags=() for a model without'
        )
      return tuple(found)
    tags = (tags,) if isinstance(tags, str) else tuple(tags)
    if len(tags) not in (0, 2):
      raise errors.UserError(
        f'think_tags is {tags!r}; give two texts, one before and one after '
        'the thinking, or () for a model without'
      )
    for tag in tags:
      self.id_of(tag, fix='name two tokens as think_tags, or none')
    return tags


def _check_stop_ids(
  backend: tokenizer_backends.Backend, stop_ids: Sequence[int], name: str
) -> None:
  """UserError for a `generation_config.json` of another vocabulary."""
  known = set(backend.ids) if stop_ids else ()
  for stop_id in stop_ids:
    if stop_id not in known:
      raise errors.UserError(
        f'generation_config.json of tokenizer {name} lists the eos id '
        f'{stop_id}, which the vocabulary of {len(known)} tokens does not '
        'have; copy both files of one model'
      )


def _choose_pad(
  backend: tokenizer_backends.Backend, choices: Sequence[str | None], name: str
) -> str:
  """The first choice that is one token; said where it is not the first."""
  for text in choices:
    if text is not None and backend.id_of(text) is not None:
      if choices[0] is None:
        _warn_once(f'tokenizer {name} names no pad token; using {text!r}')
      elif text != choices[0]:
        _warn_once(
          f'tokenizer {name} does not have its pad token {choices[0]!r}; '
          f'using {text!r}'
        )
      return text
  # None of them: `pad_id` refuses by name what was asked for.
  return choices[0] or _DEFAULT_PAD


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning('%s', message)
