"""The sandbox that code of a model runs in."""

from metastone_jax.tasks.sandbox.box import (
  FAILURES,
  ISOLATION_LEVELS,
  Limits,
  Outcome,
  Program,
  Sandbox,
  SandboxError,
)

__all__ = [
  'FAILURES',
  'ISOLATION_LEVELS',
  'Limits',
  'Outcome',
  'Program',
  'Sandbox',
  'SandboxError',
]
