"""Tokenizers, chat forms, grain pipelines and padded rows."""

from metastone_jax.data.chat import ChatFormat, ChatTemplate
from metastone_jax.data.from_files import has_tokenizer, tokenizer_from_files
from metastone_jax.data.pipeline import (
  DataPosition,
  DemonstrationDataset,
  ProblemDataset,
  demonstration_dataset,
  problem_dataset,
)
from metastone_jax.data.prompt_lengths import without_long_prompts
from metastone_jax.data.rows import assemble_rows, pad_rows
from metastone_jax.data.tokenizer import STEP_MARKS, Tokenizer

__all__ = [
  'STEP_MARKS',
  'ChatFormat',
  'ChatTemplate',
  'DataPosition',
  'DemonstrationDataset',
  'ProblemDataset',
  'Tokenizer',
  'assemble_rows',
  'demonstration_dataset',
  'has_tokenizer',
  'pad_rows',
  'tokenizer_from_files',
  'problem_dataset',
  'without_long_prompts',
]
