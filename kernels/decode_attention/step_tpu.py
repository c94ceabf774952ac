"""One step of the TPU kernel: a block of positions into a unit's softmax."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.decode_attention import work as work_lib
from kernels.decode_attention.masks import MASKED


def _scores(q_MW, k_WC, valid_1C, scale: float, precision):
  """float32 (M, C); a masked one is `MASKED`."""
  scores = jax.lax.dot_general(
    q_MW,
    k_WC,
    (((1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
    precision=precision,
  )
  return jnp.where(valid_1C != 0, scores * scale, MASKED)


def _inside(v_CW, first, positions: int):
  """Values of which those past the end of the cache, unknown bits, are 0."""
  place = first + jax.lax.broadcasted_iota(jnp.int32, (v_CW.shape[0], 1), 0)
  return jnp.where(place < positions, v_CW, jnp.zeros_like(v_CW))


def _softmax_step(scores_MC, top_M1, total_M1):
  """One block of the online softmax: (weights, factor, top, total)."""
  new_M1 = jnp.maximum(top_M1, jnp.max(scores_MC, axis=1, keepdims=True))
  factor_M1 = jnp.exp(top_M1 - new_M1)
  weight_MC = jnp.exp(scores_MC - new_M1)
  total_M1 = total_M1 * factor_M1 + jnp.sum(weight_MC, axis=1, keepdims=True)
  return weight_MC, factor_M1, new_M1, total_M1


def kernel(
  step_W,
  fetch_W,
  start_C,
  first_U,
  count_U,
  row_U,
  place_U,
  *refs,
  positions: int,
  blocks: int,
  scale: float,
  precision,
  goes_on: bool,
):
  """One step; see pallas_tpu.py. W = h, C = a block of positions, M = rows."""
  del fetch_W, row_U, place_U  # For the index maps.
  q, k, v, valid, *refs = refs
  before, refs = (refs[:2], refs[2:]) if goes_on else (None, refs)
  out, *refs = refs
  log_total = refs.pop(0) if not goes_on else None
  acc, top, total = refs
  heads = q.shape[1]
  core, step = pl.program_id(0), pl.program_id(1)
  active = step < start_C[core + 1] - start_C[core]
  unit, visit = work_lib.unpack(step_W[_at(start_C, core, step)])
  count = count_U[unit]

  @pl.when(active & (visit == 0))
  def _():
    if goes_on:
      # A result with its log-denominator is a block with maximum and sum.
      acc[...] = before[0][0, :, 0]
      top[...] = before[1][0, :, 0]
      total[...] = jnp.ones_like(total)
    else:
      acc[...] = jnp.zeros_like(acc)
      top[...] = jnp.full_like(top, MASKED)
      total[...] = jnp.zeros_like(total)

  @pl.when(active & (visit < count))
  def _():
    size = k.shape[3]
    block = _block(first_U[unit], visit, blocks)
    for head in range(heads):
      scores = _scores(q[0, head], k[0, head], valid[0], scale, precision)
      weight, factor, top[head], total[head] = _softmax_step(
        scores, top[head], total[head]
      )
      values = v[0, head]
      if positions % size:
        values = _inside(values, block * size, positions)
      acc[head] = acc[head] * factor + jax.lax.dot_general(
        weight.astype(values.dtype),
        values,
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
        precision=precision,
      )

  @pl.when(active & (visit == jnp.maximum(count, 1) - 1))
  def _():
    # A tile that no slot uses has seen no block; nobody reads its result.
    sums = jnp.maximum(total[...], jnp.finfo(jnp.float32).tiny)
    out[0] = (acc[...] / sums).astype(out.dtype)
    if not goes_on:
      log_total[0] = top[...] + jnp.log(sums)


def _at(start_C, core, step):
  """Place in the list; a core that is done stays at its last step."""
  return jnp.minimum(start_C[core] + step, start_C[core + 1] - 1)


def _block(first, visit, blocks: int):
  """The block of a visit: a row's blocks are a ring, see masks.py."""
  return jax.lax.rem(first + visit, blocks)


def index_maps(places: int, blocks: int):
  """Index maps of (a unit's arrays, keys, values, mask, what it goes on from).

  Args:
    places: N of the tiles in which the earlier result lies.
    blocks: of a row of the caches.
  """

  def unit(core, step, step_W, fetch_W, start_C, *_):
    return work_lib.unpack(step_W[_at(start_C, core, step)])[0]

  def cache(core, step, step_W, fetch_W, start_C, first_U, count_U, row_U, _):
    unit, visit = work_lib.unpack(fetch_W[_at(start_C, core, step)])
    return row_U[unit], _block(first_U[unit], visit, blocks)

  def of_unit(*args):
    return unit(*args), 0, 0, 0

  def of_keys(*args):
    row, block = cache(*args)
    return row, 0, 0, block

  def of_values(*args):
    row, block = cache(*args)
    return row, 0, block, 0

  def of_mask(*args):
    row, block = cache(*args)
    return row, 0, block

  def of_before(*args):
    place = args[-1][unit(*args)]
    tile, n = jax.lax.div(place, places), jax.lax.rem(place, places)
    return tile, 0, n, 0, 0

  return of_unit, of_keys, of_values, of_mask, of_before
