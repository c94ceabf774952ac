"""Several trajectories a row: where each lies, and the fields moved there.

Collected rows hold one trajectory each, padded to the longest allowed. Here
they are laid out again, so that less of what is computed is padding:

- `pack`: rows of a longer fixed length, each with several whole trajectories,
  numbered from 1 in segment_BT; attention stays within a segment.
- `share_prompts`: one row a problem. Its prompt, all but the last token, lies
  there once; N blocks of R places follow, each a copy of the last prompt token
  and one response but its last token: the places that predict a response. A
  prompt's last token is repeated because N different tokens follow it.

Both give a `Placement`: which place of which trajectory lies at each place.
`lay_out` carries a batch's fields along, `back` brings results back. What
was one a row becomes one a place, `name_B` -> `name_BT`; sequence_BT numbers
the trajectories of a row from 1.

The number of rows never depends on the lengths, so programs compile once: it
is the worst case (`packed_rows`), and unused rows come last, in micro-batches
that hold nothing and that the update does not run (training.places.num_used).
"""

import dataclasses
import functools

import jax
import numpy as np

Rows = dict[str, np.ndarray]

# The most trajectories of a packed row. Sequence means compare every place
# with every number, which stays far below a layer's work.
MAX_SEQUENCES = 64


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('row_BT', 'place_BT', 'used_BT', 'sequence_BT'),
  meta_fields=('segmented',),
)
@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the places of trajectories lie in other rows.

  Attributes:
    row_BT: int32, the trajectory that lies at each place.
    place_BT: int32, the place in it.
    used_BT: bool; false = padding, the two above are 0.
    sequence_BT: int32, the trajectory's number in its row, from 1; 0 = none or
      all of the row (a shared prompt).
    segmented: sequences are segments, which do not read each other.
  """

  row_BT: np.ndarray
  place_BT: np.ndarray
  used_BT: np.ndarray
  sequence_BT: np.ndarray
  segmented: bool

  @classmethod
  def empty(cls, rows: int, length: int, segmented: bool) -> 'Placement':
    """All padding."""
    shape = rows, length
    return cls(
      np.zeros(shape, np.int32),
      np.zeros(shape, np.int32),
      np.zeros(shape, bool),
      np.zeros(shape, np.int32),
      segmented,
    )

  def put(self, row, first, trajectory, places, sequence) -> None:
    """Lays `places` (a range) of a trajectory into a row from `first` on."""
    at = slice(first, first + len(places))
    self.row_BT[row, at] = trajectory
    self.place_BT[row, at] = places
    self.used_BT[row, at] = True
    self.sequence_BT[row, at] = sequence

  def padding(self, sequences_per_microbatch: int) -> float:
    """Share of padding in the micro-batches that are run."""
    rows = len(self.used_BT)
    pieces = rows // sequences_per_microbatch
    used_K = self.used_BT.reshape(-1, pieces, self.used_BT.shape[1]).any((0, 2))
    places = int(used_K.sum()) * sequences_per_microbatch
    return 1 - float(self.used_BT.sum()) / max(
      1, places * self.used_BT.shape[1]
    )


def packed_rows(
  count: int, longest: int, length: int, sequences_per_microbatch: int
) -> int:
  """Rows in which any `count` trajectories of up to `longest` places fit.

  First fit opens a row only where no other has room, so every row but the last
  holds at least length // longest trajectories.
  """
  each = min(length // longest, MAX_SEQUENCES)
  if each < 1:
    raise ValueError(f'{longest} places do not fit in rows of {length}')
  rows = -(-count // each)
  return -(-rows // sequences_per_microbatch) * sequences_per_microbatch


def pack(
  length_B: np.ndarray, longest: int, length: int, sequences_per_microbatch: int
) -> Placement:
  """Whole trajectories into rows, first fit, the longest first.

  The same lengths give the same placement. Equal lengths keep their order.

  Args:
    length_B: places of each trajectory, 1..longest.
    longest: the most places of a trajectory in any batch of the run.
    length: places of a packed row.
    sequences_per_microbatch: packed rows of a micro-batch; row b of the result
      is in micro-batch b % K, as `training.places` cuts.

  Returns:
    The placement in `packed_rows` rows.
  """
  length_B = np.asarray(length_B, np.int64)
  if len(length_B) and not 1 <= length_B.min() <= length_B.max() <= longest:
    raise ValueError(f'lengths must be in 1..{longest}')
  rows = packed_rows(len(length_B), longest, length, sequences_per_microbatch)
  pieces = rows // sequences_per_microbatch
  placed = Placement.empty(rows, length, segmented=True)
  filled = np.zeros(rows, np.int64)
  held = np.zeros(rows, np.int64)
  for b in np.argsort(-length_B, kind='stable'):
    # Unused rows have room, so the first that fits is always found.
    r = int(
      np.argmax((filled + length_B[b] <= length) & (held < MAX_SEQUENCES))
    )
    held[r] += 1
    # Row r is the (r % s)-th of micro-batch r // s: the used ones come first.
    piece, slot = divmod(r, sequences_per_microbatch)
    placed.put(
      slot * pieces + piece, filled[r], b, np.arange(length_B[b]), held[r]
    )
    filled[r] += length_B[b]
  return placed


def share_prompts(
  length_B: np.ndarray,
  prompt_length_B: np.ndarray,
  samples_per_prompt: int,
  prompt_places: int,
  response_places: int,
) -> Placement:
  """One row a problem: its prompt once, then its responses.

  Args:
    length_B: tokens of each trajectory, group-major.
    prompt_length_B: tokens of its prompt, the same in a group.
    samples_per_prompt: N.
    prompt_places: S, at least the longest prompt less one.
    response_places: R, at least the longest response.
  """
  N, S, R = samples_per_prompt, prompt_places, response_places
  problems = len(length_B) // N
  placed = Placement.empty(problems, S + N * R, segmented=False)
  for p in range(problems):
    last = int(prompt_length_B[p * N]) - 1
    placed.put(p, 0, p * N, np.arange(last), 0)
    for n in range(N):
      b = p * N + n
      # The last token predicts nothing. A response of no token has one place,
      # its copy of the prompt's last token, which predicts nothing either.
      end = max(int(length_B[b]) - 1, last + 1)
      placed.put(p, S + n * R, b, np.arange(last, end), n + 1)
  return placed


def move(rows: Rows, placement: Placement, xp=np) -> Rows:
  """The fields of a batch at their new places.

  Padding gets 0, but a temperature of 1, by which logits are divided.

  Args:
    rows: fields (B, T) or (B,), as `training.step` describes them.
    placement: of the trajectories.
    xp: numpy, or jax.numpy inside a program.

  Returns:
    Fields (B', T'); `name_B` becomes `name_BT`. Adds sequence_BT.
  """
  row_BT, place_BT = placement.row_BT, placement.place_BT
  moved = {}
  for name, x in rows.items():
    token = x[row_BT] if x.ndim == 1 else x[row_BT, place_BT]
    fill = 1 if name == 'temperature_B' else 0
    moved[name if x.ndim > 1 else f'{name}T'] = xp.where(
      placement.used_BT, token, xp.asarray(fill, x.dtype)
    )
  moved['sequence_BT'] = placement.sequence_BT
  if placement.segmented:
    moved['segment_BT'] = placement.sequence_BT
  return moved


def move_back(value_BT, placement: Placement, shape: tuple[int, int], xp=np):
  """Results at the trajectories' own places; 0 where none lies.

  Args:
    value_BT: at the new places.
    placement: of the trajectories.
    shape: (B, T) of the trajectories' rows.
    xp: numpy, or jax.numpy inside a program.
  """
  used = placement.used_BT
  if xp is np:
    out = np.zeros(shape, value_BT.dtype)
    out[placement.row_BT[used], placement.place_BT[used]] = value_BT[used]
    return out
  row_BT = xp.where(used, placement.row_BT, shape[0])  # beyond: dropped
  out = xp.zeros(shape, value_BT.dtype)
  return out.at[row_BT, placement.place_BT].set(value_BT, mode='drop')


def lay_out(rows: Rows, placement: Placement | None, multiple: int, xp=np):
  """Rows of one trajectory as the rows that are computed.

  Args:
    rows: fields of a batch.
    placement: of the trajectories; None = a row each.
    multiple: these rows are padded to a multiple of so many places.
    xp: numpy, or jax.numpy inside a program.
  """
  if placement is not None:
    return move(rows, placement, xp)
  extra = -rows['tokens_BT'].shape[1] % multiple
  if not extra:
    return rows
  return {
    name: xp.pad(x, ((0, 0), (0, extra))) if x.ndim > 1 else x
    for name, x in rows.items()
  }


def back(value_BT, placement: Placement | None, shape: tuple[int, int], xp=np):
  """A result of rows of `lay_out` as rows of one trajectory: the inverse."""
  if placement is None:
    return value_BT[:, : shape[1]]
  return move_back(value_BT, placement, shape, xp)
