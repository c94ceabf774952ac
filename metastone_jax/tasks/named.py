"""Evaluation sets by name: where their rows are and what is in them.

A name stands for the options of a data-set task (`dataset.from_options`); a
config may change any of them. Files are given as `path`, or as a `folder` that
holds them under their usual names. None of these sets is trained on unless
asked for (heldout='hash' or 'none').
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from metastone_jax import errors


@dataclasses.dataclass(frozen=True)
class NamedSet:
  """One set.

  Attributes:
    options: of `dataset.from_options`.
    file: its usual name; '' where the rows come with a package.
    layout: of the file, for messages.
  """

  options: Mapping[str, Any]
  file: str = ''
  layout: str = ''


_AIME = dict(
  source='jsonl',
  fields=dict(question='prompt', answer='answer'),
  verifier='math',
)
_AIME_LAYOUT = 'JSON lines {"prompt": "...", "answer": 204}'

NAMED_SETS: dict[str, NamedSet] = {
  # The released files: prompts end in the instruction to box the answer.
  'aime24': NamedSet(_AIME, 'aime24.jsonl', _AIME_LAYOUT),
  'aime25': NamedSet(_AIME, 'aime25.jsonl', _AIME_LAYOUT),
  # The released file: 1,346 questions, one of which is there twice.
  'ceval': NamedSet(
    dict(
      source='json',
      fields=dict(
        question='model_input', answer='answer', id=('sub', 'id'), sub='sub'
      ),
      verifier='choice',
      duplicates='keep',
    ),
    'ceval.json',
    'a JSON list of {"model_input": "...", "answer": "C", "sub": "law", '
    '"id": 0}',
  ),
  'champ': NamedSet(
    dict(
      source='champ',
      fields=dict(id='id', category='category', solution='solution'),
      verifier='math',
    )
  ),
}


def named_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """The options of a named set, those of a config over its own.

  Args:
    name: one of `NAMED_SETS`.
    options: of the config.

  Raises:
    UserError: it is a set of a file, and the file is not named.
  """
  found = NAMED_SETS[name]
  merged = {**found.options, **options}
  if not any(key.startswith('heldout') for key in options):
    merged['heldout'] = 'all'
  if not found.file or 'source' in options:
    return merged
  if not options.get('path'):
    if not options.get('folder'):
      raise errors.UserError(
        f'task {name!r} needs its file, {found.layout}: set data.folder '
        f'(launch.evaluate: --data) to a folder that holds {found.file}, or '
        f'data.task_options.{name}.path'
      )
    merged['path'] = found.file
  return merged
