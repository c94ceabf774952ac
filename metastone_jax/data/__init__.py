"""Tokenizers, grain pipelines and padded rows."""

from metastone_jax.data.pipeline import (
  DataPosition,
  DemonstrationDataset,
  ProblemDataset,
  demonstration_dataset,
  problem_dataset,
)
from metastone_jax.data.rows import assemble_rows, pad_rows
from metastone_jax.data.tokenizer import STEP_MARKS, Tokenizer

__all__ = [
  'STEP_MARKS',
  'DataPosition',
  'DemonstrationDataset',
  'ProblemDataset',
  'Tokenizer',
  'assemble_rows',
  'demonstration_dataset',
  'pad_rows',
  'problem_dataset',
]
