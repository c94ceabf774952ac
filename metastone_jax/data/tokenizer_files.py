"""The files of a tokenizer folder: which one to load, and its settings."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath

from metastone_jax import errors

# What a tokenizer is read from, the first that is there.
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model')

# The names that chat templates and settings use, in Hugging Face's order.
SPECIAL_NAMES = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What stands beside a tokenizer file.

  Attributes:
    special_tokens: 'eos_token' and the like -> text.
    special_texts: texts of all special tokens, named or listed.
    added_tokens: id -> token with its flags.
    stop_ids: end-of-response ids of `generation_config.json`.
    legacy: SentencePiece only, see `SentencePieceBackend`.
    chat_template: of `tokenizer_config.json`, as it stands there.
  """

  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  special_texts: tuple[str, ...] = ()
  added_tokens: Mapping[int, tokenizers.AddedToken] = dataclasses.field(
    default_factory=dict
  )
  stop_ids: tuple[int, ...] = ()
  legacy: bool = True
  chat_template: Any = None


def read_settings(folder: epath.PathLike) -> Settings:
  """The settings of a tokenizer folder; empty where the files are missing.

  Args:
    folder: with any of `tokenizer_config.json`, `special_tokens_map.json`,
      `added_tokens.json` and `generation_config.json`.

  Returns:
    The settings, merged as transformers merges them.

  Raises:
    UserError: a file that is no JSON object, or not of the known form.
  """
  folder = epath.Path(folder)
  config = read_json(folder / 'tokenizer_config.json')
  named = read_json(folder / 'special_tokens_map.json')
  listed = config.get('added_tokens_decoder')
  # With a list of added tokens the settings are complete; older folders keep
  # their special tokens in the map.
  merged = named | config if listed is not None else config | named
  try:
    extra = []
    for key in ('additional_special_tokens', 'extra_special_tokens'):
      tokens = merged.get(key) or ()
      extra += tokens.values() if isinstance(tokens, dict) else tokens
    special_tokens = {
      name: _text(merged[name])
      for name in SPECIAL_NAMES
      if merged.get(name) is not None
    }
    special_texts = (*special_tokens.values(), *map(_text, extra))
    if listed is not None:
      added = {
        int(i): tokenizers.AddedToken(**_flags(token))
        for i, token in listed.items()
      }
    else:
      added = {
        int(i): tokenizers.AddedToken(text, special=text in special_texts)
        for text, i in read_json(folder / 'added_tokens.json').items()
      }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'the special tokens of {folder} are not in the form of a Hugging Face '
      f'tokenizer_config.json ({one_line(error)}); copy its files again'
    ) from error
  return Settings(
    special_tokens=special_tokens,
    special_texts=special_texts,
    added_tokens=added,
    stop_ids=_read_stop_ids(folder / 'generation_config.json'),
    legacy=config.get('legacy') is not False,
    chat_template=config.get('chat_template'),
  )


def find_file(path: epath.Path) -> epath.Path:
  """The tokenizer file that a path names."""
  if not path.is_dir():
    if path.exists():
      return path
    raise errors.UserError(
      f'tokenizer {path} does not exist; give the folder that holds a Hugging '
      'Face tokenizer.json or a SentencePiece tokenizer.model'
    )
  for name in TOKENIZER_FILES:
    if (path / name).exists():
      return path / name
  if (path / 'vocab.json').exists() and (path / 'merges.txt').exists():
    raise errors.UserError(
      f'tokenizer folder {path} has vocab.json and merges.txt but no '
      'tokenizer.json; write one with transformers: AutoTokenizer.'
      f'from_pretrained({str(path)!r}).save_pretrained({str(path)!r})'
    )
  raise errors.UserError(
    f'tokenizer file {path / "tokenizer.json"} does not exist, nor does '
    'tokenizer.model; give the folder that holds one of them'
  )


def read_json(file: epath.Path) -> dict[str, Any]:
  """The object in a JSON file; empty without the file."""
  if not file.exists():
    return {}
  try:
    tree = json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise errors.UserError(
      f'tokenizer file {file} is no JSON ({one_line(error)}); copy it again'
    ) from error
  if not isinstance(tree, dict):
    raise errors.UserError(
      f'tokenizer file {file} holds no JSON object; copy it again'
    )
  return tree


def one_line(error: Exception) -> str:
  """The start of an error's message, without line breaks."""
  return ' '.join(str(error).split())[:120]


def _read_stop_ids(file: epath.Path) -> tuple[int, ...]:
  """`eos_token_id` of a generation_config.json: one id or a list."""
  value = read_json(file).get('eos_token_id')
  ids = [] if value is None else value if isinstance(value, list) else [value]
  if not all(type(i) is int and i >= 0 for i in ids):
    raise errors.UserError(
      f'eos_token_id in {file} is {value!r}; it must be an id or a list of ids'
    )
  return tuple(ids)


def _text(token: Any) -> str:
  """A token given as text or, in older files, as an object."""
  text = token['content'] if isinstance(token, dict) else token
  if not isinstance(text, str):
    raise TypeError(f'{token!r} is no token')
  return text


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of an AddedToken."""
  names = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
  flags = {name: token[name] for name in names if name in token}
  return {'content': token['content'], **flags}
