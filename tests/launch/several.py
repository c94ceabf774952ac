"""Jobs of several processes on this machine: start, kill one, read the rest."""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from tests.launch import jobs

CONFIG = 'tests/launch/multihost.py'
PEER_TIMEOUT = 12  # seconds; the machine may be busy


def free_port() -> int:
  """A port that nobody uses now."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@dataclasses.dataclass
class Process:
  """One process of a job; its streams are files beside the run's folder."""

  process: subprocess.Popen
  err: pathlib.Path
  out: pathlib.Path
  ended: float = 0.0  # monotonic seconds

  def stderr(self) -> str:
    return self.err.read_text()


class Job:
  """`launch.train` in several processes over fake CPU devices.

  Args:
    workdir: of the run.
    cache: of compiled programs.
    variant: of the recipe, e.g. 'float64,joint'.
    processes: of the job.
    devices: of each process.
    flags: of every process.
    watch: the process whose events (see `watched`) are read.
    die: (event, how many of it, seconds after it) of that process's death by
      SIGALRM; None = it lives.
    record: folder for the rollouts (see `recorded`); None = none.
  """

  def __init__(
    self,
    workdir,
    cache,
    variant: str,
    processes: int,
    devices: int,
    *flags: str,
    watch: int | None = None,
    die: tuple[str, int, float] | None = None,
    record=None,
  ):
    workdir = pathlib.Path(workdir)
    port = free_port()
    env = jobs.environment(devices)
    if variant.startswith('float64'):
      env['JAX_ENABLE_X64'] = '1'
    plain = 'launch.train'
    if record is not None:
      plain, env['RECORD'] = 'tests.launch.recorded', str(record)
    read_fd, write_fd = os.pipe()
    watched = {'WATCH_FD': str(write_fd)}
    if die is not None:
      names = 'DIE_AT', 'DIE_COUNT', 'DIE_AFTER'
      watched |= {n: str(x) for n, x in zip(names, die, strict=True)}
    if die is not None and watch is None:
      raise ValueError('die= is of the watched process: give watch=')
    self.pipe, self.watch = os.fdopen(read_fd), watch
    self.processes = []
    for i in range(processes):
      module = 'tests.launch.watched' if i == watch else plain
      command = [
        sys.executable,
        '-m',
        module,
        f'--config={CONFIG}:{variant}',
        f'--workdir={workdir}',
        f'--compilation_cache={cache}',
        *flags,
      ]
      if processes > 1:
        command += [
          f'--coordinator=127.0.0.1:{port}',
          f'--num_processes={processes}',
          f'--process_id={i}',
          f'--peer_timeout={PEER_TIMEOUT}',
        ]
      err = workdir.parent / f'{workdir.name}.err{i}'
      out = workdir.parent / f'{workdir.name}.out{i}'
      with open(err, 'w') as stderr, open(out, 'w') as stdout:
        process = subprocess.Popen(
          command,
          cwd=jobs.ROOT,
          env=env | (watched if i == watch else {}),
          pass_fds=[write_fd] if i == watch else [],
          stdout=stdout,
          stderr=stderr,
        )
      self.processes.append(Process(process, err, out))
    os.close(write_fd)

  def signal_at(self, moment, number) -> list[str]:
    """Sends a signal to the watched process at a moment; its events."""
    events = []
    for line in self.pipe:
      events.append(line.rstrip('\n'))
      if moment(events):
        self.processes[self.watch].process.send_signal(number)
        break
    return events + self.events()

  def events(self) -> list[str]:
    """Those of the watched process from here to its end."""
    return [line.rstrip('\n') for line in self.pipe]

  def wait(self, seconds: float = 200) -> list[int]:
    """Exit codes of all; whoever is left after so long is killed."""
    deadline = time.monotonic() + seconds
    running = list(self.processes)
    while running and time.monotonic() < deadline:
      for one in list(running):
        if one.process.poll() is not None:
          one.ended = time.monotonic()
          running.remove(one)
      time.sleep(0.05)
    for one in running:
      one.process.send_signal(signal.SIGKILL)
      one.process.wait()
      one.ended = time.monotonic()
    self.pipe.close()
    return [one.process.returncode for one in self.processes]


def run(
  workdir, cache, variant, processes, devices, *flags, record=None
) -> Job:
  """A job to its end, which must be good."""
  job = Job(workdir, cache, variant, processes, devices, *flags, record=record)
  codes = job.wait()
  assert codes == [0] * processes, '\n'.join(
    f'--- {i}: {code}\n{p.stderr()[-3000:]}'
    for i, (code, p) in enumerate(zip(codes, job.processes, strict=True))
  )
  return job
