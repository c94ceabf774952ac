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
from metastone_jax.tasks.pool import VerifierPool
from metastone_jax.tasks.registry import get_task, takes_folder, task_names
from metastone_jax.tasks.rewards import (
  FAILURES,
  REASONS,
  Scores,
  Scoring,
  count_failures,
  count_reasons,
  score_responses,
)

__all__ = [
  'FAILURES',
  'Mixture',
  'Problem',
  'REASONS',
  'Scores',
  'Scoring',
  'Split',
  'Task',
  'Verdict',
  'VerifierPool',
  'boxed_answer',
  'build_mixture',
  'count_failures',
  'count_reasons',
  'get_task',
  'last_boxed',
  'score_responses',
  'takes_folder',
  'task_names',
]
