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
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import (
  blocks_tpu,
  op,
  pallas_gpu,
  pallas_tpu_backward,
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
INTERPRET = {
  'plain': True,
  'tpu': pltpu.InterpretParams(),
  'races': pltpu.InterpretParams(num_cores_or_threads=2, detect_races=True),
}


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
def inputs() -> tuple[np.ndarray, ...]:
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


def expected(mark, dropout: bool):
  """Logits, log-scores and the gradients of the loss, written out."""
  x, w1, b1, w2, b2, u, v = inputs()
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


def build(kind, interpret=False, dropout=True, split=None, gradient=True):
  """A jitted function of marks and inputs: everything `expected` returns."""

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
  return build(kind, INTERPRET.get(interpret, False), dropout)


def run_on(program, mark, dtype=jnp.bfloat16):
  """Features of `dtype`; weights are float32 masters, or float64."""
  x, *rest = inputs()
  master = jnp.promote_types(dtype, jnp.float32)
  *weights, u, v = (jnp.asarray(a, master) for a in rest)
  head = (jnp.asarray(x, dtype), *weights)
  with _small_blocks():
    found = program(head, u, v, jnp.asarray(mark), ROW, POSITION)
  return [np.asarray(a, np.float64) for a in found]


def assert_close(found, mark, dropout=True, exact=False):
  """Within the rounding of bfloat16 products, or of float64."""
  wanted = expected(mark, dropout)
  for i, (got, want) in enumerate(zip(found, wanted, strict=False)):
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


def marks_of(name: str) -> np.ndarray:
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
    mark = marks_of(name)
    found = run_on(_program(kind, interpret), mark)
    assert_close(found, mark)


def test_two_cores_share_the_work_without_a_race():
  """As on megacore chips, with a detector of races."""
  mark = marks_of('many')
  assert_close(run_on(_program('pallas_tpu', 'races'), mark), mark)
  assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize('kind,interpret', [FORMS[0], FORMS[3]])
def test_without_dropout(kind, interpret):
  for name in ('few', 'all'):
    mark = marks_of(name)
    found = run_on(_program(kind, interpret, False), mark)
    assert_close(found, mark, dropout=False)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
  st.sampled_from([FORMS[0], FORMS[1], FORMS[3]]),
  st.lists(st.booleans(), min_size=B * T, max_size=B * T),
)
def test_any_marks(form, mark):
  mark = np.array(mark).reshape(B, T)
  assert_close(run_on(_program(*form), mark), mark)


@pytest.mark.parametrize(
  'kind,dtype',
  [('xla', 'float32'), ('xla', 'float64'), ('pallas_gpu', 'float32')],
)
def test_other_dtypes(kind, dtype):
  with jax.enable_x64(dtype == 'float64'):
    mark = marks_of('half')
    found = run_on(build(kind, True), mark, dtype)
    if dtype == 'float64':
      assert_close(found, mark, exact=True)
    else:
      assert_close(found, mark)


@pytest.mark.parametrize('kind', ['xla', 'pallas_tpu', 'pallas_gpu'])
def test_no_positions(kind):
  x = jnp.zeros((B, 0, D), jnp.bfloat16)
  weights = [jnp.asarray(a, jnp.bfloat16) for a in inputs()[1:5]]
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
  head += [jnp.asarray(a, jnp.float32) for a in inputs()[1:5]]
  row = np.arange(rows, dtype=np.uint32)
  position = np.broadcast_to(np.arange(width, dtype=np.uint32), mark.shape)
  found = []
  for kind_, split_ in ((kind, split), ('xla', None)):
    with _small_blocks():
      program = build(kind_, True, dropout, split_)
      found.append(program(tuple(head), u, u, mark, row, position))
  for i, (got, want) in enumerate(zip(*found, strict=True)):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    relative = 1e-5 if i < 2 else 2**-7
    atol = relative * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=relative, atol=atol)
