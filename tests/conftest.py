"""Settings of the whole test run, and the fixtures that every room may use.

The environment is set before anything imports jax, and child processes that
tests start inherit it:
- CPU unless JAX_PLATFORMS says otherwise, with 8 fake devices for sharding;
- one thread for BLAS and OpenMP, since several workers share the cores;
- a persistent compilation cache, so that the workers, the processes that crash
  tests start and the next run compile each program once (`make clean` or
  `pytest --cache-clear` empties it).

Tests marked `crash` start and kill whole processes. They run first, so that
the longest work starts at once, and one at a time, so that they never compete
with one another: a lock, since `--dist loadgroup` of pytest-xdist 3.8 groups
nothing under pytest 9.2. Keep them in few files: a worker that waits for the
lock is idle.

A worker that compiled very many programs drops them between two files
(`telemetry.memory` says why).
"""

import fcntl
import os
import pathlib

REPO_ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = REPO_ROOT / '.pytest_cache' / 'd'  # `pytest --cache-clear` empties it
FAKE_DEVICES = 8

# Flags of the caller stay and, coming last, win.
os.environ['XLA_FLAGS'] = (
  f'--xla_force_host_platform_device_count={FAKE_DEVICES} '
  + os.environ.get('XLA_FLAGS', '')
).strip()
for _name, _value in {
  'JAX_PLATFORMS': 'cpu',
  'JAX_COMPILATION_CACHE_DIR': str(CACHE / 'jax'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
  'TOKENIZERS_PARALLELISM': 'false',
  'HYPOTHESIS_STORAGE_DIRECTORY': str(CACHE / 'hypothesis'),
  'MPLBACKEND': 'agg',
}.items():
  os.environ.setdefault(_name, _value)

import pytest  # noqa: E402  (after the environment)

from metastone_jax.telemetry import memory  # noqa: E402


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.get_closest_marker('crash') is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  if item.get_closest_marker('crash') is None:
    return (yield)
  CACHE.mkdir(parents=True, exist_ok=True)
  with open(CACHE / 'crash.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
    return (yield)


@pytest.fixture(scope='module', autouse=True)
def bounded_programs():
  """Keeps a worker below the memory maps that a process may have."""
  yield
  memory.bound_programs()


@pytest.fixture(scope='session')
def repo_root() -> pathlib.Path:
  """The folder of the clone: holds setup.cfg, launch/, configs/."""
  return REPO_ROOT


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real question files beside the clone, or a skip."""
  folder = REPO_ROOT.parent / 'shared' / 'data'
  if not folder.is_dir():
    pytest.skip('no real question files: ../shared/data is not there')
  return folder
