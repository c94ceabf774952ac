"""Collectives read from text: by hand, and from programs on 8 CPU devices."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metastone_jax.compile_check import hlo

# As the TPU compiler writes it: layouts in the shapes, a line break inside an
# operation, groups by mesh, start operations with tuples.
TEXT = (pathlib.Path(__file__).parent / 'module.hlo').read_text()


def test_by_hand():
  found = hlo.collectives(TEXT, 8)
  assert found.count == {
    'all-gather': 7,
    'all-reduce': 1,
    'reduce-scatter': 2,
    'all-to-all': 0,
    'collective-permute': 1,
  }
  # Five turns of 64 floats over 4 devices, and one that begins before the loop
  # and goes on in its fusions; 64 floats over all 8.
  assert found.sent['all-gather'] == 6 * 64 * 4 * 3 / 4 + 64 * 4 * 7 / 8
  assert found.sent['all-reduce'] == 100 * 2 * 2 * 1 / 2
  assert found.sent['reduce-scatter'] == 16 * 4 * 3 + 10 * 4 * 7
  assert found.sent['collective-permute'] == 40
  assert found.unknown_loops == 1
  assert found.total_sent == sum(found.sent.values())


def test_turns_of_the_longest_loop_can_be_given():
  """Seven instead of the five turns that its condition tells."""
  found = hlo.collectives(TEXT, 8, main_turns=7)
  assert found.count['all-gather'] == 9
  assert found.unknown_loops == 1


def _mesh():
  return Mesh(
    np.array(jax.devices()[:8]).reshape(2, 4),
    ('a', 'b'),
    axis_types=(AxisType.Auto,) * 2,
  )


@pytest.mark.parametrize('turns', [1, 7])
def test_a_scan_counts_as_often_as_it_runs(turns):
  mesh = _mesh()

  def f(w, xs):
    def body(carry, x):
      y = jax.lax.with_sharding_constraint(
        x @ w, NamedSharding(mesh, PartitionSpec())
      )
      return carry + y.sum(), None

    return jax.lax.scan(body, 0.0, xs)[0]

  split = NamedSharding(mesh, PartitionSpec('b', None))
  text = (
    jax.jit(f)
    .lower(
      jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split),
      jax.ShapeDtypeStruct(
        (turns, 16, 64),
        jnp.float32,
        sharding=NamedSharding(mesh, PartitionSpec(None, None, 'b')),
      ),
    )
    .compile()
    .as_text()
  )
  found = hlo.collectives(text, 8)
  # One sum of (16, 32) floats over 4 devices a turn.
  assert found.sent['all-reduce'] == turns * 16 * 32 * 4 * 2 * 3 / 4
