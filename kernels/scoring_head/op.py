"""Dispatch of the score head; the only file others import.

One implementation so far: `xla`, the reference over chunks of positions, each
recomputed in the backward pass, so the 2D-wide activations of a long sequence
never exist. All positions are scored, not only the marks: that is under 1 % of
the backbone's arithmetic from 1.5B parameters up and needs no gather and no
limit on the number of marks. With a mesh every device scores its own
positions with the whole (small) head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from kernels.scoring_head import reference

# Hidden activations of a device alive at a time: 2**24 elements.
_HIDDEN_BUDGET = 2**24


@dataclasses.dataclass(frozen=True)
class Split:
  """Mesh axes over which the arrays are split.

  Attributes:
    mesh: the mesh.
    batch: axes of B.
    length: axes of T.
  """

  mesh: Mesh
  batch: tuple[str, ...] = ()
  length: tuple[str, ...] = ()


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
    row_B: uint32 global row index, needed with `seed`.
    split: mesh axes; None = one device.

  Returns:
    (B, T) logits, float32 or better.
  """
  B, T, _ = feature_BTD.shape
  weights = (hidden_kernel_DE, hidden_bias_E, output_kernel_E1, output_bias_1)
  dropout = seed is not None and dropout_rate > 0
  # Arguments without a dropout are never read.
  if not dropout:
    seed, row_B = jnp.uint32(0), jnp.zeros((B,), jnp.uint32)
  position_T = jnp.arange(T, dtype=jnp.uint32)
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
        PartitionSpec(batch),
        PartitionSpec(length),
      ),
      out_specs=PartitionSpec(batch, length),
      check_vma=False,
    )
  return local(
    feature_BTD, weights, jnp.asarray(seed, jnp.uint32), row_B, position_T
  )


def _local(feature_BTD, weights, seed, row_B, position_T, *, dropout_rate):
  """The positions of one device, in chunks."""
  B, T, _ = feature_BTD.shape

  def head(feature, position):
    return reference.scoring_head(
      feature,
      *weights,
      dropout_rate=dropout_rate,
      seed=seed,
      row_B=row_B,
      position_T=position,
    )

  chunk = max(1, _HIDDEN_BUDGET // (B * weights[0].shape[1]))
  if chunk >= T:
    return head(feature_BTD, position_T)
  chunks = -(-T // chunk)
  pad = chunks * chunk - T
  padded = jnp.pad(feature_BTD, ((0, 0), (0, pad), (0, 0)))
  padded = jnp.moveaxis(padded.reshape(B, chunks, chunk, -1), 1, 0)
  body = jax.checkpoint(head)
  _, logit = jax.lax.scan(
    lambda carry, x: (carry, body(*x)),
    None,
    (padded, jnp.pad(position_T, (0, pad)).reshape(chunks, chunk)),
  )
  return jnp.moveaxis(logit, 0, 1).reshape(B, -1)[:, :T]
