"""Problem sources, prompt templates and verifiers (rewards)."""

from metastone_jax.tasks.base import (
  Problem,
  Split,
  Task,
  Verdict,
  boxed_answer,
)
from metastone_jax.tasks.boxed import last_boxed
from metastone_jax.tasks.mixture import Mixture, build_mixture
from metastone_jax.tasks.registry import get_task, takes_folder, task_names
from metastone_jax.tasks.rewards import Scores, score_responses

__all__ = [
  'Mixture',
  'Problem',
  'Scores',
  'Split',
  'Task',
  'Verdict',
  'boxed_answer',
  'build_mixture',
  'get_task',
  'last_boxed',
  'score_responses',
  'takes_folder',
  'task_names',
]
