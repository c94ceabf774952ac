"""Group-relative advantages and reward shaping (SPEC section 4).

A group is the samples of one prompt; `group_B` names each row's group with any
integer, rows of a group need not be adjacent, and the number of groups need
not be known: members are found by comparing ids, so everything has a fixed
shape inside jit. That is B * B fused compare-and-adds (a million for the 32B
recipe's batch of 1,024), and no matrix product: those would round to bfloat16
on a TPU.
"""

from typing import NamedTuple

from metastone_jax.errors import UserError
from metastone_jax.policy import arrays


def _members(xp, group_B) -> arrays.Array:
  """same_BB[i, j]: rows i and j are of one group."""
  group_B = xp.asarray(group_B)
  return group_B[:, None] == group_B[None, :]


def group_advantage(
  reward_B: arrays.Array,
  group_B: arrays.Array,
  *,
  normalise_std: bool = True,
  eps: float = 1e-6,
) -> arrays.Array:
  """A = (r - mean_group) / (std_group + eps), unbiased std.

  A group of one has mean 0 and std 1, as in the released code: its advantage
  is its reward.

  Args:
    reward_B: outcome rewards.
    group_B: integer id of each row's group.
    normalise_std: False leaves out the division (Dr. GRPO).
    eps: added to the standard deviation.

  Returns:
    advantage_B, constant: no gradient reaches the rewards.
  """
  xp = arrays.namespace(reward_B, group_B)
  reward_B = arrays.constant(xp, arrays.as_float(xp, reward_B))
  same_BB = _members(xp, group_B)
  size_B = same_BB.sum(-1).astype(reward_B.dtype)
  alone_B = size_B == 1
  # r - mean as the mean difference to the group: exactly 0 where all rewards
  # are equal. The rounding of a mean of equal 0.1s, divided by eps, would be an
  # advantage of 0.7 percent in float32.
  difference_BB = reward_B[:, None] - reward_B[None, :]
  centred_B = xp.where(same_BB, difference_BB, 0).sum(-1) / size_B
  centred_B = xp.where(alone_B, reward_B, centred_B)
  if not normalise_std:
    return centred_B
  # Two passes: sums of squares would cancel in float32.
  square_B = xp.where(same_BB, (centred_B**2)[None, :], 0).sum(-1)
  std_B = xp.sqrt(square_B / xp.maximum(size_B - 1, 1))
  return centred_B / (xp.where(alone_B, 1, std_B) + eps)


class ZeroVariance(NamedTuple):
  """Groups from which nothing can be learnt."""

  fraction: arrays.Array  # scalar; share of groups, not of rows
  # bool; the row belongs to such a group
  mask_B: arrays.Array  # noqa: N815


def zero_variance_groups(
  reward_B: arrays.Array, group_B: arrays.Array
) -> ZeroVariance:
  """Groups whose rewards are all equal: their advantage is 0.

  DAPO's dynamic sampling replaces them; everybody should log their share. A
  group of one is not such a group, since its advantage is its reward.

  Args:
    reward_B: outcome rewards.
    group_B: integer id of each row's group.

  Returns:
    The share of groups, and the rows in them.
  """
  xp = arrays.namespace(reward_B, group_B)
  reward_B = arrays.as_float(xp, reward_B)
  same_BB = _members(xp, group_B)
  size_B = same_BB.sum(-1)
  equal_B = (~same_BB | (reward_B[:, None] == reward_B[None, :])).all(-1)
  mask_B = equal_B & (size_B > 1)
  share_B = 1 / size_B.astype(reward_B.dtype)  # each group sums to one
  fraction = xp.where(mask_B, share_B, 0).sum() / share_B.sum()
  return ZeroVariance(fraction, mask_B)


def overlong_penalty_B(  # noqa: N802 (the suffix is the shape)
  length_B: arrays.Array, max_length: int, buffer: int
) -> arrays.Array:
  """DAPO's soft overlong punishment, added to the reward.

  0 up to max_length - buffer tokens, then falling linearly to -1 at
  max_length, and -1 beyond.

  Args:
    length_B: response length, tokens.
    max_length: the longest response allowed, tokens.
    buffer: the tokens before max_length in which the penalty grows.

  Returns:
    penalty_B in [-1, 0].

  Raises:
    UserError: unless 0 < buffer <= max_length.
  """
  if not 0 < buffer <= max_length:
    raise UserError(
      f'overlong buffer must be between 1 and max_length ({max_length}) '
      f'tokens: got {buffer}'
    )
  xp = arrays.namespace(length_B)
  over_B = arrays.as_float(xp, length_B) - (max_length - buffer)
  return -xp.clip(over_B / buffer, 0, 1)
