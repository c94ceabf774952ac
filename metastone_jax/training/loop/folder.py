"""What a run's folder says of itself: recipe, versions, parameters."""

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import optax
from etils import epath

from metastone_jax import __version__
from metastone_jax.checkpoints import (
  CheckpointManager,
  Pretrained,
  is_ours,
)
from metastone_jax.errors import UserError
from metastone_jax.training import optimiser
from metastone_jax.training import state as state_lib
from metastone_jax.training.loop.recipe import Recipe, parse_recipe
from metastone_jax.training.loop.setup import Setup


def versions() -> dict[str, str]:
  """Versions that a result depends on."""
  return {
    'metastone_jax': __version__,
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'optax': optax.__version__,
  }


def config_dict(recipe: Recipe) -> dict[str, Any]:
  """The recipe as JSON-able data."""
  return json.loads(json.dumps(dataclasses.asdict(recipe)))


def recipe_from_dict(tree: dict[str, Any]) -> Recipe:
  """The inverse of `config_dict`."""
  tree = dict(tree)
  phases = tree.pop('phases')
  return parse_recipe(
    {
      **tree,
      'phase_order': [phase['name'] for phase in phases],
      'phases': {
        phase['name']: {k: v for k, v in phase.items() if k != 'name'}
        for phase in phases
      },
    }
  )


def load_params(setup: Setup, folder: str, step: int | None):
  """Parameters of a checkpoint folder, on this run's devices.

  Raises:
    UserError: no such checkpoint, damaged, or of another shape.
  """
  abstract = state_lib.abstract_state(
    setup.model_config, optimiser.OptimiserConfig(), setup.sharder
  )
  with CheckpointManager(folder, read_only=True) as manager:
    tree, _, _ = manager.restore(
      step, {'train': {'params': abstract['params']}}, partial=True
    )
  return tree['train']['params']


def start_params(setup: Setup, status: Callable[[str], None]):
  """Parameters of `start_from` or `model.source`; None = fresh ones.

  Args:
    setup: of the run.
    status: shows what is being read.

  Raises:
    UserError: there are none, or they are damaged or of another shape.
  """
  recipe = setup.recipe
  if recipe.start_from:
    step = recipe.start_from_step
    return load_params(setup, recipe.start_from, None if step < 0 else step)
  if recipe.source is None:
    return None

  def progress(done: int, total: int) -> None:
    status(f'{recipe.source}: {done / 1e9:.2f} of {total / 1e9:.2f} GB')

  with Pretrained(recipe.source) as pretrained:
    params = pretrained.load(
      setup.model_config, setup.sharder, seed=recipe.seed, progress=progress
    )
  status('')
  return params


def check_workdir(
  recipe: Recipe, workdir: epath.Path, step: int | None
) -> None:
  """Refuses a folder in which this recipe can neither start nor go on.

  Args:
    recipe: the run.
    workdir: its folder.
    step: the checkpoint to resume from, if one was named.

  Raises:
    UserError: another recipe's folder, one of launch.ingest, or a step where
      there is nothing to resume.
  """
  path = workdir / 'config.json'
  if path.exists():
    check_same_recipe(recipe, path)
  elif is_ours(workdir):
    raise UserError(
      f'{workdir} is a folder of launch.ingest, not of a run; give another '
      f'--workdir, and start from it with --config.model.source={workdir}'
    )
  elif step is not None:
    raise UserError(
      f'--step={step}: there is nothing to resume in {workdir}; leave the flag '
      'out to start'
    )


def check_same_recipe(recipe: Recipe, path: epath.Path) -> None:
  """Refuses to continue a folder with another recipe.

  Raises:
    UserError: naming the first value that differs.
  """
  try:
    old, new = json.loads(path.read_text()), config_dict(recipe)
  except ValueError as error:
    raise UserError(
      f'{path} is damaged ({error}); restore it, or give another --workdir'
    ) from error
  for key, a, b in differences(old, new):
    raise UserError(
      f'{path} belongs to another recipe ({key}: {a!r} there, {b!r} here); '
      'give the same config to resume, or another --workdir'
    )


def differences(
  a: Any, b: Any, key: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """(key, value of a, value of b) where two of `config_dict` differ."""
  if isinstance(a, dict) and isinstance(b, dict):
    for name in sorted(set(a) | set(b)):
      inner = f'{key}.{name}' if key else name
      yield from differences(a.get(name), b.get(name), inner)
  elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
      yield from differences(x, y, f'{key}[{i}]')
  elif a != b:
    if isinstance(a, list) and isinstance(b, list):  # phases by their names
      a, b = (
        [x['name'] if isinstance(x, dict) else x for x in xs] for xs in (a, b)
      )
    yield key, a, b
