"""Where the rows of a batch lie: order over devices, micro-batches.

Rows split over the mesh axis of 'length' (context parallelism) are stored in
zig-zag order (see kernels.attention.layout). Every term of the loss is a sum
over places, so only attention needs to know it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from kernels.attention import Layout
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder

Batch = dict[str, jax.Array]


def _size(sharder: Sharder, axis: str) -> int:
  """Devices that split a logical axis whose size they divide."""
  return math.prod(sharder.mesh.shape[name] for name in sharder.rules[axis])


def length_multiple(sharder: Sharder) -> int:
  """Rows must have a multiple of so many places: 1 where they are not split."""
  if sharder.mesh is None or _size(sharder, 'length') == 1:
    return 1
  # Zig-zag pieces, and equal parts of the residual stream.
  return math.lcm(
    2 * _size(sharder, 'length'), _size(sharder, 'residual_length')
  )


def stored_layout(layout: Layout, sharder: Sharder, length: int) -> Layout:
  """The layout of rows of `length` places on the mesh.

  Raises:
    UserError: the mesh cannot split rows of that length.
  """
  multiple = length_multiple(sharder)
  if length % multiple:
    raise UserError(
      f'rows of {length} places do not divide over the mesh: sequence='
      f'{_size(sharder, "length")} needs a multiple of {multiple}; pad the '
      'rows or change mesh'
    )
  if multiple == 1:
    return layout
  return dataclasses.replace(layout, zigzag=_size(sharder, 'length'))


def store(batch: Batch, layout: Layout, sharder: Sharder) -> Batch:
  """Puts the places of all (B, T) fields into stored order."""
  if layout.zigzag == 1:
    return batch
  place_T = layout.places(batch['tokens_BT'].shape[1])

  def moved(x):
    if x is None or x.ndim < 2:
      return x
    return sharder.constrain(x[:, place_T], 'batch', 'length')

  return {name: moved(x) for name, x in batch.items()}


def restore(x_BT: jax.Array, layout: Layout) -> jax.Array:
  """The inverse of `store` on one array."""
  if layout.zigzag == 1:
    return x_BT
  place_T = layout.places(x_BT.shape[1])
  return x_BT[:, place_T.argsort()]


def check_rows(batch: Batch, count: int) -> None:
  """Raises UserError unless the rows divide into `count` micro-batches."""
  rows = batch['tokens_BT'].shape[0]
  if rows % count:
    raise UserError(
      f'{rows} sequences do not divide into {count} micro-batches; change '
      'sequences_per_microbatch'
    )


def micro_batches(batch: Any, count: int, sharder: Sharder) -> Any:
  """(B, ...) -> (count, B / count, ...), row b into micro-batch b % count.

  That keeps a batch axis split over devices where it is.
  """

  def cut(x):
    x = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    x = jnp.swapaxes(x, 0, 1)
    axes = ('length',) * (x.ndim > 2)
    return sharder.constrain(x, None, 'batch', *axes)

  return jax.tree.map(cut, batch)


def uncut(x_KB: jax.Array) -> jax.Array:
  """The inverse of `micro_batches` on one array."""
  x = jnp.swapaxes(x_KB, 0, 1)
  return x.reshape(-1, *x.shape[2:])


def num_used(segment_KBT: jax.Array) -> jax.Array:
  """Micro-batches up to the last with a token: only these need be run.

  How many rows packing fills is known when a step runs, and not when its
  program is compiled: the program has room for the worst case.
  """
  used_K = jnp.any(segment_KBT != 0, axis=(1, 2))
  return jnp.max(jnp.where(used_K, jnp.arange(1, used_K.size + 1), 0))


def _piece(pieces: Any, index: jax.Array) -> Any:
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), pieces
  )


def sum_pieces(function, pieces: Any, count: jax.Array | None) -> Any:
  """Sum of function(piece) over micro-batches, one at a time.

  Args:
    function: piece -> tree of arrays.
    pieces: from `micro_batches`.
    count: micro-batches that are run; None = all.
  """
  first = jax.tree.map(lambda x: x[0], pieces)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first)
  )
  if count is None:
    return jax.lax.scan(
      lambda carry, piece: (
        jax.tree.map(jnp.add, carry, function(piece)),
        None,
      ),
      zeros,
      pieces,
    )[0]
  return jax.lax.fori_loop(
    0,
    count,
    lambda k, carry: jax.tree.map(jnp.add, carry, function(_piece(pieces, k))),
    zeros,
  )


def map_pieces(
  function, pieces: Any, count: jax.Array | None, sharder: Sharder
) -> dict[str, jax.Array]:
  """function of every micro-batch as (B, T) arrays; 0 where it is not run.

  Args:
    function: piece -> dict of (B / K, T) arrays.
    pieces: from `micro_batches`.
    count: as in `sum_pieces`.
    sharder: mesh.
  """
  if count is None:
    return jax.tree.map(uncut, jax.lax.map(function, pieces))
  K = len(jax.tree.leaves(pieces)[0])
  first = jax.tree.map(lambda x: x[0], pieces)
  zeros = jax.tree.map(
    lambda x: sharder.constrain(
      jnp.zeros((K, *x.shape), x.dtype), None, 'batch', 'length'
    ),
    jax.eval_shape(function, first),
  )

  def body(k, found):
    return jax.tree.map(
      lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, k, 0),
      found,
      function(_piece(pieces, k)),
    )

  return jax.tree.map(uncut, jax.lax.fori_loop(0, count, body, zeros))
