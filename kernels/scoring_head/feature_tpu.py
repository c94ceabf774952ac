"""The kernel of the backward pass that makes the features' gradient.

See `pallas_tpu_backward`, which calls it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import pallas_tpu, product_tpu, rows_tpu
from kernels.scoring_head.blocks_tpu import Blocks
from kernels.scoring_head.product_tpu import BITS

_COLUMNS = 1024  # of the features' gradient, added to the sum at a time


def kernel(
  bounds_ref,
  next_place_ref,
  place_ref,
  feature_ref,
  w1_ref,
  b1_ref,
  w2_ref,
  hash_table_ref,
  grad_table_ref,
  zeros_ref,
  result_ref,
  kept_ref,
  word_ref,
  kept_grad_ref,
  vectors_ref,
  x_ref,
  note_ref,
  stage_ref,
  sem,
  hash_ref,
  grad_ref,
  sum_ref,
  kept_sem,
  *,
  blocks: Blocks,
  rate: float,
  cores: int,
):
  """One turn of the grid: a tile of hidden units for a block of marks.

  Args:
    bounds_ref: marks and paired slots of the round, prefetched scalars.
    next_place_ref: (1, 1, M) places of the block to gather, in SMEM.
    place_ref: of the block to compute.
    feature_ref: (N, D) in HBM.
    w1_ref: (D, U) tile of the first layer.
    b1_ref: (1, U) of its bias.
    w2_ref: (1, U) of the second layer.
    hash_table_ref: `rows_tpu.table` of the places' hashes, or None.
    grad_table_ref: of the logits' gradients.
    zeros_ref: what `result_ref` was before.
    result_ref: (N, D) in HBM, gets the features' gradient.
    kept_ref: (R, D) in HBM, gets the gathered features.
    word_ref: (M / 32, U), gets the bits.
    kept_grad_ref: (R, L) in HBM, gets the logits' gradients by slot.
    vectors_ref: (1, 2, E), sums for the second layer and the bias.
    x_ref: features of two blocks, and so on: `pallas_tpu.scratch`.
    note_ref: places of two blocks.
    stage_ref: two stages of pairs of rows.
    sem: their semaphores.
    hash_ref: (M, L) hashes of the block.
    grad_ref: (M, L) logits' gradients of the block.
    sum_ref: (M, D), sums of the features' gradient, each mark's own left out.
    kept_sem: of the two copies that keep features and gradients.
    blocks: sizes.
    rate: share of hidden units dropped.
    cores: TensorCores of the device.
  """
  del zeros_ref  # the same memory as `result_ref`
  core, step, e = (pl.program_id(axis) for axis in range(3))
  last = pl.num_programs(2) - 1
  total, M = bounds_ref[0], blocks.marks
  block = cores * (step - 1) + core
  gathered = pallas_tpu.marks_of(cores * step + core, total, M)
  computed = pallas_tpu.marks_of(block, total, M)
  now, after = (step - 1) & 1, step & 1

  @pl.when((step == 0) & (e == 0))
  def _():
    vectors_ref[...] = jnp.zeros_like(vectors_ref)

  @pl.when(gathered > 0)
  def _():
    pallas_tpu.gather(
      e,
      next_place_ref,
      feature_ref,
      x_ref.at[after],
      note_ref.at[after],
      stage_ref,
      sem,
      gathered,
    )

  @pl.when((step > 0) & (computed > 0))
  def _():
    keep = _keep(
      block, x_ref.at[now], kept_ref, grad_ref, kept_grad_ref, kept_sem
    )

    @pl.when(e == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)
      look_up = functools.partial(
        rows_tpu.look_up,
        place_ref=place_ref,
        note_ref=note_ref.at[now],
        count=computed,
      )
      look_up(grad_table_ref, found_ref=grad_ref)
      if hash_table_ref is not None:
        look_up(hash_table_ref, found_ref=hash_ref)
      for copy in keep:
        copy.start()

    _tile(
      e,
      x_ref.at[now],
      w1_ref,
      b1_ref,
      w2_ref,
      None if hash_table_ref is None else hash_ref,
      grad_ref,
      sum_ref,
      word_ref,
      vectors_ref,
      pallas_tpu.groups(computed, blocks.rows),
      blocks,
      rate,
    )

    @pl.when(e == last)
    def _():
      _write(
        place_ref,
        note_ref.at[now],
        sum_ref,
        grad_ref,
        result_ref,
        stage_ref,
        sem,
        computed,
        pallas_tpu.marks_of(block, bounds_ref[1], M),
        1 / (1 - rate),
      )
      _wait(keep)


def _keep(block, x_ref, kept_ref, grad_ref, kept_grad_ref, sem):
  """Copies of a block's features and gradients to where they are left."""
  M = x_ref.shape[0]
  rows = pl.ds(pl.multiple_of(block * M, M), M)
  return (
    pltpu.make_async_copy(x_ref, kept_ref.at[rows], sem.at[0]),
    pltpu.make_async_copy(grad_ref, kept_grad_ref.at[rows], sem.at[1]),
  )


def _wait(copies) -> None:
  for copy in copies:
    copy.wait()


def _tile(
  e,
  x_ref,
  w1_ref,
  b1_ref,
  w2_ref,
  hash_ref,
  grad_ref,
  sum_ref,
  word_ref,
  vectors_ref,
  groups,
  blocks: Blocks,
  rate: float,
):
  """What a tile of hidden units adds, a group of rows at a time."""
  U, width = blocks.units, w1_ref.shape[0]
  unit_1U = pallas_tpu.units_of_tile(e, U)
  tile = pl.ds(pl.multiple_of(e * U, U), U)

  @pl.loop(0, groups)
  def _(r):
    start = pl.multiple_of(r * blocks.rows, blocks.rows)
    rows = pl.ds(start, blocks.rows)
    place = None if hash_ref is None else hash_ref[rows]
    value, alive = pallas_tpu.hidden(
      x_ref[rows], w1_ref, b1_ref, place, unit_1U, rate
    )
    words = blocks.rows // BITS
    word_ref[pl.ds(pl.multiple_of(r * words, words), words)] = product_tpu.pack(
      alive
    )
    live = jnp.where(alive, rows_tpu.spread(grad_ref[rows], U), 0)
    vectors_ref[0, 0:1, tile] += jnp.sum(live * value, 0, keepdims=True)
    vectors_ref[0, 1:2, tile] += jnp.sum(live, 0, keepdims=True)
    # The mark's own gradient comes last, in float32: these are exact.
    passed = jnp.where(alive, w2_ref[...], 0).astype(w1_ref.dtype)
    for d in range(0, width, _COLUMNS):
      columns = slice(d, min(d + _COLUMNS, width))
      sum_ref[rows, columns] += jax.lax.dot_general(
        passed,
        w1_ref[columns],
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
      )


def _write(
  place_ref,
  note_ref,
  sum_ref,
  grad_ref,
  result_ref,
  stage_ref,
  sem,
  count,
  paired,
  scale,
):
  """Scales the rows of a block and writes them, chunk by chunk."""
  chunk, width = stage_ref.shape[1] // 2, stage_ref.shape[2]
  group = min(rows_tpu.GROUP, chunk)
  chunks = pallas_tpu.groups(count, chunk)

  def share(q):
    return (jnp.clip(x - q * chunk, 0, chunk) for x in (count, paired))

  def wait(q):
    rows_tpu.wait_writing(
      *share(q), result_ref, stage_ref.at[q & 1], sem.at[q & 1]
    )

  @pl.loop(0, chunks)
  def _(q):
    stage = stage_ref.at[q & 1]

    @pl.when(q > 1)
    def _():
      wait(q - 2)

    @pl.loop(0, chunk // group)
    def _(g):
      start = pl.multiple_of(q * chunk + g * group, group)
      rows = pl.ds(start, group)
      value = sum_ref[rows] * rows_tpu.spread(grad_ref[rows] * scale, width)
      slot = start + jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
      odd = rows_tpu.is_odd(note_ref[rows], width)
      staged = pl.multiple_of(2 * g * group, 2 * group)
      stage[pl.ds(staged, 2 * group)] = pltpu.bitcast(
        rows_tpu.fuse(value, odd, slot < paired), stage.dtype
      )

    mine, pairs = share(q)
    rows_tpu.start_writing(
      place_ref, q * chunk, mine, pairs, result_ref, stage, sem.at[q & 1]
    )

  @pl.when(chunks > 1)
  def _():
    wait(chunks - 2)

  wait(chunks - 1)
