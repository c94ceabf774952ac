"""Tokenizer and chat form out of a model's small files, wherever they lay."""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence

from metastone_jax import errors
from metastone_jax.data.chat import ChatFormat
from metastone_jax.data.tokenizer import Tokenizer
from metastone_jax.data.tokenizer_files import TOKENIZER_FILES


def has_tokenizer(files: Mapping[str, bytes]) -> bool:
  """Whether a tokenizer can be loaded from these files."""
  return not files.keys().isdisjoint(TOKENIZER_FILES)


def tokenizer_from_files(
  files: Mapping[str, bytes],
  where: str,
  *,
  think_tags: Sequence[str] | None = None,
  instruction: str = '',
  system: str | None = None,
) -> tuple[Tokenizer, ChatFormat]:
  """Loads both from file contents.

  Args:
    files: name -> content, as they lie in a Hugging Face folder.
    where: the model they came with, for messages.
    think_tags: see `Tokenizer`.
    instruction: see `ChatFormat`.
    system: see `ChatFormat`.

  Raises:
    UserError: there is no tokenizer among the files, or a damaged file.
  """
  if not has_tokenizer(files):
    raise errors.UserError(
      f'{where} has no tokenizer.json or tokenizer.model; give '
      'data.tokenizer=FOLDER'
    )
  base = pathlib.PurePath(where).name
  with tempfile.TemporaryDirectory(suffix=f'-{base}') as folder:
    for name, content in files.items():
      (pathlib.Path(folder) / name).write_bytes(content)
    try:
      tokenizer = Tokenizer.from_folder(folder, think_tags=think_tags)
      chat = ChatFormat.from_tokenizer(
        tokenizer, instruction=instruction, system=system
      )
    except errors.UserError as error:
      text = str(error).replace(folder, where)
      raise errors.UserError(text) from error
  tokenizer.name, tokenizer.folder = where, None
  return tokenizer, chat
