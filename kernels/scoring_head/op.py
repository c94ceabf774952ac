"""Dispatch of the score head; the only file others import.

One implementation so far: `xla`, the reference over chunks of positions, each
recomputed in the backward pass, so the 2D-wide activations of a long sequence
never exist. All positions are scored, not only the marks: that is under 1 % of
the backbone's arithmetic from 1.5B parameters up and needs no gather and no
limit on the number of marks. With a mesh every device scores its own
positions with the whole (small) head.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels.scoring_head import reference
from kernels.split import Split as Split

# Hidden activations of a device alive at a time: 2**24 elements.
_HIDDEN_BUDGET = 2**24


def scoring_head(
  feature_BTD: jax.Array,
  hidden_kernel_DE: jax.Array,
  hidden_bias_E: jax.Array,
  output_kernel_E1: jax.Array,
  output_bias_1: jax.Array,
  *,
  dropout_rate: float = 0.0,
  seed: jax.Array | None = None,
  row_B: jax.Array | None = None,
  position_BT: jax.Array | None = None,
  split: Split | None = None,
) -> jax.Array:
  """Step logits z of SPEC section 1, at every position.

  Args:
    feature_BTD: the residual stream entering the last block.
    hidden_kernel_DE: first layer, E = 2D.
    hidden_bias_E: its bias.
    output_kernel_E1: second layer.
    output_bias_1: its bias.
    dropout_rate: share of hidden units dropped when `seed` is given.
    seed: uint32 scalar; None = no dropout.
    row_B: uint32 global number of each row's sequence, needed with `seed`; or
      of each place's, (B, T), where rows hold several.
    position_BT: position of each place in its sequence; None = its place.
    split: mesh axes; None = one device.

  Returns:
    (B, T) logits, float32 or better.
  """
  B, T, _ = feature_BTD.shape
  weights = (hidden_kernel_DE, hidden_bias_E, output_kernel_E1, output_bias_1)
  dropout = seed is not None and dropout_rate > 0
  # Arguments without a dropout are never read.
  if not dropout:
    seed, row_B, position_BT = jnp.uint32(0), jnp.zeros((B,), jnp.uint32), None
  if position_BT is None:
    position_BT = jnp.arange(T)
  row, position = (
    jnp.broadcast_to(jnp.asarray(x, jnp.uint32), (B, T))
    for x in (row_B[:, None] if row_B.ndim == 1 else row_B, position_BT)
  )
  local = functools.partial(_local, dropout_rate=dropout_rate * dropout)
  if split is not None:
    batch, length = (axes or None for axes in (split.batch, split.length))
    whole = PartitionSpec()
    local = jax.shard_map(
      local,
      mesh=split.mesh,
      in_specs=(
        PartitionSpec(batch, length, None),
        (whole,) * 4,
        whole,
        PartitionSpec(batch, length),
        PartitionSpec(batch, length),
      ),
      out_specs=PartitionSpec(batch, length),
      check_vma=False,
    )
  return local(
    feature_BTD, weights, jnp.asarray(seed, jnp.uint32), row, position
  )


def _local(feature_BTD, weights, seed, row_BT, position_BT, *, dropout_rate):
  """The positions of one device, in chunks."""
  B, T, _ = feature_BTD.shape

  def head(feature, row, position):
    return reference.scoring_head(
      feature,
      *weights,
      dropout_rate=dropout_rate,
      seed=seed,
      row=row,
      position=position,
    )

  chunk = max(1, _HIDDEN_BUDGET // (B * weights[0].shape[1]))
  if chunk >= T:
    return head(feature_BTD, row_BT, position_BT)
  chunks = -(-T // chunk)
  pad = chunks * chunk - T

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, chunks, chunk, *x.shape[2:]), 1, 0)

  body = jax.checkpoint(head)
  _, logit = jax.lax.scan(
    lambda carry, x: (carry, body(*x)),
    None,
    (cut(feature_BTD), cut(row_BT), cut(position_BT)),
  )
  return jnp.moveaxis(logit, 0, 1).reshape(B, -1)[:, :T]
