"""Bytes moved: a progress display in GB/s, and the sum of it at the end."""

import time

from metastone_jax.telemetry.progress import Progress


class ByteProgress:
  """Callback (bytes done, bytes in all) that drives a phase of `Progress`.

  Args:
    progress: the display.
    phase: name of the phase, which starts now.
  """

  def __init__(self, progress: Progress, phase: str):
    self._progress = progress
    self._started = time.monotonic()
    self._text = 'nothing'
    progress.phase(phase, 100)

  def __call__(self, done: int, total: int) -> None:
    """Shows how much is done."""
    seconds = max(time.monotonic() - self._started, 1e-9)
    rate = f'{done / seconds / 1e9:.2f} GB/s'
    self._text = f'{done / 1e9:.2f} GB in {seconds:.1f} s ({rate})'
    self._progress.update(100 * done // max(total, 1))
    self._progress.status(f'{done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate}')

  def __str__(self) -> str:
    return self._text
