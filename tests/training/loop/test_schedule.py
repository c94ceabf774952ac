"""Learning rates by hand."""

import math

import numpy as np
import pytest

from metastone_jax.training.loop import schedule as schedule_lib
from tests.training.loop import parts


@pytest.mark.parametrize(
  ('schedule', 'warmup', 'expected'),
  [
    ('constant', 0, [1, 1, 1, 1, 1]),
    ('constant', 4, [0.25, 0.5, 0.75, 1, 1]),
    (
      'cosine',
      0,
      [0.1 + 0.45 * (1 + math.cos(math.pi * s / 5)) for s in range(5)],
    ),
    (
      'cosine',
      2,
      [
        min(1, (s + 1) / 2) * (0.1 + 0.45 * (1 + math.cos(math.pi * s / 5)))
        for s in range(5)
      ],
    ),
  ],
)
def test_learning_rates(schedule, warmup, expected):
  def edit(config):
    with config.unlocked():
      config.phases.joint.schedule = schedule
      config.phases.joint.warmup_steps = warmup
      config.phases.joint.backbone_learning_rate = 2e-3
      config.phases.joint.head_learning_rate = 5e-4

  phase = parts.recipe(edit).phases[2]
  found = [schedule_lib.learning_rates(phase, s) for s in range(5)]
  np.testing.assert_allclose(
    [rates['backbone'] for rates in found], 2e-3 * np.array(expected)
  )
  np.testing.assert_allclose(
    [rates['head'] for rates in found], 5e-4 * np.array(expected)
  )
