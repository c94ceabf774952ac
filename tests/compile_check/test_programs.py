"""What a recipe asks of a machine, before anything is compiled."""

import importlib

from metastone_jax.compile_check import accounting, programs, targets
from metastone_jax.training import loop


def _plan(recipe: str, machine: str, **sampling):
  target = targets.parse(machine)
  config = importlib.import_module(f'configs.{recipe}').get_config(
    f'mesh={machine}'
  )
  config.sampling.update(sampling)
  return programs.Plan.make(
    loop.parse_recipe(config, layout=target.name),
    target,
    accounting.Lengths(100.0, 0.6, 300),
  )


def test_waves_of_a_host():
  """128 problems of 8 responses: v5p-128 has 16 hosts, v6e-256 has 64."""
  plan = _plan('32b', 'v5p-128')
  assert (plan.problems_per_host, plan.wave, plan.waves) == (8, (3, 8), 3)
  plan = _plan('32b', 'v6e-256')
  assert (plan.problems_per_host, plan.wave, plan.waves) == (2, (1, 4), 4)
  plan = _plan('32b', 'v6e-256', slots=3)
  assert plan.waves == 6
