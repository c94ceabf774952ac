"""Section times against a hand-driven clock."""

import pytest

from metastone_jax.telemetry import Stopwatch


def test_sections_add_up_nest_and_reset():
  now = [0.0]
  watch = Stopwatch(clock=lambda: now[0])
  for seconds in (1.0, 2.5):
    with watch('rollout'):
      now[0] += seconds
  with watch('update'):
    now[0] += 1.0
    with watch('gradient'):
      now[0] += 2.0
  with pytest.raises(RuntimeError):
    with watch('reward'):
      now[0] += 4.0
      raise RuntimeError
  assert watch.collect() == {
    'time/rollout': 3.5,
    'time/update': 3.0,
    'time/gradient': 2.0,
    'time/reward': 4.0,
  }
  assert watch.collect() == {}
