"""Learning rates of both groups as a function of the step."""

import math

from metastone_jax.training.loop.recipe import PhaseConfig


def learning_rates(phase: PhaseConfig, step: int) -> dict[str, float]:
  """Both rates at a step (0-based) of a phase: rise, then the schedule."""
  factor = min(1.0, (step + 1) / max(1, phase.warmup_steps))
  if phase.schedule == 'cosine':
    progress = step / max(1, phase.steps)
    factor *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
  return {
    'backbone': phase.backbone_learning_rate * factor,
    'head': phase.head_learning_rate * factor,
  }
