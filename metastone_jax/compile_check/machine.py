"""A described machine, and what its compiler says of one program.

Call `prepare()` before jax is first used: the compilers read the environment.
"""

import contextlib
import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from metastone_jax.compile_check import hlo, traffic
from metastone_jax.compile_check.targets import Target
from metastone_jax.errors import UserError

# XLA's words when it cannot find a sharding between two it was given and
# copies the whole array to every device instead.
_FULL_REMATERIALIZATION = re.compile(
  r'[Ii]nvoluntary full rematerialization[^\n]*'
)
_OUT_OF_MEMORY = re.compile(
  r'Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm'
  r'|\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)'
)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one program, per device.

  Attributes:
    name: of the program.
    arguments: bytes of its arguments.
    results: bytes of results that do not alias an argument.
    temporaries: bytes alive while it runs.
    host: bytes of temporaries in the host's memory (offloaded).
    collectives: what it sends.
    seconds: the compilation took.
    refused: the compiler's reason for not compiling it, else ''; all bytes
      but those it names are then 0.
    turn_moves: bytes through memory in one turn of its decode loop, a turn's
      share of what is around the loop included; 0 = it has none.
  """

  name: str
  arguments: float
  results: float
  temporaries: float
  host: float
  collectives: hlo.Collectives
  seconds: float
  refused: str = ''
  turn_moves: float = 0.0

  @property
  def total(self) -> float:
    """Arguments + results - aliased + temporaries, in bytes."""
    return self.arguments + self.results + self.temporaries


def prepare() -> None:
  """Settings without which the compilers look for real devices."""
  for name, value in {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5p-8',
    # Several compilations may run beside one another.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }.items():
    os.environ.setdefault(name, value)
  # Warnings of the partitioner are read from its log.
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'
  flags = os.environ.get('XLA_FLAGS', '')
  if 'triton_gemm' not in flags:
    # Its autotuner wants a GPU.
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_enable_triton_gemm=false'


def devices(target: Target) -> list[Any]:
  """The devices of a described machine.

  Args:
    target: the machine.

  Raises:
    UserError: the compiler is not installed, or does not know the machine.
  """
  from jax.experimental import topologies  # noqa: PLC0415  (after `prepare`)

  chip = target.chip
  if chip.platform == 'tpu':
    options = {}
    if target.chips == 1:
      options['chips_per_host_bounds'] = (1, 1, 1)
    names = dict(platform='tpu', topology_name=target.topology, **options)
    package = 'jax[tpu]'
  else:
    nodes, gpus = target.topology.split('x')
    names = dict(
      platform='cuda',
      topology_name=target.family,
      topology=f'1x{nodes}x{gpus}',
      # XLA's description of the GPU, beside this file.
      target_config=(
        epath.resource_path(__package__) / f'{target.family}.txtpb'
      ).read_text(),
    )
    package = 'jax-cuda12-plugin'
  try:
    found = topologies.get_topology_desc(**names).devices
  except Exception as error:  # Whatever a plug-in raises.
    text = ' '.join(str(error).split())[:300]
    raise UserError(
      f'the compiler of {target.name} is not there or refuses it ({text}); '
      f'install the version of {package} that belongs to this jax in a '
      'virtual environment and run launch.compile from it'
    ) from error
  if len(found) != target.devices:
    raise UserError(
      f'the compiler describes {target.name} with {len(found)} devices; the '
      f'table of targets says {target.devices}'
    )
  return list(found)


@contextlib.contextmanager
def _log_of_compiler() -> Iterator[Path]:
  """Catches what the compiler itself writes to stderr, past Python."""
  with tempfile.NamedTemporaryFile(suffix='.log') as file:
    saved = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield Path(file.name)
    finally:
      os.dup2(saved, 2)
      os.close(saved)


def compile_program(
  name: str, lowered: Any, num_devices: int, turns: int | None = None
) -> Compiled:
  """Compiles, and reads memory and collectives.

  Args:
    name: of the program, for messages.
    lowered: `jit(...).lower(...)`.
    num_devices: of its mesh.
    turns: of its decode loop, the longest loop that it has; None = none.

  Returns:
    What the compiler says; a program that does not fit its memory is
    returned with `refused`.

  Raises:
    UserError: the partitioner had to copy a whole array to every device.
  """
  started = time.monotonic()
  with _log_of_compiler() as log:
    try:
      compiled = lowered.compile()
    except Exception as error:  # noqa: BLE001  The plug-ins' own classes.
      text = ' '.join(str(error).split())
      if 'RESOURCE_EXHAUSTED' not in text and 'out of memory' not in text:
        raise
      found = _OUT_OF_MEMORY.search(text)
      reason = text[:200]
      if found:
        reason = f'needs {found[1] or found[3]} of {found[2] or found[4]}'
      empty = hlo.Collectives({}, {}, 0)
      seconds = time.monotonic() - started
      return Compiled(name, 0, 0, 0, 0, empty, seconds, reason)
    written = log.read_text(errors='replace')
  if found := _FULL_REMATERIALIZATION.search(written):
    raise UserError(
      f'program {name}: XLA copies a whole array to every device, because two '
      f'shardings do not fit together ({found[0][:300]}); change the mesh or '
      'the rules so that they do'
    )
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  moves = 0.0
  if turns:
    moves = traffic.memory_traffic(text, main_turns=turns) / turns
  return Compiled(
    name=name,
    arguments=memory.argument_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    host=memory.host_temp_size_in_bytes,
    collectives=hlo.collectives(text, num_devices, turns),
    seconds=time.monotonic() - started,
    turn_moves=moves,
  )
