"""Workers of a sweep as processes of this machine."""

import signal
import subprocess
import time

from metastone_jax import telemetry
from metastone_jax.training import loop


def run(command: list[str], workers: int) -> list[str]:
  """Starts workers and waits for them.

  Args:
    command: of a worker, without its number.
    workers: how many.

  Returns:
    A sentence about each that ended badly; the others did its points.

  Raises:
    Interrupted: a signal came; the workers were told and have saved.
  """
  with telemetry.StopRequest() as stop:
    # Sessions of their own: Ctrl-C reaches them once, through us.
    started = [
      subprocess.Popen([*command, f'--worker={i}'], start_new_session=True)
      for i in range(workers)
    ]
    told = False
    try:
      while any(process.poll() is None for process in started):
        if stop.requested and not told:
          told = True
          for process in started:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    except BaseException:  # a second signal: no worker outlives its sweep
      for process in started:
        process.kill()
      raise
  if stop.requested:
    raise loop.Interrupted(stop.signal_name)
  return [
    f'worker {i} ended with status {process.returncode}'
    for i, process in enumerate(started)
    if process.returncode
  ]
