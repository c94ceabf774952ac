"""The score head on marks, forward, as a TPU kernel.

The grid goes over (core, step, tile of hidden units). A step computes one block
of marks and, meanwhile, gathers the features of the block of the next step, a
chunk of rows a tile; the step before the first block only gathers. Hidden
activations live in registers and VMEM. The number of steps is data: blocks
behind the last mark cost nothing, not even a turn of the grid.

Letters as in `rows_tpu`; N places, S slots, E hidden units, U of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.scoring_head import blocks_tpu, dropout, rows_tpu
from kernels.scoring_head.blocks_tpu import Blocks
from kernels.scoring_head.marks import EXPECTED_MARKS, Slots


def logits(
  feature_ND: jax.Array,
  weights: tuple[jax.Array, ...],
  hash_N: jax.Array | None,
  slots: Slots,
  *,
  rate: float,
  blocks: Blocks | None = None,
  cores: int = 1,
  interpret=False,
) -> jax.Array:
  """(N,) float32 logits; anything where there is no mark.

  Args:
    feature_ND: bfloat16 features; N even, D a multiple of 128.
    weights: the head's four arrays, bfloat16.
    hash_N: `dropout.place_hash`; None without dropout.
    slots: `marks.slots`.
    rate: share of hidden units dropped.
    blocks: sizes; None = those for these shapes.
    cores: TensorCores of the device.
    interpret: run in interpret mode: True or `pltpu.InterpretParams`.
  """
  N, D = feature_ND.shape
  E = weights[0].shape[1]
  blocks = blocks or blocks_tpu.blocks(D, E)
  M = blocks.marks
  place_S = cover(slots.place_S, M * cores)
  inputs, specs = block_inputs(
    feature_ND, weights, hash_N, place_S, blocks, cores
  )
  kernel = functools.partial(_kernel, blocks=blocks, rate=rate, cores=cores)
  if hash_N is None:
    kernel = without_hash(kernel)
  rows = -(-N // rows_tpu.LANES)
  logit_cRL = pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(cores, steps(slots.count, M, cores), E // blocks.units),
      in_specs=specs,
      out_specs=pl.BlockSpec(
        (1, rows, rows_tpu.LANES), lambda c, j, e, *_: (c, 0, 0)
      ),
      scratch_shapes=[
        *scratch(blocks, D),
        pltpu.VMEM((M, rows_tpu.LANES), jnp.float32),
      ],
    ),
    out_shape=jax.ShapeDtypeStruct((cores, rows, rows_tpu.LANES), jnp.float32),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=blocks_tpu.VMEM_LIMIT,
    ),
    cost_estimate=_cost(N, D, E, M),
    interpret=interpret,
    name='score_head_logits',
  )(slots.count[None], *inputs)
  # A core leaves zeros where another one wrote.
  return logit_cRL.sum(0).reshape(-1)[:N] + weights[3].astype(jnp.float32)


def _cost(N, D, E, M) -> pl.CostEstimate:
  marks = N * EXPECTED_MARKS
  return pl.CostEstimate(
    flops=int(2 * marks * (D + 1) * E),
    # Pairs of rows; the first layer once a block; two tables.
    bytes_accessed=int(4 * marks * D + -(-marks // M) * 2 * D * E + 8 * N),
    transcendentals=0,
  )


# What the kernels of both directions share.


def cover(value_S: jax.Array, multiple: int) -> jax.Array:
  """Padded with zeros to whole blocks of every core."""
  return jnp.pad(value_S, (0, -value_S.shape[0] % multiple))


def steps(count: jax.Array, marks: int, cores: int) -> jax.Array:
  """Turns of the grid: one a block of each core, and one that gathers."""
  return -(-count // (marks * cores)) + 1


def at_computed(cores: int):
  """Index map of an array of blocks: the one that a step computes."""
  return lambda c, j, e, *_: (cores * jnp.maximum(j - 1, 0) + c, 0, 0)


def at_tile(c, j, e, *_):
  """Index map of the weights: none is needed while the first step gathers."""
  return 0, jnp.where(j > 0, e, 0)


def whole_table(places: int) -> pl.BlockSpec:
  """Of a vector of all places, in VMEM from the first turn to the last."""
  rows = -(-places // rows_tpu.LANES)
  return pl.BlockSpec((rows, rows_tpu.LANES), lambda *_: (0, 0))


def block_inputs(feature_ND, weights, hash_N, place_S, blocks, cores):
  """The first arguments of both kernels, with their specs."""
  D, E = weights[0].shape
  M, U = blocks.marks, blocks.units
  count = place_S.shape[0] // M
  vector = lambda x: x.astype(jnp.float32).reshape(1, E)  # noqa: E731
  place_K1M = place_S.reshape(count, 1, M)
  inputs = [place_K1M, place_K1M, feature_ND, weights[0]]
  inputs += [vector(weights[1]), vector(weights[2])]

  def at_gathered(c, j, e, *_):
    return jnp.minimum(cores * j + c, count - 1), 0, 0  # none in the last step

  specs = [
    pl.BlockSpec((1, 1, M), at_gathered, memory_space=pltpu.SMEM),
    pl.BlockSpec((1, 1, M), at_computed(cores), memory_space=pltpu.SMEM),
    pl.BlockSpec(memory_space=pl.ANY),
    pl.BlockSpec((D, U), at_tile),
    pl.BlockSpec((1, U), at_tile),
    pl.BlockSpec((1, U), at_tile),
  ]
  if hash_N is not None:
    # Signed: lanes of unsigned numbers cannot be summed.
    hash_N = jax.lax.bitcast_convert_type(hash_N, jnp.int32)
    inputs.append(rows_tpu.table(hash_N))
    specs.append(whole_table(hash_N.shape[0]))
  return inputs, specs


def without_hash(kernel):
  """A kernel for arguments that lack the hash."""

  def shorter(*refs):
    return kernel(*refs[:7], None, *refs[7:])

  return shorter


def scratch(blocks: Blocks, width: int) -> list:
  """Features and places of two blocks, two stages, the hashes of a block."""
  M = blocks.marks
  return [
    pltpu.VMEM((2, M, width), jnp.bfloat16),
    pltpu.VMEM((2, M, rows_tpu.LANES), jnp.int32),
    pltpu.VMEM((2, 2 * blocks.chunk, width), jnp.bfloat16),
    pltpu.SemaphoreType.DMA((2,)),
    pltpu.VMEM((M, rows_tpu.LANES), jnp.int32),
  ]


def marks_of(block, total, marks: int):
  """Marks in a block."""
  return jnp.clip(total - block * marks, 0, marks)


def groups(count, rows: int):
  """Groups of rows that hold `count`, not negative."""
  return jax.lax.div(count + (rows - 1), rows)


def gather(e, place_ref, feature_ref, x_ref, note_ref, stage_ref, sem, count):
  """One tile's share of gathering a block: a chunk starts, one is finished.

  Args:
    e: the tile.
    place_ref: (1, 1, M) int32 places of the block, in SMEM.
    feature_ref: (N, D) in HBM.
    x_ref: (M, D), gets the block's features, zeros behind them.
    note_ref: (M, L) int32, gets its places.
    stage_ref: (2, 2C, D).
    sem: two DMA semaphores.
    count: marks of the block.
  """
  chunk = stage_ref.shape[1] // 2
  chunks = x_ref.shape[0] // chunk

  def share(q):
    return jnp.clip(count - q * chunk, 0, chunk)

  @pl.when(e < chunks)
  def _():
    rows_tpu.start_reading(
      place_ref,
      note_ref,
      e * chunk,
      share(e),
      feature_ref,
      stage_ref.at[e & 1],
      sem.at[e & 1],
    )

  @pl.when((e > 0) & (e <= chunks))
  def _():
    done = e - 1
    stage = stage_ref.at[done & 1]
    rows_tpu.wait_reading(share(done), feature_ref, stage, sem.at[done & 1])
    rows_tpu.pick(stage, note_ref, x_ref, done * chunk, share(done))


def units_of_tile(e, units: int) -> jax.Array:
  """uint32 (1, U) numbers of a tile's hidden units."""
  unit = jax.lax.broadcasted_iota(jnp.int32, (1, units), 1)
  return (e * units + unit).astype(jnp.uint32)


def hidden(x_RD, w1_ref, b1_ref, hash_RL, unit_1U, rate):
  """Hidden values of some rows, and where they are alive.

  Args:
    x_RD: their features.
    w1_ref: (D, U) tile of the first layer.
    b1_ref: (1, U) of its bias.
    hash_RL: int32 hashes of their places; None without dropout.
    unit_1U: the tile's units.
    rate: share of hidden units dropped.

  Returns:
    float32 values in front of the ReLU; bool, above 0 and not dropped.
  """
  value = jnp.dot(x_RD, w1_ref[...], preferred_element_type=jnp.float32)
  value += b1_ref[...]
  alive = value > 0
  if hash_RL is not None:
    place = rows_tpu.spread(hash_RL.astype(jnp.uint32), value.shape[1])
    alive &= dropout.keep_units(place, unit_1U, rate)
  return value, alive


def _kernel(
  count_ref,
  next_place_ref,
  place_ref,
  feature_ref,
  w1_ref,
  b1_ref,
  w2_ref,
  hash_table_ref,
  logit_ref,
  x_ref,
  note_ref,
  stage_ref,
  sem,
  hash_ref,
  sum_ref,
  *,
  blocks: Blocks,
  rate: float,
  cores: int,
):
  core, step, e = (pl.program_id(axis) for axis in range(3))
  last = pl.num_programs(2) - 1
  total, M = count_ref[0], blocks.marks
  gathered = marks_of(cores * step + core, total, M)
  computed = marks_of(cores * (step - 1) + core, total, M)
  now, after = (step - 1) & 1, step & 1

  @pl.when((step == 0) & (e == 0))
  def _():
    logit_ref[...] = jnp.zeros_like(logit_ref)

  @pl.when(gathered > 0)
  def _():
    gather(
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
    @pl.when(e == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)
      if hash_table_ref is not None:
        rows_tpu.look_up(
          hash_table_ref, place_ref, note_ref.at[now], hash_ref, computed
        )

    unit_1U = units_of_tile(e, blocks.units)

    @pl.loop(0, groups(computed, blocks.rows))
    def _(r):
      rows = pl.ds(pl.multiple_of(r * blocks.rows, blocks.rows), blocks.rows)
      place = None if hash_table_ref is None else hash_ref[rows]
      value, alive = hidden(
        x_ref.at[now][rows], w1_ref, b1_ref, place, unit_1U, rate
      )
      part = jnp.where(alive, value * w2_ref[...], 0)
      sum_ref[rows] += sum(
        part[:, k : k + rows_tpu.LANES]
        for k in range(0, blocks.units, rows_tpu.LANES)
      )

    @pl.when(e == last)
    def _():
      logit = jnp.sum(sum_ref[...], 1, keepdims=True) / (1 - rate)
      sum_ref[...] = jnp.broadcast_to(logit, sum_ref.shape)
      rows_tpu.put(logit_ref.at[0], place_ref, sum_ref, computed)
