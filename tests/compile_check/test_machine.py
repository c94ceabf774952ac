"""What the compiler says: its log, its refusals, its sizes."""

import os
import types

import jax
import jax.numpy as jnp
import pytest

from metastone_jax.compile_check import machine
from metastone_jax.errors import UserError


def _lowered(compile_program):
  return types.SimpleNamespace(compile=compile_program)


def test_a_whole_copy_on_every_device_is_an_error():
  """The partitioner says so in its own log, past Python's stderr."""
  compiled = jax.jit(jnp.sin).lower(jnp.ones(3)).compile()

  def noisy():
    os.write(
      2,
      b'W0000 spmd_partitioner.cc:652] [SPMD] Involuntary full '
      b'rematerialization. The compiler was not able to go from sharding A\n',
    )
    return compiled

  with pytest.raises(UserError, match='program f: XLA copies .*sharding A'):
    machine.compile_program('f', _lowered(noisy), 8)


def test_other_words_of_the_compiler_are_none():
  def quiet():
    os.write(2, b'W0000 something else\n')
    return jax.jit(jnp.sin).lower(jnp.ones(1000)).compile()

  found = machine.compile_program('f', _lowered(quiet), 1)
  assert found.arguments == 4000 and found.results == 4000
  assert not found.refused and found.total == 8000 + found.temporaries


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used '
      '45.73G of 15.75G hbm. Exceeded hbm capacity by 29.98G.',
      'needs 45.73G of 15.75G',
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory '
      'required for HLO temporaries (46.61G) exceeds available HBM (15.75G).',
      'needs 46.61G of 15.75G',
    ),
  ],
)
def test_what_does_not_fit_is_said_not_raised(text, reason):
  def refuse():
    raise RuntimeError(text)

  found = machine.compile_program('f', _lowered(refuse), 8)
  assert found.refused == reason


def test_other_failures_are_raised():
  def fail():
    raise RuntimeError('INTERNAL: a bug')

  with pytest.raises(RuntimeError, match='a bug'):
    machine.compile_program('f', _lowered(fail), 8)
