"""Step scores at marks, in every form, against numpy in float64.

Kernels are interpreted, in blocks small enough that a few dozen marks fill
several of them. A program takes the marks as data, so each is compiled once and
tried with many.
"""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import (
  blocks_tpu,
  dropout,
  feature_tpu,
  marks,
  op,
  pallas_gpu,
  pallas_tpu,
  pallas_tpu_backward,
  product_tpu,
  rows_tpu,
  steps,
)
from tests import quick

B, T, D, E = 2, 49, 128, 384
RATE = 0.4
SEED = 7
# Rows hold several sequences, whose positions start anew.
ROW = np.arange(B * T, dtype=np.uint32).reshape(B, T) // 20
POSITION = np.arange(B * T, dtype=np.uint32).reshape(B, T) % 20
INTERPRET = {'plain': True, 'tpu': pltpu.InterpretParams()}


def _mix(x):
  """murmur3's finaliser in Python's whole numbers."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
  return x ^ (x >> 16)


@functools.cache
def _kept() -> np.ndarray:
  """bool (B, T, E): units that dropout keeps, one by one."""
  keep = np.zeros((B, T, E), bool)
  for b, t in np.ndindex(B, T):
    row = _mix((int(ROW[b, t]) * 0x9E3779B9 + SEED) & 0xFFFFFFFF)
    place = _mix((row + int(POSITION[b, t]) * 0x85EBCA77) & 0xFFFFFFFF)
    for e in range(E):
      bits = _mix(place ^ ((e * 0xC2B2AE3D) & 0xFFFFFFFF))
      keep[b, t, e] = bits >= int(RATE * 2**32)
  return keep


@functools.cache
def _inputs() -> tuple[np.ndarray, ...]:
  """Features, weights, and weights of the loss; bfloat16 has them exactly."""
  rng = np.random.default_rng(0)
  shapes = ((B, T, D), (D, E), (E,), (E, 1), (1,), (B, T), (B, T))
  scales = (1, D**-0.5, 0.3, E**-0.5, 1, 1, 1)
  return tuple(
    np.asarray(
      jnp.asarray(rng.normal(size=shape, scale=scale), jnp.bfloat16),
      np.float64,
    )
    for shape, scale in zip(shapes, scales, strict=True)
  )


def _numpy(mark, dropout: bool):
  """Logits, log-scores and the gradients of the loss, written out."""
  x, w1, b1, w2, b2, u, v = _inputs()
  times = _kept() / (1 - RATE) if dropout else np.ones((B, T, E))
  value = x @ w1 + b1
  hidden = np.maximum(value, 0) * times
  logit = np.where(mark, (hidden @ w2 + b2)[..., 0], 0)
  score = np.where(mark, -np.logaddexp(0, -logit), 0)
  dz = np.where(mark, u + v / (1 + np.exp(logit)), 0)
  dh = dz[..., None] * w2[:, 0] * (value > 0) * times
  return (
    logit,
    score,
    dh @ w1.T,
    np.einsum('BTD,BTE->DE', x, dh),
    dh.sum((0, 1)),
    np.einsum('BT,BTE->E', dz, hidden)[:, None],
    dz.sum()[None],
  )


@contextlib.contextmanager
def _small_blocks():
  """Blocks that a few marks fill, and two cores where a kernel can."""
  blocks = blocks_tpu.Blocks(marks=32, units=128, chunk=16, rows=32)
  product = blocks_tpu.ProductBlocks(marks=32, width=128, units=128)
  gpu = pallas_gpu.Blocks(
    marks=16, units=64, depth=64, shares=3, lines=2, round=32
  )
  with contextlib.ExitStack() as stack:
    for target, name, value in (
      (blocks_tpu, 'blocks', lambda *_, **__: blocks),
      (blocks_tpu, 'product_blocks', lambda *_: product),
      (pallas_tpu_backward, 'ROUND_SLOTS', 64),
      (rows_tpu, '_TOGETHER', 1),
      (pallas_gpu, 'BLOCKS', gpu),
      (steps, '_CPU_CHUNK', 16),
      (op, '_cores', lambda _: 2),
    ):
      stack.enter_context(mock.patch.object(target, name, value))
    yield


def _build(kind, interpret=False, dropout=True, split=None, gradient=True):
  """A jitted function of marks and inputs: everything `_numpy` returns."""

  def scores(head, mark, row, position):
    return op.step_scores(
      *head,
      mark,
      dropout_rate=RATE,
      seed=jnp.uint32(SEED) if dropout else None,
      row_B=row,
      position_BT=position,
      split=split,
      kind=kind,
      interpret=interpret,
    )

  def run(head, u, v, mark, row, position):
    if not gradient:
      return scores(head, mark, row, position)

    def loss(head):
      logit, score = scores(head, mark, row, position)
      return jnp.sum(u * logit + v * score), (logit, score)

    grads, values = jax.grad(loss, has_aux=True)(head)
    return *values, *grads

  return quick.jit(run)


@functools.cache
def _program(kind, interpret=None, dropout=True):
  return _build(kind, INTERPRET.get(interpret, False), dropout)


def _run(program, mark, dtype=jnp.bfloat16):
  """Features of `dtype`; weights are float32 masters, or float64."""
  x, *rest = _inputs()
  master = jnp.promote_types(dtype, jnp.float32)
  *weights, u, v = (jnp.asarray(a, master) for a in rest)
  head = (jnp.asarray(x, dtype), *weights)
  with _small_blocks():
    found = program(head, u, v, jnp.asarray(mark), ROW, POSITION)
  return [np.asarray(a, np.float64) for a in found]


def _assert_close(found, mark, dropout=True, exact=False):
  """Within the rounding of bfloat16 products, or of float64."""
  expected = _numpy(mark, dropout)
  for i, (got, want) in enumerate(zip(found, expected, strict=False)):
    assert np.isfinite(got).all()
    scale = np.abs(want).max(initial=0)
    # Values and sums over marks of exact products against those that round
    # each mark's gradient, and the features' own.
    relative = 1e-12 if exact else (5e-6 if i in (0, 1, 4, 5, 6) else 2**-8)
    np.testing.assert_allclose(
      got, want, rtol=relative, atol=relative * scale, err_msg=str(i)
    )
  for got in found[:3]:
    np.testing.assert_array_equal(got[~mark], 0)


def _marks(name: str) -> np.ndarray:
  """Ragged: none, all, few, many, one, and runs that cross blocks."""
  rng = np.random.default_rng(1)
  mark = np.zeros(B * T, bool)
  if name == 'one':
    mark[-1] = True
  elif name == 'run':
    mark[3:70] = True
  else:
    share = {'none': 0, 'few': 0.06, 'half': 0.5, 'many': 0.9, 'all': 1}[name]
    mark = rng.random(B * T) < share
  return mark.reshape(B, T)


NAMES = ('none', 'one', 'few', 'half', 'many', 'run', 'all')
FORMS = [
  ('xla', None),
  ('pallas_tpu', 'plain'),
  ('pallas_tpu', 'tpu'),
  ('pallas_gpu', 'plain'),
]


@pytest.mark.parametrize('kind,interpret', FORMS)
def test_values_and_gradients(kind, interpret):
  for name in NAMES:
    mark = _marks(name)
    found = _run(_program(kind, interpret), mark)
    # XLA rounds each mark's gradient of the hidden units, too.
    _assert_close(found, mark)


@pytest.mark.parametrize('kind,interpret', [FORMS[0], FORMS[3]])
def test_without_dropout(kind, interpret):
  for name in ('few', 'all'):
    mark = _marks(name)
    found = _run(_program(kind, interpret, False), mark)
    _assert_close(found, mark, dropout=False)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
  st.sampled_from([FORMS[0], FORMS[1], FORMS[3]]),
  st.lists(st.booleans(), min_size=B * T, max_size=B * T),
)
def test_any_marks(form, mark):
  mark = np.array(mark).reshape(B, T)
  _assert_close(_run(_program(*form), mark), mark)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_other_dtypes_are_xla(dtype):
  with jax.enable_x64(dtype == 'float64'):
    mark = _marks('half')
    found = _run(_build('auto'), mark, dtype)
    if dtype == 'float64':
      _assert_close(found, mark, exact=True)
    else:
      _assert_close(found, mark)


def test_scores_are_those_of_scoring_head():
  """The same dropout: bits of the operator that scores every position."""
  x, *weights = (jnp.asarray(a, jnp.float32) for a in _inputs()[:5])
  mark = _marks('half')
  options = dict(
    dropout_rate=RATE,
    seed=jnp.uint32(SEED),
    row_B=ROW,
    position_BT=POSITION,
  )
  every = quick.jit(functools.partial(op.scoring_head, **options))
  some = quick.jit(functools.partial(op.step_scores, **options))
  logit, score = some(x, *weights, mark)
  want = np.where(mark, every(x, *weights), 0)
  np.testing.assert_allclose(logit, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    score, np.where(mark, -np.logaddexp(0, -want), 0), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('kind', ['xla', 'pallas_tpu', 'pallas_gpu'])
def test_no_positions(kind):
  x = jnp.zeros((B, 0, D), jnp.bfloat16)
  weights = [jnp.asarray(a, jnp.bfloat16) for a in _inputs()[1:5]]
  mark = jnp.zeros((B, 0), bool)

  def loss(*weights):
    with _small_blocks():
      found = op.step_scores(x, *weights, mark, kind=kind, interpret=True)
    assert [a.shape for a in found] == [(B, 0)] * 2
    return sum(a.sum() for a in found)

  for grad in jax.grad(loss, range(4))(*weights):
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
  'kind,batch,length',
  [
    ('xla', ('fsdp', 'sequence'), ()),
    ('pallas_tpu', ('fsdp',), ('sequence', 'tensor')),
    ('pallas_gpu', ('fsdp',), ('sequence', 'tensor')),
  ],
)
def test_split_over_devices(kind, batch, length):
  """Each device its own marks: many on some, none on others."""
  dropout = kind == 'xla'  # the kernels, here, without
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:8]).reshape(2, 2, 2),
    ('fsdp', 'sequence', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  split = op.Split(mesh, batch, length)
  rng = np.random.default_rng(2)
  rows, width = 4, 32
  x = rng.normal(size=(rows, width, D))
  mark = rng.random((rows, width)) < 0.5
  mark[:2, :16] = False
  u = rng.normal(size=(rows, width))
  head = [jnp.asarray(x, jnp.bfloat16)]
  head += [jnp.asarray(a, jnp.float32) for a in _inputs()[1:5]]
  row = np.arange(rows, dtype=np.uint32)
  position = np.broadcast_to(np.arange(width, dtype=np.uint32), mark.shape)
  found = []
  for kind_, split_ in ((kind, split), ('xla', None)):
    with _small_blocks():
      program = _build(kind_, True, dropout, split_)
      found.append(program(tuple(head), u, u, mark, row, position))
  for i, (got, want) in enumerate(zip(*found, strict=True)):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    relative = 1e-5 if i < 2 else 2**-7
    atol = relative * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=relative, atol=atol)


# Small breakages, each in one named function of a kernel.
_LANE = rows_tpu._lane
_PAIR = rows_tpu.pair_of
_UNPACK = product_tpu.unpack
_AT_COMPUTED = pallas_tpu.at_computed
_KEEP_UNITS = dropout.keep_units
_TAKE = pallas_gpu._take


def _by_place(mark_N):
  """Slots without pairs in front."""
  found = marks.slots(mark_N, sort=True)
  return found._replace(
    place_S=jnp.sort(found.place_S), paired=jnp.zeros_like(found.paired)
  )


LOGIT_MUTANTS = {
  'rows of another pair': (
    rows_tpu,
    'pair_of',
    lambda place: _PAIR(jnp.maximum(place - 2, 0)),
  ),
  'the other row of a pair': (
    rows_tpu,
    'is_odd',
    lambda place, width: rows_tpu.spread(place & 1, width) == 0,
  ),
  'no wait for rows': (rows_tpu, 'wait_reading', lambda *_: None),
  'the next lane': (rows_tpu, '_lane', lambda s: (_LANE(s) + 1) & 127),
  'units of the first tile': (
    pallas_tpu,
    'units_of_tile',
    lambda e, units: jnp.arange(units, dtype=jnp.uint32)[None],
  ),
  'places of the first block': (
    pallas_tpu,
    'at_computed',
    lambda cores: lambda c, j, e, *_: (c, 0, 0),
  ),
}
GRADIENT_MUTANTS = {
  'the wrong one of a pair written': (
    rows_tpu,
    'is_written',
    lambda slot, paired: (slot >= paired) | (slot & 1 == 1),
  ),
  'no neighbour': (rows_tpu, 'row_after', jnp.zeros_like),
  'pairs apart': (steps, '_slots', _by_place),
  'no wait for written rows': (rows_tpu, 'wait_writing', lambda *_: None),
  'no wait for what is kept': (feature_tpu, '_wait', lambda _: None),
  'bits in another order': (
    product_tpu,
    'unpack',
    lambda words: _UNPACK(words)[::-1],
  ),
}
GPU_MUTANTS = {
  'the next unit': (
    dropout,
    'keep_units',
    lambda place, unit, rate: _KEEP_UNITS(place, unit + 1, rate),
  ),
  'the next slot': (
    pallas_gpu,
    '_take',
    lambda value, place: _TAKE(value, jnp.roll(place, 1)),
  ),
}


def _fails(mutant, program, mark, first=0):
  with mock.patch.object(*mutant):
    found = _run(program, mark)
  # Those that are there must not all be right.
  expected = _numpy(mark, True)[:first] + tuple(found)
  with pytest.raises(AssertionError):
    _assert_close(expected, mark)


@pytest.mark.parametrize('name', LOGIT_MUTANTS)
def test_a_broken_logits_kernel_is_noticed(name):
  program = _build('pallas_tpu', pltpu.InterpretParams(), gradient=False)
  _fails(LOGIT_MUTANTS[name], program, _marks('many'))


@pytest.mark.parametrize('name', GRADIENT_MUTANTS)
def test_a_broken_gradient_kernel_is_noticed(name):
  form = steps.Form('pallas_tpu', RATE, 1, pltpu.InterpretParams())

  def run(head, u, v, mark, row, position):
    x, *weights = head
    x = x.reshape(-1, D)
    place = dropout.place_hash(jnp.uint32(SEED), row, position).reshape(-1)
    grad = jnp.asarray(dz).reshape(-1)
    low = tuple(w.astype(x.dtype) for w in weights)
    slots = steps._slots(mark.reshape(-1))
    feature, grads = form.gradients(x, low, place, slots, grad)
    return feature.reshape(B, T, D), *grads

  mark = _marks('many')
  logit = _numpy(mark, True)[0]
  *_, u, v = _inputs()
  dz = np.where(mark, u + v / (1 + np.exp(logit)), 0)
  _fails(GRADIENT_MUTANTS[name], quick.jit(run), mark, first=2)


@pytest.mark.parametrize('name', GPU_MUTANTS)
def test_a_broken_gpu_kernel_is_noticed(name):
  _fails(GPU_MUTANTS[name], _build('pallas_gpu', True), _marks('many'))


SHAPES = dict(places=65_536, width=1536, hidden=3072, dtype=jnp.bfloat16)


def test_auto_follows_platform_and_shape():
  choose = functools.partial(op.choose, 'auto')
  assert choose(platform='tpu', **SHAPES) == 'pallas_tpu'
  for platform in ('cpu', 'gpu', 'cuda'):
    assert choose(platform=platform, **SHAPES) == 'xla'
  for change in (
    dict(dtype=jnp.float32),
    dict(places=65_537),
    dict(places=2**17 + 2),
    dict(width=96, hidden=192),
    dict(width=6144, hidden=12_288),
    dict(width=2**15, hidden=2**16),
  ):
    assert choose(platform='tpu', **{**SHAPES, **change}) == 'xla'


@pytest.mark.parametrize(
  'kind,change,reason',
  [
    ('splash', {}, 'use one of'),
    ('pallas_tpu', dict(dtype=jnp.float32), 'needs bfloat16 .* float32'),
    ('pallas_tpu', dict(places=7), 'even number .* 7 positions'),
    ('pallas_tpu', dict(width=96), 'multiples of 128 .* D 96'),
    ('pallas_gpu', dict(hidden=96), 'E of 128.* E 96'),
    ('pallas_gpu', dict(places=2**21), r'2\*\*31'),
  ],
)
def test_a_kind_that_cannot_is_refused(kind, change, reason):
  with pytest.raises(ValueError, match=reason):
    op.choose(kind, platform='tpu', **{**SHAPES, **change})


def test_blocks_fit_the_smallest_core():
  """Many widths, and what they are at those of the presets."""
  found = {}
  for width in (*range(128, 8192, 128), 1536, 3584, 5120):
    for backward in (False, True):
      blocks = blocks_tpu.blocks(width, 2 * width, backward)
      found[width, backward] = blocks.marks, blocks.units
      assert blocks.vmem(width, 2 * width, backward) <= 58 * 2**20
      # The next block is there before the last tile ends.
      assert blocks.marks // blocks.chunk < 2 * width // blocks.units
      assert blocks.marks % blocks.rows == blocks.marks % blocks.chunk == 0
      product = blocks_tpu.product_blocks(width, 2 * width, blocks.marks)
      assert width % product.width == 2 * width % product.units == 0
      assert blocks.marks % product.marks == product.marks % blocks.rows == 0
  expected = {
    (1536, False): (2048, 256),
    (1536, True): (2048, 512),
    (3584, False): (2048, 256),
    (3584, True): (1024, 512),
    (5120, False): (2048, 256),
    (5120, True): (1024, 512),
  }
  assert {key: found[key] for key in expected} == expected
  assert blocks_tpu.blocks(2**15, 2**16) is None
  assert blocks_tpu.blocks(96, 192) is None
