"""Breakages of the score head's kernels that its comparison must notice."""

from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import (
  dropout,
  feature_tpu,
  marks,
  pallas_gpu,
  pallas_tpu,
  product_tpu,
  rows_tpu,
  steps,
)
from tests import quick
from tests.kernels.test_scoring_head_pallas import (
  RATE,
  SEED,
  B,
  D,
  T,
  assert_close,
  build,
  expected,
  inputs,
  marks_of,
  run_on,
)

# Each in one named function of a kernel.
_LANE = rows_tpu._lane
_PAIR = rows_tpu.pair_of
_UNPACK = product_tpu.unpack
_KEEP_UNITS = dropout.keep_units
_TAKE = pallas_gpu._take


def _by_place(mark_N):
  """Slots without pairs in front."""
  found = marks.slots(mark_N, sort=True)
  return found._replace(
    place_S=jnp.sort(found.place_S), paired=jnp.zeros_like(found.paired)
  )


# None: the comparison itself is right.
LOGIT_MUTANTS = {
  'unbroken': None,
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
  'unbroken': None,
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
  """Results from number `first` on are not all right, if broken."""
  right = expected(mark, True)[:first]
  if mutant is None:
    assert_close((*right, *run_on(program, mark)), mark)
    return
  with mock.patch.object(*mutant):
    found = run_on(program, mark)
  with pytest.raises(AssertionError):
    assert_close((*right, *found), mark)


@pytest.mark.parametrize('name', LOGIT_MUTANTS)
def test_a_broken_logits_kernel_is_noticed(name):
  program = build('pallas_tpu', pltpu.InterpretParams(), gradient=False)
  _fails(LOGIT_MUTANTS[name], program, marks_of('many'))


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

  mark = marks_of('many')
  logit = expected(mark, True)[0]
  *_, u, v = inputs()
  dz = np.where(mark, u + v / (1 + np.exp(logit)), 0)
  _fails(GRADIENT_MUTANTS[name], quick.jit(run), mark, first=2)


@pytest.mark.parametrize('name', GPU_MUTANTS)
def test_a_broken_gpu_kernel_is_noticed(name):
  _fails(GPU_MUTANTS[name], build('pallas_gpu', True), marks_of('many'))
