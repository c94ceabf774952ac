"""Seconds spent in each section of an update.

Contract: `with watch('rollout'):` adds the wall-clock seconds of the block to
the section; `collect()` returns `{'time/rollout': seconds, ...}` and starts
again from zero. A block that raises is counted too. Sections may nest: each
counts its own whole duration, so nested names overlap in time.

JAX dispatch is asynchronous: a section that launches device work must read a
result of that work (or block on it) inside the block to be charged for it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator


class Stopwatch:
  """Collects seconds per named section.

  Args:
    clock: Returns seconds; monotonic. Replaceable in tests.
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    self._clock = clock
    self._seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, section: str) -> Iterator[None]:
    """Charges the duration of the `with` block, in seconds, to `section`."""
    start = self._clock()
    try:
      yield
    finally:
      elapsed = self._clock() - start
      self._seconds[section] = self._seconds.get(section, 0.0) + elapsed

  def collect(self) -> dict[str, float]:
    """Returns seconds by `time/<section>` since the last call, and resets."""
    seconds = {f'time/{name}': value for name, value in self._seconds.items()}
    self._seconds = {}
    return seconds
