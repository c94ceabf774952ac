"""Who is there: all processes meet before JAX starts, or learn who is missing.

`jax.distributed` ends a process whose peers do not appear with a stack trace
that names nobody. So the processes meet here first, over plain sockets on the
coordinator's port, which JAX's own service takes over afterwards: each tells
process 0 its number and host name, and process 0 answers all of them at once
with the table of host names, or with the numbers that did not come.
"""

import json
import select
import socket
import time

from metastone_jax.errors import UserError

_RETRY_SECONDS = 0.2
_LONGEST_LINE = 1 << 20


def split_address(address: str) -> tuple[str, int]:
  """(host, port) of HOST:PORT, also [IPV6]:PORT.

  Raises:
    UserError: it is none.
  """
  host, colon, port = address.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(
      f'--coordinator={address!r} is no HOST:PORT; give the address of process '
      "0, such as 10.0.0.1:8476, or 'auto'"
    )
  return host, int(port)


def _read_line(connection: socket.socket, deadline: float) -> bytes:
  """One line, without its end; empty where the peer went away."""
  line = b''
  while not line.endswith(b'\n'):
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    piece = connection.recv(65536)
    if not piece or len(line) > _LONGEST_LINE:
      return b''
    line += piece
  return line[:-1]


def _listen(port: int) -> socket.socket:
  for family, host in ((socket.AF_INET6, '::'), (socket.AF_INET, '')):
    try:
      server = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
      continue
    try:
      server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
      server.bind((host, port))
      server.listen(1024)
      return server
    except OSError as error:
      server.close()
      failure = error
  raise UserError(
    f'--coordinator: process 0 cannot listen on port {port} '
    f'({failure.strerror}); is another job running there? Give another port'
  )


def meet(
  address: str, num_processes: int, process_id: int, timeout_s: float
) -> list[str]:
  """Waits until all processes are there.

  Args:
    address: HOST:PORT of process 0.
    num_processes: how many are expected.
    process_id: number of this one.
    timeout_s: seconds to wait.

  Returns:
    Host names by process number.

  Raises:
    UserError: some did not come in time (named), or they do not fit together.
  """
  host, port = split_address(address)
  deadline = time.monotonic() + timeout_s
  if process_id == 0:
    return _receive(port, num_processes, deadline, timeout_s)
  return _report(host, port, num_processes, process_id, deadline, timeout_s)


def _receive(port, num_processes, deadline, timeout_s) -> list[str]:
  names: dict[int, str] = {0: socket.gethostname()}
  peers: dict[int, socket.socket] = {}
  problem = ''
  with _listen(port) as server:
    while len(names) < num_processes and not problem:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([server], [], [], left)[0]:
        break
      connection, _ = server.accept()
      # A port scanner must not hold up the start.
      try:
        line = _read_line(connection, min(deadline, time.monotonic() + 5))
        found = json.loads(line)
        number, name = int(found['process_id']), str(found['host'])
        count = int(found['num_processes'])
      except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        continue
      if count != num_processes:
        problem = (
          f'process {number} on {name} expects {count} processes and process 0 '
          f'on {names[0]} expects {num_processes}; start all with the same '
          '--num_processes'
        )
      elif number in names:
        problem = (
          f'two processes have --process_id={number}, on {names[number]} and '
          f'{name}; give each its own, from 0 to {num_processes - 1}'
        )
        connection.sendall(json.dumps({'problem': problem}).encode() + b'\n')
        connection.close()
        continue
      names[number] = name
      peers[number] = connection
  if not problem and len(names) < num_processes:
    missing = [i for i in range(num_processes) if i not in names]
    there = ', '.join(f'{i} on {names[i]}' for i in sorted(names))
    shown = ', '.join(map(str, missing[:16]))
    shown += f' and {len(missing) - 16} more' if len(missing) > 16 else ''
    problem = (
      f'{len(missing)} of {num_processes} processes did not start within '
      f'{timeout_s:g} s: process {shown} missing; there are {there}. Look at '
      'the logs of the missing ones, check that they reach --coordinator on '
      f'port {port}, and that --num_processes={num_processes} is right'
    )
  answer = (
    {'problem': problem}
    if problem
    else {'hosts': [names[i] for i in range(num_processes)]}
  )
  line = json.dumps(answer).encode() + b'\n'
  for connection in peers.values():
    try:
      connection.sendall(line)
      # The other side closes first, so that no closed connection keeps the
      # port from JAX's service.
      connection.settimeout(5)
      connection.recv(1)
    except OSError:
      pass  # what became of it shows when JAX starts
    connection.close()
  if problem:
    raise UserError(problem)
  return answer['hosts']


def _report(
  host, port, num_processes, process_id, deadline, timeout_s
) -> list[str]:
  name = socket.gethostname()
  hello = json.dumps(
    {'process_id': process_id, 'host': name, 'num_processes': num_processes}
  ).encode()
  failure = 'no answer'
  while time.monotonic() < deadline:
    try:
      left = deadline - time.monotonic()
      with socket.create_connection((host, port), timeout=left) as connection:
        connection.sendall(hello + b'\n')
        # Process 0 knows the missing ones at its own deadline, a little later.
        line = _read_line(connection, deadline + 10)
      answer = json.loads(line)
    except (OSError, ValueError) as error:
      failure = getattr(error, 'strerror', None) or str(error) or failure
      time.sleep(_RETRY_SECONDS)
      continue
    if answer.get('problem'):
      raise UserError(answer['problem'])
    return list(answer['hosts'])
  raise UserError(
    f'process {process_id} on {name} did not reach process 0 at {host}:{port} '
    f'within {timeout_s:g} s ({failure}); check that process 0 runs, that '
    '--coordinator is its address, and that the port is open'
  )
