"""Slots of marks: which places, in which order, found in two ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.scoring_head import marks
from tests import quick

_SLOTS = quick.jit(marks.slots, static_argnames='sort')


def _expected(mark: np.ndarray) -> tuple[list[int], int]:
  """Places in order, and how many are pairs; place by place."""
  pairs, lone = [], []
  for place in np.flatnonzero(mark):
    other = place ^ 1
    (pairs if other < len(mark) and mark[other] else lone).append(place)
  nowhere = [len(mark)] * (len(mark) - len(pairs) - len(lone))
  return pairs + lone + nowhere, len(pairs)


def _check(mark: np.ndarray, *, sort: bool):
  slots = _SLOTS(jnp.asarray(mark), sort=sort)
  places, paired = _expected(mark)
  np.testing.assert_array_equal(slots.place_S, places)
  assert (slots.count, slots.paired) == (mark.sum(), paired)
  assert slots.place_S.dtype == jnp.int32


@pytest.mark.parametrize('sort', [True, False])
@pytest.mark.parametrize('places', [0, 1, 2, 129, 1000])
def test_slots(places, sort, monkeypatch):
  monkeypatch.setattr(marks, '_CHUNK', 64)
  rng = np.random.default_rng(places)
  for share in (0, 0.05, 0.6, 1):
    _check(rng.random(places) < share, sort=sort)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=40, max_size=40), st.booleans())
def test_any_marks(mark, sort):
  _check(np.array(mark), sort=sort)


@pytest.mark.parametrize('sort', [True, False])
def test_under_float64(sort):
  with jax.enable_x64(True):
    _check(np.arange(50) % 3 < 2, sort=sort)


def test_too_many_places_to_sort_are_refused():
  mark = jax.ShapeDtypeStruct((2**31 // 3 + 1,), jnp.bool_)
  with pytest.raises(ValueError, match='32 bits'):
    jax.eval_shape(lambda x: marks.slots(x, sort=True), mark)
