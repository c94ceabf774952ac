"""Plain lines, the live line on a pseudo terminal, and logging beside it."""

import io
import logging as py_logging
import time

import numpy as np
import pytest

from metastone_jax.telemetry import Progress
from metastone_jax.telemetry.progress import format_count, format_duration


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  'seconds, text',
  [(0.4, '0s'), (59.6, '1m00s'), (185, '3m05s'), (7620, '2h07m')]
  + [(float('nan'), '--'), (float('inf'), '--')],
)
def test_format_duration(seconds, text):
  assert format_duration(seconds) == text


@pytest.mark.parametrize(
  'value, text',
  [(0, '0'), (950, '950'), (999.6, '1.0k'), (1234, '1.2k'), (5.6e9, '5.6G')]
  + [(3.4e6, '3.4M'), (1e13, '10000.0G')],
)
def test_format_count(value, text):
  assert format_count(value) == text


def test_rates_leave_out_the_first_update_which_compiles():
  clock = Clock()
  progress = Progress(enabled=False, clock=clock)
  progress.phase('joint', total=100, initial=10)
  assert np.isnan(progress.rates()).all()
  clock.now = 60.0
  progress.update(11, tokens=600)
  np.testing.assert_allclose(progress.rates(), (1 / 60, 10))
  clock.now = 62.0
  progress.update(12, tokens=600)
  np.testing.assert_allclose(progress.rates(), (0.5, 300))
  clock.now = 64.0
  progress.update(14, tokens=1800, metrics={'loss/spr': 0.123456, 'x': None})
  np.testing.assert_allclose(progress.rates(), (0.75, 600))
  progress.status('rollout')
  assert progress.line() == (
    'joint: step 14/100 (14%) | 600 tokens/s | 1m04s gone, 1m55s left | '
    'rollout | loss/spr=0.1235 x=null'
  )


def test_plain_lines_come_at_once_and_go_on_while_nothing_finishes():
  stream = io.StringIO()
  with Progress(stream=stream, interval=0.02) as progress:
    progress.phase('warm-up', total=4)
    assert stream.getvalue().startswith('warm-up: step 0/4 (0%)')
    limit = time.monotonic() + 5
    while stream.getvalue().count('\n') < 4 and time.monotonic() < limit:
      time.sleep(0.01)
    assert stream.getvalue().count('warm-up: step 0/4') >= 4
    progress.update(4)
    progress.phase('joint', total=2)
    progress.update(1)
    progress.note('saved step 1')
  lines = stream.getvalue().splitlines()
  assert 'warm-up: done at step 4/4 after 0s' in lines
  assert 'saved step 1' in lines
  assert lines[-1] == 'joint: left at step 1/2 after 0s'
  assert '\x1b' not in stream.getvalue()
  count = len(stream.getvalue())
  time.sleep(0.06)
  assert len(stream.getvalue()) == count  # The thread has ended.


def test_an_exception_ends_the_phase_as_stopped():
  stream = io.StringIO()
  with pytest.raises(RuntimeError):
    with Progress(stream=stream, interval=60) as progress:
      progress.phase('joint', total=2)
      raise RuntimeError
  assert stream.getvalue().splitlines()[-1] == (
    'joint: stopped at step 0/2 after 0s'
  )


def test_disabled_prints_nothing():
  stream = io.StringIO()
  with Progress(stream=stream, enabled=False, interval=0.01) as progress:
    progress.phase('joint', total=2)
    progress.update(2)
    progress.note('x')
    time.sleep(0.03)
  assert stream.getvalue() == ''


def test_live_line_and_log_records_share_a_terminal(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  handler = py_logging.StreamHandler(terminal)  # Made before, as absl does.
  root = py_logging.getLogger()
  root.addHandler(handler)
  try:
    with Progress(stream=terminal) as progress:
      progress.phase('joint', total=10)
      progress.update(3, tokens=10, metrics={'loss': 0.5})
      assert handler.stream is not terminal
      py_logging.getLogger('test').warning('a record')
      progress.note('a [note] that stays')
      time.sleep(0.4)  # Longer than one refresh.
    assert handler.stream is terminal
  finally:
    root.removeHandler(handler)
  text = terminal.getvalue()
  assert 'joint' in text and '3/10' in text and 'loss=0.5' in text
  assert 'a record\n' in text and 'a [note] that stays\n' in text
  assert 'joint: left at step 3/10' in text
