"""Writes the small tokenizer that ships with the project.

  python -m metastone_jax.data.build_tiny_tokenizer

A Hugging Face tokenizer folder of a few hundred tokens in which every number
from -99 to 99 with a blank before it is ONE token (" 7", " -6"), as is every
word of the tasks' texts and the step mark ".\\n\\n". Small models learn the
tasks several times cheaper that way than digit by digit. All other text falls
back to single characters, so any printable ASCII text round-trips exactly;
characters outside it become <unk>.

The files are written as plain JSON, without the tokenizers package, so the
result does not depend on its version; a test regenerates the committed files.
"""

import json
import re

from absl import app
from etils import epath

FOLDER = epath.Path(__file__).parent / 'tiny_tokenizer'

PAD = '<|endoftext|>'
UNKNOWN = '<unk>'
EOS = '<|im_end|>'
SPECIALS = (PAD, UNKNOWN, '<|im_start|>', EOS, '<think>', '</think>')

# Ordinary multi-character tokens. The blank belongs to the word after it, as
# in the byte-level vocabularies of real models.
PIECES = (
  '.\n\n',
  '\n\n',
  '\\boxed{',
  ' }',
  ' +',
  ' -',
  ' =',
  'user',
  'assistant',
  'Make',
  ' using',
  ' leaves',
  'State',
  ' the',
  ' final',
  ' answer',
  ' to',
  ' following',
  ' arithmetic',
  ' problem',
  ' is',
)

CHARACTERS = ('\n', '\t', '\r', *map(chr, range(32, 127)))
NUMBERS = tuple(f' {n}' for n in range(-99, 100))

# A number is one token only where no digit follows: " 123" is characters.
_NUMBER = ' -?(?:[1-9][0-9]|[0-9])(?![0-9])'

CHAT_TEMPLATE = (
  '{% for message in messages %}<|im_start|>{{ message.role }}\n'
  '{{ message.content }}<|im_end|>\n{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}'
)


def vocabulary() -> dict[str, int]:
  """Token text -> id: specials, pieces, characters, numbers."""
  tokens = (*SPECIALS, *PIECES, *CHARACTERS, *NUMBERS)
  ids = {token: i for i, token in enumerate(tokens)}
  if len(ids) != len(tokens):
    raise AssertionError('a token is listed twice')
  return ids


def split_pattern() -> str:
  """The regular expression whose matches are the tokens.

  Alternatives are tried in order: numbers before the sign " -" that they
  start with (but " -" then " 7" in " - 7"), longer pieces before shorter ones,
  one character last. " -0" and the like are no numbers of the vocabulary.
  """
  number = f'(?! -0){_NUMBER}'
  pieces = sorted(PIECES, key=len, reverse=True)
  return '|'.join([number, *map(_escape, pieces), r'[\s\S]'])


def build() -> dict[str, str]:
  """File name -> content of the tokenizer folder."""
  ids = vocabulary()
  tokenizer = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {
        'id': ids[token],
        'content': token,
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
      for token in SPECIALS
    ],
    'normalizer': None,
    'pre_tokenizer': {
      'type': 'Split',
      'pattern': {'Regex': split_pattern()},
      'behavior': 'Isolated',
      'invert': False,
    },
    'post_processor': None,
    'decoder': {'type': 'Fuse'},
    'model': {'type': 'WordLevel', 'vocab': ids, 'unk_token': UNKNOWN},
  }
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': EOS,
    'pad_token': PAD,
    'unk_token': UNKNOWN,
    'clean_up_tokenization_spaces': False,
    'chat_template': CHAT_TEMPLATE,
  }
  return {
    'tokenizer.json': _dump(tokenizer),
    'tokenizer_config.json': _dump(settings),
  }


def _escape(piece: str) -> str:
  # re.escape leaves a newline as backslash-newline; spell it for Oniguruma.
  return re.escape(piece).replace('\\\n', '\\n')


def _dump(tree) -> str:
  return json.dumps(tree, indent=1, ensure_ascii=True) + '\n'


def main(argv):
  """Writes the folder beside this file."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  FOLDER.mkdir(parents=True, exist_ok=True)
  for name, content in build().items():
    (FOLDER / name).write_text(content)
    print(f'wrote {FOLDER / name}')
  print(f'{len(vocabulary())} tokens')


if __name__ == '__main__':
  app.run(main)
