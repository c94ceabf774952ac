"""The files of LiveCodeBench: one problem a line, and its hidden tests.

A line is an object with `question_title`, `question_content`, `platform`,
`question_id`, `contest_date`, `starter_code`, `difficulty`, `metadata` (JSON
text), `public_test_cases` (JSON text) and `private_test_cases`: JSON text, or
that text pickled, compressed with zlib and written in base64. Pickles can run
anything, so none is loaded: of a pickle that holds a text and nothing else,
the text is read, and any other is refused.

Tests are large (the files have several GB of them), so problems carry the
place of theirs and tests are read when a program is to be judged.
"""

import base64
import binascii
import functools
import json
import pickletools
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from metastone_jax.tasks.sources import RowError
from metastone_jax.tasks.sources.jsonl import read_json
from metastone_jax.tasks.verifiers import code_tests

_TEXTS = (
  'question_title',
  'question_content',
  'platform',
  'question_id',
  'contest_date',
  'starter_code',
  'difficulty',
  'public_test_cases',
  'private_test_cases',
  'metadata',
)
# A hidden test set is some tens of MB; a compressed bomb is more.
_MAX_TEST_BYTES = 1 << 30

_TEXT_OPCODES = frozenset(
  ('UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8')
)
_IDLE_OPCODES = frozenset(
  ('PROTO', 'FRAME', 'MEMOIZE', 'PUT', 'BINPUT', 'LONG_BINPUT', 'STOP')
)


def lines_of(path: epath.Path) -> Iterator[tuple[int, int, bytes]]:
  """(number from 1, offset in bytes, content) of the lines of a file."""
  with path.open('rb') as file:
    offset = 0
    for number, line in enumerate(file, 1):
      yield number, offset, line
      offset += len(line)


def parse_row(line: bytes) -> dict[str, Any]:
  """One row, with all its fields.

  Raises:
    RowError: it is no row of LiveCodeBench.
  """
  row = read_json(line)
  if not isinstance(row, dict):
    raise RowError('is no object of named fields')
  for name in _TEXTS:
    if not isinstance(row.get(name), str):
      what = 'lacks' if name not in row else 'has no text in'
      raise RowError(f'{what} the field {name}')
  for name in ('question_content', 'question_id'):
    if not row[name].strip():
      raise RowError(f'has an empty field {name}')
  return row


def func_name(row: dict[str, Any]) -> str:
  """The function that the tests of a row call; '' where they run a program."""
  try:
    metadata = json.loads(row['metadata'] or '{}')
    name = metadata.get('func_name') or ''
  except (ValueError, AttributeError) as error:
    raise RowError(f'has metadata that are no JSON object ({error})') from error
  if not isinstance(name, str) or not (name.isidentifier() or not name):
    raise RowError(f'has func_name {name!r}, which names no function')
  return name


def tests_of(row: dict[str, Any]) -> tuple[code_tests.TestCase, ...]:
  """The public and the hidden tests of a row, in this order.

  Raises:
    RowError: they cannot be read, or a pickle holds more than a text.
  """
  try:
    public = json.loads(row['public_test_cases'] or '[]')
  except (ValueError, RecursionError) as error:
    raise RowError(
      f'has public_test_cases that are no JSON ({error})'
    ) from error
  hidden = _hidden_tests(row['private_test_cases'])
  if not isinstance(public, list) or not isinstance(hidden, list):
    raise RowError('has test cases that are no list')
  try:
    return code_tests.parse_tests([*public, *hidden], func_name(row))
  except RowError:
    raise
  except ValueError as error:
    raise RowError(f'is no problem that can be judged: {error}') from error


@functools.lru_cache(maxsize=4)
def tests_at(path: str, offset: int) -> tuple[code_tests.TestCase, ...]:
  """The tests of the row that starts at an offset of a file.

  Responses to one problem come one after the other, so a few are kept.
  """
  with epath.Path(path).open('rb') as file:
    file.seek(offset)
    return tests_of(parse_row(file.readline()))


def _hidden_tests(text: str) -> Any:
  """The JSON value of `private_test_cases` in either of its forms."""
  if not text or text.lstrip()[:1] == '[':
    try:
      return json.loads(text or '[]')
    except (ValueError, RecursionError) as error:
      raise RowError(
        f'has private_test_cases that are no JSON ({error})'
      ) from error
  try:
    packed = base64.b64decode(text, validate=True)
    unpack = zlib.decompressobj()
    data = unpack.decompress(packed, _MAX_TEST_BYTES)
  except (binascii.Error, zlib.error) as error:
    raise RowError(
      'has private_test_cases that are neither JSON nor base64 of zlib '
      f'({error})'
    ) from error
  if not unpack.eof:
    over = bool(unpack.unconsumed_tail)
    why = f'over {_MAX_TEST_BYTES} bytes' if over else 'cut off'
    raise RowError(f'has private_test_cases that are {why}')
  try:
    return json.loads(text_of_pickle(data))
  except RowError:
    raise
  except (ValueError, RecursionError) as error:
    raise RowError(
      f'has private_test_cases that are no JSON inside ({error})'
    ) from error


def text_of_pickle(data: bytes) -> str:
  """The text that a pickle holds; nothing is unpickled.

  Raises:
    RowError: the pickle holds anything but one text, names a class or calls
      something (named here), or is damaged.
  """
  texts: list[str] = []
  try:
    for opcode, argument, _ in pickletools.genops(data):
      if opcode.name in _TEXT_OPCODES:
        texts.append(argument)
      elif opcode.name not in _IDLE_OPCODES:
        raise RowError(_hostile(opcode.name, argument, texts))
  except RowError:
    raise
  except Exception as error:  # pickletools raises several kinds
    raise RowError(f'has a damaged pickle ({error})') from error
  if len(texts) != 1:
    raise RowError(f'has a pickle of {len(texts)} texts instead of one')
  return texts[0]


def _hostile(opcode: str, argument: Any, texts: list[str]) -> str:
  """What to say of a pickle with an opcode that is not allowed."""
  if opcode in ('GLOBAL', 'INST'):
    named = str(argument).replace(' ', '.')
  elif opcode == 'STACK_GLOBAL' and len(texts) > 1:
    named = '.'.join(texts[-2:])
  else:
    return (
      'has a pickle that holds more than a text (opcode '
      f'{opcode}); it was not loaded'
    )
  return f'has a pickle that asks for {named}; it was not loaded'
