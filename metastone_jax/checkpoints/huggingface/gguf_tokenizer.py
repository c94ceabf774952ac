"""The tokenizer inside a GGUF file as Hugging Face files.

Byte-level BPE only (`tokenizer.ggml.model` gpt2). How text is split before the
merges is one name in the file, `tokenizer.ggml.pre`; the names known here are
in `_SPLITS`, each as the published tokenizer.json of its models has it. Every
other kind is refused: a wrong split gives other ids without an error.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from absl import logging
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from metastone_jax.errors import UserError

_FIX = 'give a Hugging Face folder for the tokenizer'
# tokenizer.ggml.token_type; source: gguf.TokenType.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_SPECIAL = {
  'bos': 'tokenizer.ggml.bos_token_id',
  'eos': 'tokenizer.ggml.eos_token_id',
  'unk': 'tokenizer.ggml.unknown_token_id',
  'pad': 'tokenizer.ggml.padding_token_id',
}
_END_OF_TURN = 'tokenizer.ggml.eot_token_id'


def _by_regex(digits: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
  """The split of Llama 3 and Qwen 2, which differ in the length of numbers."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  return lambda: pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(pattern), behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _gpt2() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
  )


@dataclasses.dataclass(frozen=True)
class _Split:
  """What a name in tokenizer.ggml.pre stands for."""

  pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
  nfc: bool = False  # text is normalised first
  ignore_merges: bool = False  # a piece that is a token needs no merges
  add_bos: bool = False  # unless tokenizer.ggml.add_bos_token says


_SPLITS = {
  'gpt-2': _Split(_gpt2),
  'default': _Split(_gpt2),
  'smollm': _Split(_smollm),
  'qwen2': _Split(_by_regex(r'\p{N}'), nfc=True),
  'llama-bpe': _Split(
    _by_regex(r'\p{N}{1,3}'), ignore_merges=True, add_bos=True
  ),
}


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
  """Ids of the bos, eos and pad token, of those that the file names."""
  return {
    name: metadata[_SPECIAL[name]]
    for name in ('bos', 'eos', 'pad')
    if _SPECIAL[name] in metadata
  }


def tokenizer_files(metadata: Mapping[str, Any], name: str) -> dict[str, bytes]:
  """Hugging Face files of a file's tokenizer.

  Args:
    metadata: of the GGUF file.
    name: its path, for messages.

  Returns:
    Content of tokenizer.json, tokenizer_config.json (with the chat template)
    and generation_config.json.

  Raises:
    UserError: a kind of tokenizer that is not supported, a missing key, or
      keys that do not fit together.
  """
  model = metadata.get('tokenizer.ggml.model')
  if model != 'gpt2':
    raise UserError(
      f'{name}: tokenizer.ggml.model={model!r} is not supported, only gpt2 '
      f'(byte-level BPE); {_FIX}'
    )
  pre = _get(metadata, 'tokenizer.ggml.pre', str, name)
  if pre not in _SPLITS:
    raise UserError(
      f'{name}: tokenizer.ggml.pre={pre!r} is not supported, only '
      f'{", ".join(_SPLITS)}; {_FIX}'
    )
  if pre == 'default':
    logging.warning(
      '%s: tokenizer.ggml.pre=default says that its converter did not know '
      'this tokenizer; text is split as for GPT-2. If that is wrong, %s.',
      name,
      _FIX,
    )
  tokens = _get(metadata, 'tokenizer.ggml.tokens', list, name)
  special = {
    role: _token(tokens, metadata[key], key, name)
    for role, key in _SPECIAL.items()
    if key in metadata
  }
  add_bos = metadata.get('tokenizer.ggml.add_bos_token', _SPLITS[pre].add_bos)
  add_eos = metadata.get('tokenizer.ggml.add_eos_token', False)
  for role, wanted in (('bos', add_bos), ('eos', add_eos)):
    if wanted and role not in special:
      raise UserError(
        f'{name}: a {role} token is to be added, but {_SPECIAL[role]} is '
        f'missing; {_FIX}'
      )
  try:
    backend = _build(metadata, tokens, _SPLITS[pre], name)
    if add_bos or add_eos:
      backend.post_processor = _template(
        special, metadata, bos=add_bos, eos=add_eos
      )
    text = backend.to_str()
  except UserError:
    raise
  except Exception as error:  # the package raises bare Exception
    raise UserError(
      f'{name}: its tokenizer cannot be rebuilt '
      f'({" ".join(str(error).split())[:120]}); {_FIX}'
    ) from error
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'add_bos_token': bool(add_bos),
    'add_eos_token': bool(add_eos),
    'clean_up_tokenization_spaces': False,
    **{f'{role}_token': token for role, token in special.items()},
  }
  if 'tokenizer.chat_template' in metadata:
    settings['chat_template'] = metadata['tokenizer.chat_template']
  return {
    'tokenizer.json': text.encode(),
    'tokenizer_config.json': _json(settings),
    'generation_config.json': _json(_generation(metadata)),
  }


def _build(metadata, tokens, split: _Split, name) -> tokenizers.Tokenizer:
  """The tokenizer without what it adds around a text."""
  types = _get(metadata, 'tokenizer.ggml.token_type', list, name)
  if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
    raise UserError(
      f'{name}: tokenizer.ggml.tokens has {len(tokens)} entries, '
      f'{len(set(tokens))} of them different, and token_type {len(types)}; '
      f'{_FIX}'
    )
  # llama.cpp fills the vocabulary up to the rows of the embedding with tokens
  # [PAD<id>]; no text is one, and the published tokenizer does not have them.
  vocab = {
    token: i
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind != _UNUSED or token != f'[PAD{i}]'
  }
  merges = [
    tuple(merge.split(' '))
    for merge in _get(metadata, 'tokenizer.ggml.merges', list, name)
  ]
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocab, merges=merges, ignore_merges=split.ignore_merges)
  )
  if split.nfc:
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = split.pre_tokenizer()
  backend.decoder = decoders.ByteLevel()
  for wanted, add in (
    (_CONTROL, backend.add_special_tokens),
    (_USER_DEFINED, backend.add_tokens),
  ):
    add(
      [
        AddedToken(token, normalized=False, special=wanted == _CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind == wanted
      ]
    )
  return backend


def _template(special, metadata, *, bos: bool, eos: bool):
  """Adds the bos token before a text and the eos token after it."""

  def around(segment: int) -> list[str]:
    before = [f'{special["bos"]}:{segment}'] if bos else []
    after = [f'{special["eos"]}:{segment}'] if eos else []
    return [*before, f'${"AB"[segment]}:{segment}', *after]

  used = [role for role, on in (('bos', bos), ('eos', eos)) if on]
  return processors.TemplateProcessing(
    single=around(0),
    pair=around(0) + around(1),
    special_tokens=list(
      {special[role]: metadata[_SPECIAL[role]] for role in used}.items()
    ),
  )


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """generation_config.json; an end-of-turn token ends a text as well."""
  ids: dict[str, Any] = {
    f'{name}_token_id': token for name, token in special_ids(metadata).items()
  }
  ends = [
    metadata[key] for key in (_SPECIAL['eos'], _END_OF_TURN) if key in metadata
  ]
  ends = list(dict.fromkeys(ends))
  if ends:
    ids['eos_token_id'] = ends if len(ends) > 1 else ends[0]
  return ids


def _token(tokens: list[str], token_id: Any, key: str, name: str) -> str:
  if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
    raise UserError(
      f'{name}: {key}={token_id!r} is none of the {len(tokens)} tokens; {_FIX}'
    )
  return tokens[token_id]


def _get(metadata: Mapping[str, Any], key: str, kind: type, name: str) -> Any:
  value = metadata.get(key)
  if not isinstance(value, kind):
    what = 'is missing' if value is None else f'is no {kind.__name__}'
    raise UserError(f'{name}: the key {key} {what}; {_FIX}')
  return value


def _json(tree: Any) -> bytes:
  return json.dumps(tree, indent=2, ensure_ascii=False).encode()
