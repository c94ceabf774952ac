"""What a point's kind means, and which page a sweep's kind writes.

A further one is a line here. Modules are imported when they are needed: most
bring JAX. A kind may also name its function itself, as `module:function`.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan, table

_RUNS = 'metastone_jax.scaling.runs'

# kind of a point -> run(point, job) -> rows
RUNNERS = {
  'train': f'{_RUNS}.law:train',
  'sample': f'{_RUNS}.law:sample',
  'base': f'{_RUNS}.material:base',
  'material': f'{_RUNS}.material:material',
  'arm': f'{_RUNS}.arms:arm',
}

# kind of a sweep -> write(config, workdir, page, rows, *, command) -> paths
# Beside it its module may have check(config), which refuses options that write
# cannot use: it is called before any work, not hours later.
PAGES = {
  'scaling_law': f'{_RUNS}.law_page:write',
  'claims': f'{_RUNS}.claims_page:write',
}


def check(kind: str, known: dict[str, str] = RUNNERS) -> None:
  """Refuses an unknown kind, without importing anything.

  Raises:
    UserError: it is neither known nor `module:function`.
  """
  if kind not in known and not kind.partition(':')[2]:
    what = 'sweep' if known is PAGES else 'point'
    raise UserError(
      f'kind of a {what}: {kind!r} is unknown; use one of {", ".join(known)}, '
      'or module:function'
    )


def runner(kind: str) -> Callable:
  """What does a point of this kind.

  Raises:
    UserError: an unknown kind, or a function that is not there.
  """
  return _function(kind, RUNNERS)


def page(kind: str) -> Callable:
  """What writes the page of a sweep of this kind.

  Raises:
    UserError: as `runner`.
  """
  return _function(kind, PAGES)


def check_page(config: Mapping[str, Any]) -> None:
  """Refuses a sweep whose page could not be written.

  Args:
    config: of the sweep.

  Raises:
    UserError: as `page`, or options that the page cannot use.
  """
  module = sys.modules[page(config['kind']).__module__]
  if hasattr(module, 'check'):
    module.check(config)


def check_done(points: plan.Plan, workdir: epath.Path) -> None:
  """Refuses points that are done but would not come out the same now.

  Only what their runner's module can see: `check_done(point, folder)`.

  Raises:
    UserError: as that function says.
  """
  for name, point in points.points.items():
    folder = plan.point_folder(workdir, name)
    if table.is_done(folder):
      module = sys.modules[runner(point['kind']).__module__]
      if hasattr(module, 'check_done'):
        module.check_done(point, folder)


def _function(kind: str, known: dict[str, str]) -> Callable:
  check(kind, known)
  module, _, name = known.get(kind, kind).partition(':')
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError) as error:
    raise UserError(f'kind {kind!r} cannot be loaded: {error}') from error
