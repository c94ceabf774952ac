"""From logical axes to shardings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from metastone_jax.parallel import DEFAULT_RULES, Sharder, make_mesh


def _sharder(**sizes):
  return Sharder(make_mesh(sizes))


@pytest.mark.parametrize(
  ('axes', 'shape', 'spec'),
  [
    (('embed', 'heads', 'head_width'), (16, 4, 8), ('fsdp', 'tensor', None)),
    (('heads', 'head_width', 'embed'), (4, 8, 16), ('tensor', None, 'fsdp')),
    (('layer', 'embed', 'feed_forward'), (3, 8, 6), (None, 'fsdp', 'tensor')),
    (('vocabulary', 'embed'), (24, 16), ('tensor', 'fsdp')),
    (('batch', 'length', 'activation'), (8, 7, 16), ('fsdp', None, None)),
    (('score_hidden', None), (32, 1), ('tensor', None)),
    # What the mesh does not divide stays whole.
    (('vocabulary', 'embed'), (23, 16), (None, 'fsdp')),
    (('embed', 'kv_heads', 'head_width'), (18, 3, 8), (None, None, None)),
    ((), (), ()),
  ],
)
def test_specs(axes, shape, spec):
  got = _sharder(fsdp=4, tensor=2).spec(axes, shape)
  want = (None if s is None else (s,) for s in spec)
  assert got == PartitionSpec(*want)


def test_batch_is_split_over_data_and_fsdp():
  sharder = _sharder(data=2, fsdp=2, tensor=2)
  assert sharder.spec(('batch', None), (8, 3)) == PartitionSpec(
    ('data', 'fsdp'), None
  )
  # Whole or not at all: 6 rows do not divide into 4.
  assert sharder.spec(('batch', None), (6, 3)) == PartitionSpec(None, None)
  # A mesh axis serves one array axis only.
  assert sharder.spec(('batch', 'embed'), (8, 16)) == PartitionSpec(
    ('data', 'fsdp'), None
  )


def test_own_rules_and_unknown_names():
  mesh = make_mesh({'fsdp': 4, 'tensor': 2})
  sharder = Sharder(mesh, {**DEFAULT_RULES, 'embed': ('tensor', 'fsdp')})
  assert sharder.spec(('embed',), (16,)) == PartitionSpec(('tensor', 'fsdp'))
  with pytest.raises(KeyError):
    sharder.spec(('width',), (16,))
  with pytest.raises(ValueError):
    sharder.spec(('embed',), (16, 2))


def test_sharders_are_static_arguments():
  one, two = _sharder(fsdp=8), _sharder(fsdp=8)
  assert one == two and hash(one) == hash(two)
  assert one != Sharder()
  assert dataclasses.replace(one, rules={'batch': ()}) != one


def test_without_a_mesh_nothing_happens():
  sharder = Sharder()
  x = jnp.arange(6.0)
  assert sharder.constrain(x, 'batch') is x
  assert sharder.sharding(('batch',), (6,)) is None
  assert sharder.tree_shardings({'x': x}, {'x': ('batch',)}) is None
  np.testing.assert_array_equal(sharder.put_batch({'x': np.arange(6)})['x'], x)


def test_constrain_and_put_batch_place_the_rows():
  sharder = _sharder(fsdp=4, tensor=2)
  rows = np.arange(24, dtype=np.int32).reshape(8, 3)
  batch = sharder.put_batch({'tokens': rows, 'row': np.arange(8)})
  for name in batch:
    assert batch[name].sharding.spec[0] in ('fsdp', ('fsdp',))
    assert {s.data.shape[0] for s in batch[name].addressable_shards} == {2}
  np.testing.assert_array_equal(batch['tokens'], rows)

  @jax.jit
  def double(x):
    return sharder.constrain(2 * x, 'batch', 'vocabulary')

  # 3 columns do not divide over tensor=2.
  got = double(rows)
  assert got.addressable_shards[0].data.shape == (2, 3)
  np.testing.assert_array_equal(got, 2 * rows)


def test_tree_shardings_follow_the_tree():
  sharder = _sharder(fsdp=4, tensor=2)
  abstract = {
    'a': {'kernel': jax.ShapeDtypeStruct((16, 6), jnp.float32)},
    'b': jax.ShapeDtypeStruct((5,), jnp.float32),
  }
  got = sharder.tree_shardings(
    abstract, {'a': {'kernel': ('embed', 'feed_forward')}, 'b': ('embed',)}
  )
  assert got['a']['kernel'].spec == PartitionSpec(('fsdp',), ('tensor',))
  assert got['b'].spec == PartitionSpec(None)
