"""What a recipe asks of a machine, before anything is compiled."""

import importlib

import jax
import pytest

from metastone_jax.compile_check import accounting, targets
from metastone_jax.compile_check.engine_programs import Shapes, engine_programs
from metastone_jax.compile_check.plan import Plan
from metastone_jax.training import loop


def _plan(recipe: str, machine: str, **sampling):
  target = targets.parse(machine)
  config = importlib.import_module(f'configs.{recipe}').get_config(
    f'mesh={machine}'
  )
  config.sampling.update(sampling)
  return Plan.make(
    loop.parse_recipe(config, layout=target.name),
    target,
    accounting.Lengths(100.0, 0.6, 300),
  )


def test_the_engine_of_a_host():
  """128 problems of 8 responses: v5p-128 has 16 hosts, v6e-256 has 64."""
  plan = _plan('32b', 'v5p-128')
  assert (plan.problems_per_host, plan.responses_per_host) == (8, 64)
  shapes = Shapes.of(plan)
  assert (shapes.engine.num_slots, shapes.rows, shapes.shards) == (24, 6, 1)
  # Four prompts of 2,048 positions at a time.
  assert (shapes.positions, shapes.columns, shapes.read) == (2048, 32768, 4)
  # Every problem has its own slots.
  shapes = Shapes.of(_plan('1p5b', 'v6e-8'))
  assert (shapes.engine.num_slots, shapes.rows, shapes.shards) == (256, 32, 8)
  assert (shapes.engine.group, shapes.read) == (8, 8)
  # Every device has as many slots and rows, also where nothing fills them.
  shapes = Shapes.of(_plan('1p5b', 'v6e-8', slots=50))
  assert (shapes.engine.num_slots, shapes.rows) == (56, 16)
  shapes = Shapes.of(_plan('1p5b', 'v6e-8', slots=3))
  assert (shapes.engine.num_slots, shapes.rows, shapes.read) == (8, 8, 8)


def test_prefill_and_decode_of_a_host():
  plan = _plan('32b', 'v5p-128')
  prefill, decode = engine_programs(plan, jax.devices()[:4])
  assert (prefill.name, decode.name) == ('prefill', 'decode')
  # 64 layers, 8 heads of 128 over 4 devices, keys and values, 2 bytes.
  a_token = 64 * 2 * 128 * 2 * 2
  caches = a_token * (24 * 32768 + 6 * 2048)
  beside = plan.state_bytes + plan.reference_bytes
  assert decode.resident == beside
  # Masks, features and numbers of a slot beside the caches.
  small = prefill.resident - beside - caches
  assert 24 * 32768 <= small < 3e6
  assert prefill.times == 2  # 8 problems, 4 at a time
  assert decode.turns == 32
  assert decode.times * 32 == plan.lengths.turns(64, 24)
  # Weights once and full caches once.
  model = plan.model
  weights = model.num_backbone_parameters + model.num_score_parameters
  weights -= model.vocab_size * model.width
  assert decode.full_turn_bytes == pytest.approx(2 * weights / 4 + caches)
