"""Several trajectories a row: where they go, and that nothing else changes."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.attention import Layout
from metastone_jax.parallel import Sharder
from metastone_jax.training import packing, places, step
from tests import quick
from tests.training import trajectories
from tests.training.batches import model_config


@pytest.mark.parametrize('objective', trajectories.OBJECTIVES)
def test_packed_rows_give_the_update_of_unpacked_rows(objective):
  """Loss, all gradients and all metrics; micro-batches; dropout on."""
  with jax.enable_x64(True):
    rows = trajectories.make_rows(objective, 'float64')
    moved, placement, options = trajectories.packed(rows, 30, 2)
    assert moved['sequence_BT'].max() >= 3  # really packed
    assert options['num_micro_batches'] == 4
    trajectories.check(objective, 'float64', moved, **options)
    assert placement.padding(2) < 0.25


def test_packed_rows_in_float32_on_a_mesh():
  rows = trajectories.make_rows('grpo', 'float32')
  moved, _, options = trajectories.packed(rows, 28, 4)
  sharder = trajectories.mesh(data=2, fsdp=2, tensor=2)
  trajectories.check('grpo', 'float32', moved, sharder, **options)


def test_log_probs_come_back_to_their_trajectories():
  """The log-prob pass on packed rows, of which one micro-batch is empty."""
  rows = trajectories.without_prompt_length(
    trajectories.make_rows('grpo', 'float32')
  )
  moved, placement, options = trajectories.packed(rows, 2 * 14, 2)
  del options['sequences_per_row']
  mconfig = model_config('float32')

  def run(rows, **options):
    return jax.device_get(
      quick.jit(
        functools.partial(
          step.log_prob_pass,
          model_config=mconfig,
          sharder=Sharder(),
          **options,
        )
      )(trajectories.params('float32'), rows)
    )

  want = run(rows, num_micro_batches=1)
  got = run(moved, **options)
  real = rows['segment_BT'] != 0
  for name, value in want.items():
    back = packing.move_back(got[name], placement, value.shape)
    np.testing.assert_allclose(back[real], value[real], rtol=1e-5, atol=1e-5)
    assert not back[~real].any()


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(20, 70), st.integers(1, 4))
def test_every_token_lies_in_one_place(lengths, length, piece):
  """No token is lost or doubled; trajectories are whole; rows suffice."""
  placed = packing.pack(np.array(lengths), 20, length, piece)
  rows = packing.packed_rows(len(lengths), 20, length, piece)
  assert placed.used_BT.shape == (rows, length)
  assert rows % piece == 0
  used = placed.used_BT
  found = sorted(zip(placed.row_BT[used], placed.place_BT[used], strict=True))
  assert found == [(b, t) for b, n in enumerate(lengths) for t in range(n)]
  for row, place, at in zip(placed.row_BT, placed.place_BT, used, strict=True):
    for b in set(row[at]):
      where = np.flatnonzero(at & (row == b))
      assert (np.diff(where) == 1).all()  # side by side, in order
      assert (np.diff(place[where]) == 1).all()
  # Micro-batches that hold a token come first, as the update counts them.
  pieces = rows // piece
  any_K = used.reshape(piece, pieces, length).any((0, 2))
  assert not (np.diff(any_K.astype(int)) > 0).any()
  segment_KBT = np.swapaxes(
    placed.sequence_BT.reshape(piece, pieces, length), 0, 1
  )
  assert int(places.num_used(segment_KBT)) == any_K.sum()


def test_the_worst_lengths_fill_the_promised_rows():
  """None wider than half a row: two a row, whatever they are."""
  assert packing.packed_rows(9, 20, 40, 1) == 5
  placed = packing.pack(np.full(9, 20), 20, 40, 1)
  assert placed.used_BT.any(1).all()
  short = packing.pack(np.full(9, 4), 20, 40, 1)
  assert short.used_BT.any(1).sum() == 1
  assert short.padding(1) == pytest.approx(1 - 36 / 40)
  many = packing.pack(np.full(200, 1), 20, 400, 1)
  assert many.sequence_BT.max() == packing.MAX_SEQUENCES
  with pytest.raises(ValueError, match='do not fit'):
    packing.packed_rows(3, 20, 19, 1)
  with pytest.raises(ValueError, match='lengths must be'):
    packing.pack(np.array([21]), 20, 40, 1)


def test_fields_move_with_their_trajectory():
  rows = {
    'tokens_BT': np.array([[5, 6, 0], [7, 0, 0], [8, 9, 0]], np.int32),
    'segment_BT': np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], np.int32),
    'advantage_B': np.array([0.5, -1, 2], np.float32),
    'temperature_B': np.array([0.7, 0.8, 0.9], np.float32),
  }
  placed = packing.pack(np.array([2, 1, 2]), 3, 6, 1)
  moved = packing.move(rows, placed)
  assert set(moved) == {
    'tokens_BT',
    'segment_BT',
    'sequence_BT',
    'advantage_BT',
    'temperature_BT',
  }
  assert moved['tokens_BT'].tolist() == [[5, 6, 8, 9, 7, 0], [0] * 6]
  assert moved['segment_BT'].tolist() == [[1, 1, 2, 2, 3, 0], [0] * 6]
  assert moved['advantage_BT'][0].tolist() == [0.5, 0.5, 2, 2, -1, 0]
  # Logits of padding are divided by it.
  assert moved['temperature_BT'][1].tolist() == [1] * 6
  back = packing.move_back(moved['tokens_BT'], placed, (3, 3))
  assert back.tolist() == rows['tokens_BT'].tolist()


def test_a_config_that_cannot_be_is_refused():
  with pytest.raises(ValueError, match='2 sequences a row do not fit'):
    step.UpdateConfig(sequences_per_row=2)
  assert step.UpdateConfig(layout=Layout(packed=True), sequences_per_row=2)
