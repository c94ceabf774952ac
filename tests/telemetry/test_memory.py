"""Programs are let go of where a process has many memory maps, only there."""

import jax
import jax.numpy as jnp
import pytest

from metastone_jax.telemetry import memory

pytestmark = pytest.mark.skipif(
  not memory.memory_maps(), reason='no /proc/self/maps on this system'
)


def _compiled(count):
  """Programs that nothing compiled before; they stay alive in the list."""
  programs = [jax.jit(lambda x, k=k: jnp.sin(x * k) @ x) for k in range(count)]
  for program in programs:
    program(jnp.ones((3, 3)))
  return programs


def test_programs_below_the_limit_stay():
  (program,) = _compiled(1)
  assert not memory.bound_programs(most=memory.memory_maps() + 100)
  assert program._cache_size() == 1


def test_programs_above_the_limit_go_with_their_maps():
  empty = memory.memory_maps()
  programs = _compiled(50)
  full = memory.memory_maps()
  assert full >= empty + 100  # else XLA has changed and nothing is needed
  assert memory.bound_programs(most=full - 1)
  assert all(program._cache_size() == 0 for program in programs)
  assert memory.memory_maps() < full - 100
  programs[3](jnp.ones((3, 3)))  # and is compiled again where it is called
  assert programs[3]._cache_size() == 1
