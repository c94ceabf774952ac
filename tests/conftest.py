"""Settings of the whole test run, and the fixtures that every room may use.

The environment is set before anything imports jax, and child processes that
tests start inherit it:
- CPU unless JAX_PLATFORMS says otherwise, with 8 fake devices for sharding;
- one thread for BLAS and OpenMP, since several workers share the cores;
- a persistent compilation cache, so that the workers, the processes that crash
  tests start and the next run compile each program once (`make clean` or
  `pytest --cache-clear` empties it).

Order: each file is one xdist group, so its fixtures and compiled programs are
made once. All tests marked `crash` form one group, so that they never compete
with one another for time, and come first, so that the longest group starts at
once.
"""

import os
import pathlib

REPO_ROOT = pathlib.Path(__file__).resolve().parent.parent
FAKE_DEVICES = 8

# Flags of the caller stay and, coming last, win.
os.environ['XLA_FLAGS'] = (
  f'--xla_force_host_platform_device_count={FAKE_DEVICES} '
  + os.environ.get('XLA_FLAGS', '')
).strip()
for _name, _value in {
  'JAX_PLATFORMS': 'cpu',
  'JAX_COMPILATION_CACHE_DIR': str(REPO_ROOT / '.pytest_cache' / 'd' / 'jax'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
  'TOKENIZERS_PARALLELISM': 'false',
  'HYPOTHESIS_STORAGE_DIRECTORY': str(
    REPO_ROOT / '.pytest_cache' / 'd' / 'hypothesis'
  ),
  'MPLBACKEND': 'agg',
}.items():
  os.environ.setdefault(_name, _value)

import pytest  # noqa: E402  (after the environment)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
  if not config.pluginmanager.hasplugin('xdist'):
    return  # plain `pytest -p no:xdist`: there is nothing to spread
  for item in items:
    if item.get_closest_marker('xdist_group') is None:
      crash = item.get_closest_marker('crash') is not None
      group = 'crash' if crash else item.nodeid.partition('::')[0]
      item.add_marker(pytest.mark.xdist_group(group))
  items.sort(key=lambda item: item.get_closest_marker('crash') is None)


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
