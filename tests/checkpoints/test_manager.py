"""Round trips, retention, and everything that must be refused."""

import collections
import json
import logging
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax.checkpoints import (
  CheckpointManager,
  manager,
  write_json_atomic,
)
from metastone_jax.errors import UserError

Moments = collections.namedtuple('Moments', ['count', 'mu'])


def _bits(array):
  return np.asarray(array).tobytes()


def _assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for got, want in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape
    assert _bits(got) == _bits(want)


def _state(seed=0, width=6):
  rng = np.random.default_rng(seed)
  return {
    'params': {
      'head': {'kernel': jnp.asarray(rng.normal(size=(width, 2)), jnp.float32)},
      'embed': jnp.asarray(rng.normal(size=(8, width)), jnp.bfloat16),
    },
    'step': jnp.int32(seed),
  }


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def _save_steps(root, steps, **options):
  with CheckpointManager(root, **options) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(step), {'position': step})


def _largest_file(step_dir):
  return max(
    (path for path in step_dir.rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )


def test_round_trip_is_bit_equal_for_all_dtypes_and_scalars(tmp_path):
  patterns = np.arange(1 << 16, dtype=np.uint16)
  specials = np.array(
    [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 0.1], np.float32
  )
  state = {
    'float32': jnp.asarray(specials),
    # Zarr does not store chunks equal to zero; -0.0 must not be taken for it.
    'negative_zeros': jnp.full((4, 5), -0.0, jnp.float32),
    'zeros': jnp.zeros((3,), jnp.float32),
    'bfloat16': jax.lax.bitcast_convert_type(
      jnp.asarray(patterns), jnp.bfloat16
    ),
    'int32': jnp.arange(-5, 5, dtype=jnp.int32),
    'uint32': jnp.asarray([0, 1, 2**32 - 1], jnp.uint32),
    'bool': jnp.asarray([True, False]),
    'empty': jnp.zeros((0, 3), jnp.float32),
    'numpy64': np.array([0.1, -1e300], np.float64),
    'scalars': [3, 0.1, True, np.float32(0.2), jnp.float32(7)],
    'optimiser': (Moments(jnp.int32(4), {'w': jnp.ones((2,))}), None, ()),
  }
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.save(7, state, {'note': ('a', 1), 'nan': float('nan')})
  with CheckpointManager(tmp_path) as checkpoints:
    restored, extra, step = checkpoints.restore(abstract_state=state)
  assert step == 7
  assert extra['note'] == ['a', 1] and np.isnan(extra['nan'])
  _assert_same(restored, state)
  assert type(restored['scalars'][0]) is int
  assert type(restored['scalars'][1]) is float
  assert restored['scalars'][2] is True
  assert isinstance(restored['numpy64'], np.ndarray)
  assert isinstance(restored['optimiser'][0], Moments)


def test_restores_onto_another_sharding(tmp_path):
  devices = jax.devices()
  if len(devices) < 8:
    pytest.skip('needs 8 (fake) devices')
  mesh = jax.sharding.Mesh(
    np.array(devices[:8]).reshape(4, 2), ('fsdp', 'tensor')
  )
  spec = jax.sharding.PartitionSpec
  first = jax.sharding.NamedSharding(mesh, spec('fsdp', 'tensor'))
  second = jax.sharding.NamedSharding(mesh, spec('tensor', None))
  values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.save(1, {'w': jax.device_put(values, first)}, {})
    wanted = {'w': jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=second)}
    restored, _, _ = checkpoints.restore(1, wanted)
  assert restored['w'].sharding == second
  _assert_same(restored['w'], values)


def test_without_abstract_state_reads_nested_numpy(tmp_path):
  state = _state(3)
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.save(3, state, {})
    restored, _, _ = checkpoints.restore()
  assert isinstance(restored['params']['head']['kernel'], np.ndarray)
  _assert_same(restored, jax.tree.map(np.asarray, state))


def test_partial_restore_reads_a_part(tmp_path):
  state = _state(3)
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.save(3, state, {})
    part = {'params': _abstract(state['params'])}
    restored, _, _ = checkpoints.restore(3, part, partial=True)
    _assert_same(restored, {'params': state['params']})
    with pytest.raises(UserError, match='parameter step that this config'):
      checkpoints.restore(3, part)


def test_a_background_save_keeps_the_values_of_its_moment(tmp_path):
  bump = jax.jit(lambda x: x + 1, donate_argnums=0)
  state = {'w': jnp.zeros((256, 256), jnp.float32)}
  with CheckpointManager(tmp_path, max_to_keep=None) as checkpoints:
    for step in range(3):
      checkpoints.save(step, state, {}, wait=False)
      for _ in range(5):
        state = {'w': bump(state['w'])}
    checkpoints.wait()
    assert checkpoints.good_steps() == [0, 1, 2]
    for step in range(3):
      restored, _, _ = checkpoints.restore(step)
      np.testing.assert_array_equal(restored['w'], 5.0 * step)


def test_a_background_failure_is_raised_by_wait(tmp_path, monkeypatch):
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.save(1, _state(), {})

    def fail(step_dir, names):
      raise OSError('disk full')

    monkeypatch.setattr(manager.integrity, 'hash_files', fail)
    checkpoints.save(2, _state(), {}, wait=False)
    with pytest.raises(OSError, match='disk full'):
      checkpoints.wait()
    assert checkpoints.latest_step() == 1


def test_retention_keeps_the_newest_and_the_chosen(tmp_path):
  _save_steps(tmp_path, [10, 20, 30, 40, 50], max_to_keep=2, keep_steps=(20,))
  with CheckpointManager(tmp_path) as checkpoints:
    assert checkpoints.good_steps() == [20, 40, 50]
    assert checkpoints.latest_step() == 50
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ['20', '40', '50', 'integrity']


def test_an_earlier_step_ends_the_abandoned_continuation(tmp_path):
  _save_steps(tmp_path, [10, 20, 30])
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.restore(10)
    checkpoints.save(20, _state(99), {'position': 'second'})
    assert checkpoints.good_steps() == [10, 20]
    restored, extra, step = checkpoints.restore()
    assert (step, extra) == (20, {'position': 'second'})
    assert restored['step'] == 99


def test_saving_the_same_again_writes_nothing(tmp_path):
  with CheckpointManager(tmp_path) as checkpoints:
    checkpoints.save(5, _state(), {'x': float('nan')})
    before = (tmp_path / 'integrity' / '5.json').stat().st_mtime_ns
    checkpoints.save(5, _state(), {'x': float('nan')})
    assert (tmp_path / 'integrity' / '5.json').stat().st_mtime_ns == before


def _truncate(path):
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  return f'is truncated ({len(data) // 2} of {len(data)} bytes)'


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))
  return 'has changed (SHA-256 differs)'


def _grow(path):
  size = path.stat().st_size
  path.write_bytes(path.read_bytes() + b'x')
  return f'has {size + 1} bytes where {size} were written'


def _delete(path):
  path.unlink()
  return 'is missing'


@pytest.mark.parametrize('damage', [_truncate, _flip, _grow, _delete])
def test_damage_is_named_with_the_last_good_step(tmp_path, damage, caplog):
  _save_steps(tmp_path, [20, 30, 40])
  victim = _largest_file(tmp_path / '40')
  what = damage(victim)
  with CheckpointManager(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 40
    assert checkpoints.good_steps() == [20, 30]
    for step in (None, 40):
      with pytest.raises(UserError) as error:
        checkpoints.restore(step, _abstract(_state()))
      message = str(error.value)
      assert '\n' not in message
      assert f'checkpoint step 40 ({tmp_path / "40"}) is damaged' in message
      assert str(victim.relative_to(tmp_path / '40')) in message
      assert what in message
      assert 'the last good one is step 30' in message
      assert f'remove {tmp_path / "40"} or pass --step=30' in message
      assert ('--resume_from_last_good' in message) == (step is None)
      with pytest.raises(UserError, match='step 40 .* is damaged'):
        checkpoints.read_extra(step)
    with caplog.at_level(logging.WARNING, 'absl'):
      restored, extra, step = checkpoints.restore(
        None, _abstract(_state()), fallback=True
      )
    assert step == 30 and extra == {'position': 30}
    assert 'step 40' in caplog.text and what in caplog.text
    _assert_same(restored, _state(30))
    # The run goes on from 30 and replaces the damaged step.
    checkpoints.save(40, _state(40), {'position': 40})
    assert checkpoints.good_steps() == [20, 30, 40]


def test_following_the_advice_works(tmp_path):
  _save_steps(tmp_path, [20, 30, 40])
  _truncate(_largest_file(tmp_path / '40'))
  for path in sorted((tmp_path / '40').rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  (tmp_path / '40').rmdir()
  with CheckpointManager(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.restore()[2] == 30
  with CheckpointManager(tmp_path) as checkpoints:
    assert checkpoints.restore()[2] == 30
  assert not (tmp_path / 'integrity' / '40.json').exists()


def test_nothing_good_left(tmp_path):
  _save_steps(tmp_path, [1, 2])
  for step in (1, 2):
    _flip(_largest_file(tmp_path / str(step)))
  with CheckpointManager(tmp_path) as checkpoints:
    with pytest.raises(UserError, match='no good one is left'):
      checkpoints.restore()
    with pytest.raises(UserError, match='no good checkpoint is left'):
      checkpoints.restore(fallback=True)


@pytest.mark.parametrize(
  'text', ['', '{"format": 1, "state": "comp', '[]', '{}']
)
def test_an_unreadable_record_is_damage(tmp_path, text):
  _save_steps(tmp_path, [1, 2])
  (tmp_path / 'integrity' / '2.json').write_text(text)
  with CheckpointManager(tmp_path) as checkpoints:
    with pytest.raises(UserError, match=r'step 2 .*2\.json cannot be read'):
      checkpoints.restore()
    assert checkpoints.restore(fallback=True)[2] == 1


def test_a_step_without_record_is_ignored_with_a_warning(tmp_path, caplog):
  _save_steps(tmp_path, [1, 2])
  (tmp_path / 'integrity' / '2.json').unlink()
  with caplog.at_level(logging.WARNING, 'absl'):
    with CheckpointManager(tmp_path) as checkpoints:
      assert checkpoints.latest_step() == 1
      with pytest.raises(UserError, match='incomplete .* step 1'):
        checkpoints.restore(2)
      assert (tmp_path / '2').exists()
      checkpoints.save(2, _state(2), {})
      assert checkpoints.latest_step() == 2
  assert f'ignoring {tmp_path / "2"}' in caplog.text


def test_requests_that_cannot_be_met(tmp_path):
  with CheckpointManager(tmp_path / 'new') as checkpoints:
    assert checkpoints.latest_step() is None and checkpoints.good_steps() == []
    with pytest.raises(UserError, match='no complete checkpoint'):
      checkpoints.restore()
  with pytest.raises(UserError, match='no checkpoint directory'):
    CheckpointManager(tmp_path / 'nothing', read_only=True)
  with pytest.raises(UserError, match='max_to_keep'):
    CheckpointManager(tmp_path, max_to_keep=0)
  _save_steps(tmp_path / 'a', [1, 2])
  with CheckpointManager(tmp_path / 'a', read_only=True) as checkpoints:
    with pytest.raises(UserError, match='step 3 .* it has 1, 2'):
      checkpoints.restore(3)
    with pytest.raises(RuntimeError, match='read-only'):
      checkpoints.save(3, _state(), {})


def test_what_cannot_be_stored_fails_before_any_write(tmp_path):
  with CheckpointManager(tmp_path) as checkpoints:
    for state in ({'a': 'text'}, {'a': jax.random.key(0)}, {}):
      with pytest.raises(ValueError):
        checkpoints.save(1, state, {})
    with pytest.raises(TypeError):
      checkpoints.save(1, _state(), {'f': object()})
    assert not (tmp_path / 'integrity').exists()


def test_mismatch_names_the_parameter_the_shapes_and_the_config(tmp_path):
  root = tmp_path / 'run' / 'checkpoints'
  with CheckpointManager(root) as checkpoints:
    checkpoints.save(
      4, _state(width=6), {'config': {'batch': 6, 'model': {'width': 6}}}
    )
    with pytest.raises(UserError) as error:
      checkpoints.restore(4, _abstract(_state(width=10)))
    message = str(error.value)
    assert 'params/embed has shape (8, 6) there and (8, 10) here' in message
    assert 'written by a model with model.width 6' in message
    assert str(tmp_path / 'run' / 'config.json') in message

    renamed = _abstract(_state())
    renamed['params']['score'] = renamed['params'].pop('head')
    with pytest.raises(UserError, match='no parameter params/score/kernel'):
      checkpoints.restore(4, renamed)

    other = _abstract(_state())
    other['step'] = jax.ShapeDtypeStruct((), jnp.uint32)
    with pytest.raises(UserError, match='step is int32 there and uint32 here'):
      checkpoints.restore(4, other)


def test_orbax_chatter_is_dropped_and_ours_is_kept(tmp_path, caplog):
  with caplog.at_level(logging.INFO, 'absl'):
    with CheckpointManager(tmp_path) as checkpoints:
      checkpoints.save(1, _state(), {})
      checkpoints.restore()
      checkpoints.save(1, _state(), {})
  assert [record.message for record in caplog.records] == [
    f'step 1 is already saved in {tmp_path}'
  ]


def test_write_json_atomic(tmp_path):
  path = tmp_path / 'deep' / 'a.json'
  write_json_atomic(
    path,
    {
      'n': float('nan'),
      'a': np.arange(2),
      'b': jnp.bfloat16(0.5),
      'p': tmp_path,
    },
  )
  assert json.loads(path.read_text()) == {
    'n': None,
    'a': [0, 1],
    'b': 0.5,
    'p': str(tmp_path),
  }
  with pytest.raises(TypeError):
    write_json_atomic(path, {'x': object()})
  assert json.loads(path.read_text())['b'] == 0.5
  assert [child.name for child in path.parent.iterdir()] == ['a.json']


def test_a_full_disk_is_refused_before_the_first_byte(tmp_path, monkeypatch):
  state = {'w': np.arange(1000, dtype=np.float32)}
  with CheckpointManager(tmp_path / 'c') as saver:
    saver.save(1, state, {})
    usage = collections.namedtuple('Usage', 'total used free')
    monkeypatch.setattr(
      manager.shutil, 'disk_usage', lambda path: usage(9999, 6000, 3999)
    )
    with pytest.raises(UserError, match=r'too full for step 2: it needs 0.000'):
      saver.save(2, state, {})
    assert saver.good_steps() == [1]
    assert not saver.step_dir(2).exists()


def test_a_disk_that_fills_while_writing_is_one_error(tmp_path):
  """The kernel refuses the bytes themselves; the step before stands."""
  rng = np.random.default_rng(0)
  with CheckpointManager(tmp_path) as saver:
    saver.save(1, {'a': jnp.arange(3.0)}, {}, wait=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
    try:
      with pytest.raises(UserError, match=r'step 2 .*too large.*stand: free'):
        state = {'a': jnp.asarray(rng.normal(size=2**18))}
        saver.save(2, state, {}, wait=True)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saver.latest_step() == 1
    assert saver.good_steps() == [1]
