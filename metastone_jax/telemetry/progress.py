"""What the user watches: phase, step, tokens/s, time left, a few metrics.

Contract:
- On a terminal: one live line with a bar (rich), refreshed four times a
  second, so it moves even while the program compiles. Log records and prints
  appear above it, unharmed.
- Elsewhere (a file, a pipe, a job log): one plain line at the start of each
  phase, one every `interval` seconds whether or not a step finished, and one
  at its end.
- Speed and time left come from the last updates of this phase; the first
  update, which contains the compilation, is left out as soon as there are
  two.
- Nothing is printed where `enabled` is false (all processes but the first).
"""

import collections
import contextlib
import logging as py_logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TextIO

from rich import console as rich_console
from rich import live as rich_live
from rich import progress_bar
from rich import table as rich_table
from rich import text as rich_text

_WINDOW = 20  # Updates that the speed is averaged over.


def format_duration(seconds: float) -> str:
  """Returns seconds as '42s', '3m05s' or '2h07m'; '--' if unknown."""
  if not math.isfinite(seconds):
    return '--'
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'


def format_count(value: float) -> str:
  """Returns a count as '950', '1.2k', '3.4M' or '5.6G'."""
  for unit in ('', 'k', 'M', 'G'):
    if abs(value) < 999.5 or unit == 'G':
      return f'{value:.0f}' if unit == '' else f'{value:.1f}{unit}'
    value /= 1000
  raise AssertionError


def _format_metric(value: Any) -> str:
  if isinstance(value, str):
    return value
  if value is None:
    return 'null'
  return f'{float(value):.4g}'


def _stream_handlers() -> list[py_logging.StreamHandler]:
  """Returns the root logger's stream handlers, absl's inner one included."""
  handlers = []
  for handler in py_logging.getLogger().handlers:
    # absl's handler wraps the one that holds the stream.
    handler = getattr(handler, 'python_handler', handler)
    if isinstance(handler, py_logging.StreamHandler):
      handlers.append(handler)
  return handlers


class Progress:
  """Live progress display; a context manager.

  Args:
    enabled: False prints nothing (`jax.process_index() != 0`).
    interval: Seconds between plain lines where there is no terminal.
    stream: Where to print; stderr by default.
    clock: Returns seconds; monotonic. Replaceable in tests.
  """

  def __init__(
    self,
    *,
    enabled: bool = True,
    interval: float = 10.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._enabled = enabled
    self._interval = interval
    self._stream = stream or sys.stderr
    self._clock = clock
    self._lock = threading.RLock()
    self._stack = contextlib.ExitStack()
    self._console: rich_console.Console | None = None
    self._phase: str | None = None
    self._total = 0
    self._step = 0
    self._status = ''
    self._metrics: dict[str, Any] = {}
    self._tokens = 0.0
    self._phase_start = 0.0
    self._start_point = (0.0, 0, 0.0)
    self._points: collections.deque = collections.deque(maxlen=_WINDOW + 1)

  def __enter__(self) -> Self:
    if not self._enabled:
      return self
    if self._stream.isatty():
      self._start_live()
    else:
      stopped = threading.Event()
      thread = threading.Thread(
        target=self._print_regularly, args=(stopped,), daemon=True
      )
      thread.start()
      self._stack.callback(thread.join)
      self._stack.callback(stopped.set)
    return self

  def __exit__(self, exc_type, exc, traceback) -> None:
    with self._lock:
      self._end_phase('stopped' if exc_type else 'left')
    self._stack.close()
    self._console = None

  def phase(self, name: str, total: int, *, initial: int = 0) -> None:
    """Starts a phase; ends the one before.

    Args:
      name: Shown in front of the line.
      total: Steps in the phase.
      initial: Steps already done (a resumed phase).
    """
    with self._lock:
      self._end_phase('left')
      self._phase, self._total, self._step = name, total, initial
      self._status, self._metrics, self._tokens = '', {}, 0.0
      self._phase_start = self._clock()
      self._start_point = (self._phase_start, initial, 0.0)
      self._points.clear()
      if self._console is None:
        self._print(self.line())

  def update(
    self,
    step: int,
    *,
    tokens: float = 0,
    metrics: Mapping[str, Any] | None = None,
  ) -> None:
    """Reports finished work.

    Args:
      step: Steps of this phase that are done.
      tokens: Tokens processed since the last update.
      metrics: A few scalars to show; None keeps those on display.
    """
    with self._lock:
      self._step = step
      self._tokens += tokens
      if metrics is not None:
        self._metrics = dict(metrics)
      self._points.append((self._clock(), step, self._tokens))

  def status(self, text: str) -> None:
    """Shows what is happening inside a step, such as 'rollout'; '' clears."""
    with self._lock:
      self._status = text

  def note(self, text: str) -> None:
    """Prints a line of its own that stays."""
    with self._lock:
      if not self._enabled:
        return
      if self._console is not None:
        self._console.print(text, markup=False, highlight=False)
      else:
        self._print(text)

  def rates(self) -> tuple[float, float]:
    """Returns (steps/s, tokens/s) over the last updates; NaN if unknown."""
    with self._lock:
      points = list(self._points)
      if not points:
        return math.nan, math.nan
      first = points[0] if len(points) >= 2 else self._start_point
      seconds = points[-1][0] - first[0]
      if seconds <= 0:
        return math.nan, math.nan
      steps, tokens = points[-1][1] - first[1], points[-1][2] - first[2]
      return steps / seconds, tokens / seconds

  def line(self) -> str:
    """Returns the present state as one plain line."""
    with self._lock:
      percent = 100 * self._step // max(self._total, 1)
      head = f'{self._phase}: step {self._step}/{self._total} ({percent}%)'
      return f'{head} | {self._details()}'

  def _details(self) -> str:
    steps_per_s, tokens_per_s = self.rates()
    parts = []
    if tokens_per_s > 0:
      parts.append(f'{format_count(tokens_per_s)} tokens/s')
    elapsed = format_duration(self._clock() - self._phase_start)
    if steps_per_s > 0:
      left = format_duration((self._total - self._step) / steps_per_s)
      parts.append(f'{elapsed} gone, {left} left')
    else:
      parts.append(f'{elapsed} gone')
    if self._status:
      parts.append(self._status)
    if self._metrics:
      parts.append(
        ' '.join(
          f'{name}={_format_metric(value)}'
          for name, value in self._metrics.items()
        )
      )
    return ' | '.join(parts)

  def _end_phase(self, word: str) -> None:
    if self._phase is None or not self._enabled:
      self._phase = None
      return
    word = 'done' if self._step >= self._total else word
    elapsed = format_duration(self._clock() - self._phase_start)
    self.note(
      f'{self._phase}: {word} at step {self._step}/{self._total} '
      f'after {elapsed}'
    )
    self._phase = None

  def _print(self, text: str) -> None:
    if self._enabled:
      print(text, file=self._stream, flush=True)

  def _print_regularly(self, stopped: threading.Event) -> None:
    while not stopped.wait(self._interval):
      with self._lock:
        if self._phase is not None:
          self._print(self.line())

  def _start_live(self) -> None:
    """Starts rich's live display and routes log handlers above it."""
    streams = (sys.stderr, sys.stdout, self._stream)
    self._console = rich_console.Console(file=self._stream)
    live = rich_live.Live(
      console=self._console,
      get_renderable=self._render,
      refresh_per_second=4,
      transient=True,
    )
    self._stack.enter_context(live)
    # Handlers made before keep the raw stream, which would write through the
    # live line; the stream that rich has installed prints above it.
    for handler in _stream_handlers():
      if any(handler.stream is stream for stream in streams):
        self._stack.callback(handler.setStream, handler.stream)
        handler.setStream(sys.stderr)

  def _render(self) -> rich_console.RenderableType:
    with self._lock:
      if self._phase is None:
        return rich_text.Text('')
      grid = rich_table.Table.grid(padding=(0, 1))
      grid.add_row(
        rich_text.Text(self._phase, style='bold'),
        progress_bar.ProgressBar(
          total=max(self._total, 1), completed=self._step, width=24
        ),
        rich_text.Text(f'{self._step}/{self._total}'),
        rich_text.Text(self._details(), overflow='fold'),
      )
      return grid
