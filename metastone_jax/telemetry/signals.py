"""Orderly stopping on SIGTERM (preemption) and SIGINT (Ctrl-C).

Contract: inside `with StopRequest() as stop:` the first signal only sets
`stop.requested` and `stop.signal_name`, and says so on stderr; the loop looks
at the flag between updates, saves, and leaves. A second signal raises
KeyboardInterrupt at once. The previous handlers come back on exit.

Must be entered from the main thread (Python's rule for signal handlers).
"""

import os
import signal
import types
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
  """Turns the first SIGTERM or SIGINT into a flag.

  Attributes:
    requested: True once a signal has arrived.
    signal_name: Its name, such as 'SIGTERM', or None.
  """

  def __init__(self):
    self.requested = False
    self.signal_name: str | None = None
    self._previous: dict[signal.Signals, object] = {}

  def __enter__(self) -> Self:
    for number in _SIGNALS:
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._previous.items():
      # None means a handler that was not installed from Python and cannot be
      # put back by it.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous = {}

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    if self.requested:
      raise KeyboardInterrupt(f'second signal {signal.Signals(number).name}')
    self.requested = True
    self.signal_name = signal.Signals(number).name
    # os.write: neither logging nor print is safe if the signal interrupted
    # one of them half-way.
    os.write(
      2,
      f'\n{self.signal_name}: stopping after this step and saving; '
      'send it again to stop at once\n'.encode(),
    )
