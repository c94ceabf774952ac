"""What stands behind `Tokenizer`: tokenizer files and the engines reading them.

Two engines with one interface: the `tokenizers` package for a Hugging Face
`tokenizer.json` (the shipped tokenizer is one), and `sentencepiece` for a
`tokenizer.model`. Both give the ids of the library itself; what this file adds
is the special tokens that SentencePiece does not look for in text, and the
question what a text is INSIDE a longer one: SentencePiece models and their
conversions put a blank before each text, so that "\\n" alone is two tokens
though a model writes it as one.
"""

import abc
import functools
import re
from collections.abc import Mapping, Sequence

import tokenizers
from etils import epath

from metastone_jax import errors
from metastone_jax.data import tokenizer_files


class Backend(abc.ABC):
  """Text to ids and back; nothing is added around a text.

  Attributes:
    special_tokens: special-token names to texts, where the file itself, without
      settings beside it, tells them.
  """

  special_tokens: Mapping[str, str] = {}

  @property
  @abc.abstractmethod
  def ids(self) -> Sequence[int]:
    """All ids of the vocabulary, added tokens included."""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Ids of a text; special tokens in it are recognised."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens keep their text."""

  @abc.abstractmethod
  def encode_inside(self, text: str) -> list[int]:
    """Ids of a text that continues another: no blank is put before it."""

  @abc.abstractmethod
  def token_texts(self, ids: Sequence[int]) -> list[str]:
    """What each id, taken alone, adds to a text that it continues."""

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    return [self.encode(text) for text in texts]

  def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
    """Text of each row of ids."""
    return [self.decode(row) for row in rows]

  def id_of(self, text: str) -> int | None:
    """The id of a text that is exactly one token; None if it is not."""
    ids = self.encode_inside(text)
    if len(ids) == 1 and self.token_texts(ids) == [text]:
      return ids[0]
    return None


class HuggingFaceBackend(Backend):
  """A `tokenizer.json`.

  Args:
    tokenizer: the loaded file.
    settings: of the folder it stands in. Added and special tokens that the
      file does not list are added to it, as transformers does, but only with
      the ids that the files give them.
  """

  # Texts that may stand before another without merging with it.
  _ANCHORS = ('\n', 'x')

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    settings: tokenizer_files.Settings | None = None,
  ):
    settings = settings or tokenizer_files.Settings()
    self._tokenizer = tokenizer
    # A stored tokenizer may truncate or pad; both would change ids silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    present = tokenizer.get_added_tokens_decoder()
    for token_id, token in sorted(settings.added_tokens.items()):
      if token_id in present:
        continue
      tokenizer.add_tokens([token])
      if tokenizer.token_to_id(token.content) != token_id:
        raise errors.UserError(
          f'tokenizer_config.json adds {token.content!r} as id {token_id}, '
          'which tokenizer.json cannot give it; copy both files of one model'
        )
    tokenizer.add_special_tokens(
      [
        text
        for text in settings.special_texts
        if tokenizer.token_to_id(text) is not None
      ]
    )
    first = tokenizer.encode('x', add_special_tokens=False).tokens[:1]
    self._adds_blank = bool(first) and first[0][:1] in ('▁', 'Ġ')

  @functools.cached_property
  def ids(self) -> Sequence[int]:
    """See `Backend`."""
    return sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())

  def encode(self, text: str) -> list[int]:
    """See `Backend`."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """See `Backend`."""
    encodings = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Sequence[int]) -> str:
    """See `Backend`."""
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
    """See `Backend`."""
    return self._tokenizer.decode_batch(rows, skip_special_tokens=False)

  def encode_inside(self, text: str) -> list[int]:
    """See `Backend`."""
    if self._adds_blank:
      for anchor in self._ANCHORS:
        head = self.encode(anchor)
        ids = self.encode(anchor + text)
        if ids[: len(head)] == head:
          return ids[len(head) :]
    return self.encode(text)

  def token_texts(self, ids: Sequence[int]) -> list[str]:
    """See `Backend`."""
    head = self.encode(self._ANCHORS[0]) if self._adds_blank else []
    start = len(self.decode(head))
    rows = self.decode_batch([[*head, i] for i in ids])
    return [row[start:] for row in rows]


class SentencePieceBackend(Backend):
  """A SentencePiece `tokenizer.model`.

  The library takes "<s>" in a text for five characters. Here the control and
  unknown pieces of the model, the added tokens and the named special tokens of
  the settings are cut out first, leftmost and longest first, as a Hugging Face
  slow tokenizer does; the text between them goes through the library.

  Args:
    proto: content of the file.
    settings: of the folder it stands in.
    name: of the file, for messages.
  """

  # Appended to a serialized model, sets normalizer_spec.add_dummy_prefix (3.3)
  # to false: in protobuf a later value of a field replaces an earlier one.
  _NO_DUMMY_PREFIX = b'\x1a\x02\x18\x00'

  def __init__(
    self, proto: bytes, settings: tokenizer_files.Settings, name: str
  ):
    self._proto = proto
    self._processor = _load_sentencepiece(proto, name)
    model = self._processor
    self._size = model.get_piece_size()
    # True: each text between special tokens starts with a blank of its own, as
    # in the models' own code. False: only the text that stands first does.
    self._legacy = settings.legacy
    named = {
      'bos_token': model.bos_id(),
      'eos_token': model.eos_id(),
      'unk_token': model.unk_id(),
      'pad_token': model.pad_id(),
    }
    self.special_tokens = {
      key: model.id_to_piece(i) for key, i in named.items() if i >= 0
    }
    ids = {
      model.id_to_piece(i): i
      for i in range(self._size)
      if model.is_control(i) or model.is_unknown(i)
    }
    for text in settings.special_texts:
      piece = model.piece_to_id(text)
      if model.id_to_piece(piece) == text:  # Else the id of the unknown piece.
        ids[text] = piece
    added = settings.added_tokens
    ids |= {token.content: i for i, token in added.items() if token.content}
    self._special_ids = ids
    self._special_texts = {i: text for text, i in ids.items()}
    self._flags = {token.content: token for token in added.values()}
    choices = '|'.join(map(self._regex, sorted(ids, key=len, reverse=True)))
    starts = ''.join(re.escape(c) for c in sorted({t[0] for t in ids}))
    # The look at one character first saves most of the tries.
    self._pattern = re.compile(f'(?=[{starts}])({choices})')

  def _regex(self, text: str) -> str:
    """What finds a special token; a `single_word` one stands among blanks."""
    flags = self._flags.get(text)
    if flags is not None and flags.single_word:
      return f'(?<![^ ]){re.escape(text)}(?![^ ])'
    return re.escape(text)

  @functools.cached_property
  def _inside(self):
    """The same model without the blank before a text."""
    return _load_sentencepiece(self._proto + self._NO_DUMMY_PREFIX, 'model')

  @functools.cached_property
  def ids(self) -> Sequence[int]:
    """See `Backend`."""
    return sorted({*range(self._size), *self._special_texts})

  def encode(self, text: str) -> list[int]:
    """See `Backend`."""
    return self._encode(text, self._processor)

  def encode_inside(self, text: str) -> list[int]:
    """See `Backend`."""
    return self._encode(text, self._inside)

  def _encode(self, text, first) -> list[int]:
    """Ids; `first` reads the text that stands before any special token."""
    parts = self._pattern.split(text)  # text, token, text, ..., text
    for n in range(1, len(parts), 2):
      flags = self._flags.get(parts[n])
      if flags is not None and flags.lstrip:
        parts[n - 1] = parts[n - 1].rstrip()
      if flags is not None and flags.rstrip:
        parts[n + 1] = parts[n + 1].lstrip()
    ids = []
    for n, part in enumerate(parts):
      if n % 2:
        ids.append(self._special_ids[part])
      elif part:
        ids += self._reader(n, first).encode(part)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """See `Backend`; ids outside the vocabulary give no text."""
    texts, run = [], []
    for i in ids:
      if i in self._special_texts:
        texts += [self._decode_run(run, len(texts)), self._special_texts[i]]
        run = []
      elif i < self._size:
        run.append(i)
    return ''.join([*texts, self._decode_run(run, len(texts))])

  def _decode_run(self, run, place) -> str:
    return self._reader(place, self._processor).decode(run) if run else ''

  def _reader(self, place, first):
    """The model for the part of a text that has `place` parts before it."""
    if place == 0:
      return first
    return self._processor if self._legacy else self._inside

  def token_texts(self, ids: Sequence[int]) -> list[str]:
    """See `Backend`."""
    return [
      self._special_texts[i]
      if i in self._special_texts
      else self._inside.decode([i])
      for i in ids
    ]


def load_backend(
  path: epath.PathLike,
) -> tuple[Backend, tokenizer_files.Settings, epath.Path]:
  """Loads a tokenizer folder or one of its files.

  Args:
    path: folder (local or remote) with `tokenizer.json` or, failing that,
      `tokenizer.model`; or such a file, of any name.

  Returns:
    (backend, settings beside the file, folder).

  Raises:
    UserError: no such file, a file that cannot be read, or a missing package.
  """
  file = tokenizer_files.find_file(epath.Path(path))
  settings = tokenizer_files.read_settings(file.parent)
  if file.suffix != '.json':
    backend = SentencePieceBackend(file.read_bytes(), settings, str(file))
    return backend, settings, file.parent
  try:
    tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding='utf-8'))
  except Exception as error:  # The package raises bare Exception.
    raise errors.UserError(
      f'tokenizer file {file} cannot be read '
      f'({tokenizer_files.one_line(error)}); copy it again'
    ) from error
  backend = HuggingFaceBackend(tokenizer, settings)
  return backend, settings, file.parent


def _load_sentencepiece(proto: bytes, name: str):
  """A `SentencePieceProcessor`; the package is imported on first use."""
  try:
    import sentencepiece
  except ImportError as error:
    raise errors.UserError(
      f'tokenizer {name} is a SentencePiece model, which needs a package that '
      "is not installed; pip install 'metastone_jax[sentencepiece]'"
    ) from error
  try:
    if not proto:  # The package would give a processor without a model.
      raise ValueError('the file is empty')
    return sentencepiece.SentencePieceProcessor(model_proto=proto)
  except Exception as error:  # RuntimeError in 0.2; not part of its interface.
    raise errors.UserError(
      f'tokenizer file {name} is no SentencePiece model '
      f'({tokenizer_files.one_line(error)}); copy it again'
    ) from error
