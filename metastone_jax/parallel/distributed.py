"""One job of several processes: start, barriers, agreement, orderly end.

`start` is called before anything touches a device. Everything here works in a
job of one process too, where it does nothing. All processes call the same
functions in the same order (from the main thread, or with names that only one
other thread uses); small JSON values travel through the store in process 0,
arrays through the devices (`all_gather`).

Nothing waits for ever: every wait has a limit, and its error names the hosts
that did not come.
"""

import collections
import dataclasses
import json
import os
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from metastone_jax.errors import UserError
from metastone_jax.parallel import coordination, rendezvous
from metastone_jax.parallel.watchdog import BAD_INPUT, LOST, Watchdog

BARRIER_SECONDS = 1200.0

# What a launcher sets where flags are inconvenient.
VARIABLES = {
  'coordinator': 'METASTONE_COORDINATOR',
  'num_processes': 'METASTONE_NUM_PROCESSES',
  'process_id': 'METASTONE_PROCESS_ID',
}

# Old decisions that are kept: no process lags so many behind process 0. In an
# evaluation there is one for each few dozen responses, and nobody waits there.
_LAG = 2**14


class HostsMissing(Exception):  # noqa: N818 (a state, not an error)
  """Some processes did not come to a barrier; the message names their hosts."""


@dataclasses.dataclass(frozen=True)
class Address:
  """Where this process stands in its job.

  Attributes:
    coordinator: HOST:PORT of process 0.
    num_processes: of the job.
    process_id: of this process.
    local_device_ids: devices of this process; None = all it sees.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: Any = None


@dataclasses.dataclass
class _Job:
  hosts: list[str]
  watchdog: Watchdog
  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )


_job: _Job | None = None


def find_address(
  coordinator: str,
  num_processes: int | None,
  process_id: int | None,
  *,
  environment: Mapping[str, str] | None = None,
  timeout_s: float = 300,
) -> Address | None:
  """Where this process stands, from flags, else from the environment.

  Args:
    coordinator: HOST:PORT, 'auto' (TPU pod, GKE, SLURM), '' = see the
      environment variable.
    num_processes: None = see the environment variable.
    process_id: likewise.
    environment: variables; those of the process by default.
    timeout_s: for asking the cluster in 'auto'.

  Returns:
    None for a job of one process.

  Raises:
    UserError: incomplete or contradictory.
  """
  env = os.environ if environment is None else environment

  def number(name: str, value: int | None) -> int | None:
    text = env.get(VARIABLES[name], '')
    if value is not None or not text:
      return value
    try:
      return int(text)
    except ValueError:
      raise UserError(
        f'{VARIABLES[name]}={text!r} is no whole number'
      ) from None

  coordinator = coordinator or env.get(VARIABLES['coordinator'], '')
  given = {
    'num_processes': number('num_processes', num_processes),
    'process_id': number('process_id', process_id),
  }
  if not coordinator:
    for name, value in given.items():
      if value is not None:
        raise UserError(
          f'--{name}={value} needs --coordinator=HOST:PORT of process 0 (or '
          f'{VARIABLES["coordinator"]}); leave it out for a single process'
        )
    return None
  if coordinator == 'auto':
    address, count, own, devices = coordination.detect(timeout_s)
    if address is None or count is None or own is None:
      raise UserError(
        '--coordinator=auto finds neither a TPU pod nor SLURM nor a GKE job '
        'here; give --coordinator=HOST:PORT --num_processes=N --process_id=I'
      )
    return Address(address, count, own, devices) if count > 1 else None
  rendezvous.split_address(coordinator)
  for name, value in given.items():
    if value is None:
      raise UserError(
        f'--coordinator={coordinator} needs --{name} too (or {VARIABLES[name]})'
      )
  count, own = given['num_processes'], given['process_id']
  if count < 1 or not 0 <= own < count:
    raise UserError(
      f'--process_id={own} with --num_processes={count}: processes are '
      f'numbered from 0 to {max(count, 1) - 1}'
    )
  return Address(coordinator, count, own) if count > 1 else None


def start(
  address: Address | None,
  *,
  start_timeout_s: float = 300,
  peer_timeout_s: float = 60,
) -> None:
  """Joins the job; None is a job of one process.

  Args:
    address: from `find_address`.
    start_timeout_s: seconds within which all processes must be there.
    peer_timeout_s: seconds of silence after which a process counts as gone.

  Raises:
    UserError: processes are missing (named) or do not fit together.
  """
  global _job
  if address is None:
    return
  if start_timeout_s <= 0 or peer_timeout_s <= 0:
    raise UserError(
      f'--start_timeout={start_timeout_s:g} and --peer_timeout='
      f'{peer_timeout_s:g} are seconds above 0'
    )
  hosts = rendezvous.meet(
    address.coordinator,
    address.num_processes,
    address.process_id,
    start_timeout_s,
  )
  # SIGTERM is ours (telemetry.StopRequest).
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    address.coordinator,
    address.num_processes,
    address.process_id,
    local_device_ids=address.local_device_ids,
    cluster_detection_method='deactivate',
    initialization_timeout=max(1, int(start_timeout_s)),
    # The watchdog comes first, and says more.
    heartbeat_timeout_seconds=int(max(100, 4 * peer_timeout_s)),
    shutdown_timeout_seconds=60,
  )
  watchdog = Watchdog(
    address.coordinator, hosts, address.process_id, peer_timeout_s
  )
  watchdog.start()
  _job = _Job(hosts, watchdog)


def several() -> bool:
  """Whether this job has several processes."""
  return jax.process_count() > 1


def is_primary() -> bool:
  """Whether this is process 0, which alone writes shared files and prints."""
  return jax.process_index() == 0


def _name(process: int) -> str:
  return _job.watchdog.name(process) if _job else f'process {process}'


def _next(kind: str, name: str) -> str:
  """A key that the same call of every process shares and no other has."""
  counts = _job.counts
  counts[kind, name] += 1
  return f'{kind}/{name}/{counts[kind, name]}'


def _missing(key: str, doing: str, timeout_s: float) -> HostsMissing:
  there = coordination.folder(key)
  absent = [i for i in range(jax.process_count()) if str(i) not in there]
  shown = ', '.join(_name(i) for i in absent[:8]) or 'none by now'
  shown += f' and {len(absent) - 8} more' if len(absent) > 8 else ''
  return HostsMissing(
    f'{doing}: not there within {timeout_s:g} s: {shown}; look at the logs of '
    'these hosts. Restart the same command on all hosts: it resumes from the '
    'last checkpoint'
  )


def barrier(name: str, timeout_s: float = BARRIER_SECONDS) -> None:
  """Waits until every process has come to this barrier.

  Raises:
    HostsMissing: some did not come within `timeout_s`; names them.
  """
  if not several():
    return
  key = _next('barrier', name)
  coordination.put(f'{key}/{jax.process_index()}', True)
  try:
    coordination.wait_at_barrier(key, timeout_s)
  except coordination.Failure as error:
    raise _missing(key, f'barrier {name!r}', timeout_s) from error
  if is_primary():
    coordination.delete(key)


def gather(
  name: str, value: Any, timeout_s: float = BARRIER_SECONDS
) -> list[Any]:
  """JSON values of all processes, by process number.

  Raises:
    HostsMissing: some did not give theirs within `timeout_s`; names them.
  """
  if not several():
    return [value]
  key = _next('gather', name)
  coordination.put(f'{key}/{jax.process_index()}', value)
  deadline = time.monotonic() + timeout_s
  try:
    found = [
      coordination.get(f'{key}/{i}', deadline - time.monotonic())
      for i in range(jax.process_count())
    ]
  except coordination.Failure as error:
    raise _missing(key, f'waiting for {name!r}', timeout_s) from error
  barrier(f'{name} read', timeout_s)
  if is_primary():
    coordination.delete(key)
  return found


def from_primary(
  name: str, value: Any, timeout_s: float = BARRIER_SECONDS
) -> Any:
  """The JSON value of process 0, in every process.

  Raises:
    HostsMissing: process 0 did not give it within `timeout_s`.
  """
  if not several():
    return value
  key = _next('primary', name)
  if is_primary():
    coordination.put(f'{key}/0', value)
    previous, count = key.rsplit('/', 1)
    if int(count) > _LAG:
      coordination.delete(f'{previous}/{int(count) - _LAG}')
    return value
  try:
    return coordination.get(f'{key}/0', timeout_s)
  except coordination.Failure as error:
    raise HostsMissing(
      f'waiting for {name!r}: {_name(0)} did not come within {timeout_s:g} s'
    ) from error


def any_wish(name: str, wish: str | None) -> str | None:
  """The first wish that any process has had so far; the same in all of them.

  A wish counts from the first call that process 0 makes after it: nobody waits
  for the devices, and all get the same answer from their n-th calls.
  """
  if not several():
    return wish
  if wish is not None:
    coordination.put(f'wish/{name}/{jax.process_index()}', wish)
  wishes = coordination.folder(f'wish/{name}') if is_primary() else {}
  return from_primary(name, min(wishes.values(), default=None))


def all_gather(tree: Any) -> Any:
  """Host arrays of all processes, joined along the first axis in their order.

  Args:
    tree: a pytree of numpy arrays of the same shapes in every process.

  Returns:
    The tree with arrays as many times as long; bit for bit, whatever JAX
    thinks of 64-bit numbers.
  """
  if not several():
    return tree

  def one(x):
    x = np.ascontiguousarray(x)
    raw = np.frombuffer(x.tobytes(), np.uint8)
    found = multihost_utils.process_allgather(raw)
    joined = np.ascontiguousarray(found).tobytes()
    shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
    return np.frombuffer(joined, x.dtype).reshape(shape)

  return jax.tree.map(one, tree)


def gather_json(value: Any) -> list:
  """A JSON value (arrays as lists) of every process, in their order."""
  if not several():
    return [value]
  text = json.dumps(value, default=lambda x: x.tolist())
  packed = np.frombuffer(zlib.compress(text.encode()), np.uint8)
  sizes = all_gather(np.array([len(packed)]))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(packed)] = packed
  pieces = all_gather(padded).reshape(len(sizes), -1)
  return [
    json.loads(zlib.decompress(piece[:size].tobytes()))
    for piece, size in zip(pieces, sizes, strict=True)
  ]


def finish() -> None:
  """Ends the job in good order: all processes are done."""
  global _job
  if _job is None:
    return
  barrier('the end')
  _job.watchdog.stop()
  jax.distributed.shutdown()
  _job = None


def give_up(code: int, message: str) -> None:
  """Tells the other processes why this one ends; the caller then ends it.

  Nothing that waits for the others may follow: end with os._exit.
  """
  if _job is not None:
    _job.watchdog.say_ended(code, message)


def wait_for_verdict() -> None:
  """After an error that a lost host may explain: lets the watchdog find out.

  Returns only if every host is still there.
  """
  if _job is not None:
    watchdog = _job.watchdog
    time.sleep(watchdog.timeout_s + 3 * watchdog.period_s)


__all__ = [
  'BAD_INPUT',
  'LOST',
  'Address',
  'HostsMissing',
  'all_gather',
  'any_wish',
  'barrier',
  'find_address',
  'finish',
  'from_primary',
  'gather',
  'give_up',
  'is_primary',
  'several',
  'start',
  'wait_for_verdict',
]
