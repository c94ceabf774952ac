"""Where the steps of a trace are (SPEC sections 2 and 9).

A step mark is a token whose id is in `step_ids` (".\\n\\n"; Qwen: 382). It
counts when
- it is the first of a run of adjacent marks,
- the token before it is not <think>, and
- it lies between <think> and </think>.
The score head reads the FEATURE position of a mark: the index before it, the
one whose next token is the mark. Masks here are over feature positions, so
they share their index with log-probs: index t speaks of tokens[t + 1]. A mark
at index 0 has no feature position and is dropped.

The two sides of the released code bound the range differently, and so do we:
- 'train': from the first <think> (else the start) to the last </think> (else
  the end), both ends by the position of the MARK.
- 'serve': a tag bounds the range only where it occurs exactly once (else 0 and
  the end of the text), both ends exclusive and by the FEATURE position. So
  without <think> a mark at index 1 counts for 'train' and not for 'serve'.

Rows are right-padded, and a padding token is never a mark. The functions work
inside jit (no shape depends on data); numpy tokens give numpy masks.
"""

from collections.abc import Sequence

from metastone_jax.errors import UserError
from metastone_jax.sprm import arrays

SIDES = ('train', 'serve')


def _check_side(side: str) -> None:
  if side not in SIDES:
    raise UserError(f"side must be 'train' or 'serve', got {side!r}")


def _thinking_range(xp, tokens_BT, think_start_id, think_end_id, side):
  """Index of the bounding tags: start_B1 (default 0), end_B1 (default T)."""
  T = tokens_BT.shape[-1]
  index_T = xp.arange(T)
  is_start_BT = tokens_BT == think_start_id
  is_end_BT = tokens_BT == think_end_id
  if side == 'train':
    has_start_B1 = is_start_BT.any(-1, keepdims=True)
    has_end_B1 = is_end_BT.any(-1, keepdims=True)
  else:
    has_start_B1 = is_start_BT.sum(-1, keepdims=True) == 1
    has_end_B1 = is_end_BT.sum(-1, keepdims=True) == 1
  first_start_B1 = xp.where(is_start_BT, index_T, T).min(-1, keepdims=True)
  last_end_B1 = xp.where(is_end_BT, index_T, -1).max(-1, keepdims=True)
  start_B1 = xp.where(has_start_B1, first_start_B1, 0)
  end_B1 = xp.where(has_end_B1, last_end_B1, T)
  return start_B1, end_B1


def step_feature_mask(
  tokens_BT: arrays.Array,
  *,
  step_ids: Sequence[int],
  think_start_id: int,
  think_end_id: int,
  side: str = 'train',
) -> arrays.Array:
  """The feature positions of the counted step marks.

  Args:
    tokens_BT: token ids, right-padded; further leading axes are welcome.
    step_ids: ids that are step marks; at least one.
    think_start_id: the id of <think>.
    think_end_id: the id of </think>.
    side: 'train' or 'serve': which rule bounds the thinking (see above).

  Returns:
    bool BT, true at t where tokens[t + 1] is a counted mark. The last column
    is always false.

  Raises:
    UserError: an unknown side, or no step ids.
  """
  _check_side(side)
  step_ids = [int(i) for i in step_ids]
  if not step_ids:
    raise UserError('step_ids is empty: name at least one step-mark token id')
  xp = arrays.namespace(tokens_BT)
  tokens_BT = xp.asarray(tokens_BT)
  T = tokens_BT.shape[-1]

  is_mark_BT = tokens_BT == step_ids[0]
  for step_id in step_ids[1:]:
    is_mark_BT = is_mark_BT | (tokens_BT == step_id)

  # From here on the index is the feature position t of the mark at t + 1.
  previous_BT = tokens_BT[..., :-1]
  counted_BT = (
    is_mark_BT[..., 1:]
    & ~is_mark_BT[..., :-1]
    & (previous_BT != think_start_id)
  )
  start_B1, end_B1 = _thinking_range(
    xp, tokens_BT, think_start_id, think_end_id, side
  )
  feature_T = xp.arange(T - 1)
  if side == 'train':
    inside_BT = (feature_T + 1 >= start_B1) & (feature_T + 1 <= end_B1)
  else:
    inside_BT = (feature_T > start_B1) & (feature_T < end_B1)
  return xp.concatenate(
    [counted_BT & inside_BT, xp.zeros_like(is_mark_BT[..., :1])], axis=-1
  )


def thinking_end_feature_mask(
  tokens_BT: arrays.Array,
  length_B: arrays.Array,
  *,
  think_start_id: int,
  think_end_id: int,
  side: str = 'train',
) -> arrays.Array:
  """The last thinking position: where to score a trace without marks (SPEC 6).

  Args:
    tokens_BT: token ids, right-padded; further leading axes are welcome.
    length_B: the number of real tokens (prompt and response) of each row.
    think_start_id: the id of <think>.
    think_end_id: the id of </think>.
    side: which </think> ends the thinking: 'train' takes the last, 'serve'
      only one that occurs exactly once.

  Returns:
    bool BT with exactly one true a row: the position that predicts </think>;
    the last real token where no </think> follows the start of the thinking
    (or, for a row of length 0, index 0).

  Raises:
    UserError: an unknown side.
  """
  _check_side(side)
  xp = arrays.namespace(tokens_BT, length_B)
  tokens_BT = xp.asarray(tokens_BT)
  length_B1 = xp.asarray(length_B)[..., None]
  index_T = xp.arange(tokens_BT.shape[-1])
  # Padding could carry any id: only real tokens may end the thinking.
  real_BT = xp.where(index_T < length_B1, tokens_BT, -1)
  start_B1, end_B1 = _thinking_range(
    xp, real_BT, think_start_id, think_end_id, side
  )
  ends_B1 = (end_B1 > start_B1) & (end_B1 < length_B1)
  feature_B1 = xp.where(ends_B1, end_B1 - 1, xp.maximum(length_B1 - 1, 0))
  return index_T == feature_B1
