"""The first signal asks, the second interrupts, the old handlers return."""

import os
import signal

import pytest

from metastone_jax.telemetry import StopRequest


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_sets_a_flag_second_raises(number, capfd):
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(KeyboardInterrupt):
    with StopRequest() as stop:
      assert not stop.requested and stop.signal_name is None
      os.kill(os.getpid(), number)
      assert stop.requested and stop.signal_name == number.name
      os.kill(os.getpid(), number)
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before
  assert f'{number.name}: stopping after this step' in capfd.readouterr().err


def test_handlers_return_without_a_signal():
  before = signal.getsignal(signal.SIGTERM)
  with StopRequest() as stop:
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before
  assert not stop.requested
