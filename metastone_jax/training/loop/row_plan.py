"""How a phase lays its trajectories into the rows that are computed.

| phase         | a row                      | rows of an update             |
| ------------- | -------------------------- | ----------------------------- |
| (neither)     | one trajectory             | rows_per_update               |
| packed_length | several trajectories, up   | as many as the worst lengths  |
|               | to that many places        | need; empty ones are not run  |
| shared_prompt | one problem: its prompt    | prompts_per_step / updates    |
|               | once, samples_per_prompt   |                               |
|               | responses                  |                               |

Rows that a mesh splits over `sequence` are padded to what it can split.
"""

import dataclasses
import functools

import numpy as np

from kernels.attention import PLAIN, Layout
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder
from metastone_jax.training import packing, places
from metastone_jax.training.loop.recipe_data import DataConfig
from metastone_jax.training.loop.recipe_phase import PhaseConfig
from metastone_jax.training.packing import Placement
from metastone_jax.training.step import UpdateConfig

# Kernels read the plane of queries and keys in squares of so many places ...
_BLOCK = 128
# ... which is worth padding for from so many blocks on.
_WORTH_BLOCKS = 4


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """The rows of one phase; everything but `place` is known before it starts.

  Attributes:
    phase: the phase.
    data: longest prompt and response.
    multiple: rows must have a multiple of so many places on this mesh.
  """

  phase: PhaseConfig
  data: DataConfig
  multiple: int

  @classmethod
  def of(
    cls, phase: PhaseConfig, data: DataConfig, sharder: Sharder
  ) -> 'RowPlan':
    """The plan of a phase on a mesh.

    Raises:
      UserError: packed_length does not fit the mesh.
    """
    multiple = places.length_multiple(sharder)
    if phase.packed_length % multiple:
      raise UserError(
        f'phases.{phase.name}.packed_length={phase.packed_length} must be a '
        f'multiple of {multiple} places for this mesh, such as '
        f'{-(-phase.packed_length // multiple) * multiple}'
      )
    return cls(phase, data, multiple)

  @property
  def longest(self) -> int:
    """Places of the longest trajectory."""
    return self.data.max_prompt_length + self.data.max_response_length

  @functools.cached_property
  def _shared(self) -> tuple[int, int]:
    """(S, R) of shared prompts."""
    N = self.phase.samples_per_prompt
    S = max(1, self.data.max_prompt_length - 1)
    R = self.data.max_response_length
    multiple = self.multiple
    if _WORTH_BLOCKS * _BLOCK <= R:
      S, R = (-(-x // _BLOCK) * _BLOCK for x in (S, R))
      multiple *= _BLOCK
    return S + -(S + N * R) % multiple, R

  @property
  def layout(self) -> Layout:
    """Of the rows, before they are split over devices."""
    if self.phase.packed_length:
      return Layout(packed=True)
    if self.phase.shared_prompt:
      S, R = self._shared
      return Layout(prompt_length=S, response_length=R)
    return PLAIN

  @property
  def length(self) -> int:
    """T: places of a row."""
    if self.phase.packed_length:
      return self.phase.packed_length
    if self.phase.shared_prompt:
      S, R = self._shared
      return S + self.phase.samples_per_prompt * R
    return -(-self.longest // self.multiple) * self.multiple

  @property
  def sequences_per_row(self) -> int:
    """The most trajectories of a row."""
    if self.phase.packed_length:
      return packing.MAX_SEQUENCES
    return self.phase.samples_per_prompt if self.phase.shared_prompt else 1

  @property
  def what(self) -> str:
    """What a row is, for messages."""
    if self.phase.packed_length:
      return 'packed rows'
    return 'rows of a problem' if self.phase.shared_prompt else 'sequences'

  @property
  def rows_per_microbatch(self) -> int:
    """Rows of one forward and backward pass."""
    phase = self.phase
    piece = phase.sequences_per_microbatch or phase.rows_per_update
    return piece // self.sequences_per_row if phase.shared_prompt else piece

  def num_rows(self, trajectories: int) -> int:
    """Rows of so many trajectories, filler included."""
    if self.phase.packed_length:
      return packing.packed_rows(
        trajectories,
        self.longest,
        self.phase.packed_length,
        self.rows_per_microbatch,
      )
    if self.phase.shared_prompt:
      return trajectories // self.sequences_per_row
    return trajectories

  @property
  def num_micro_batches(self) -> int:
    """Micro-batches of an update."""
    return self.num_rows(self.phase.rows_per_update) // self.rows_per_microbatch

  @property
  def log_prob_micro_batches(self) -> int:
    """Micro-batches of a pass over a whole rollout."""
    rows = self.num_rows(self.phase.rollouts_per_step)
    if self.phase.packed_length:
      return rows // self.rows_per_microbatch
    return 1 if rows % self.num_micro_batches else self.num_micro_batches

  @property
  def update_config(self) -> UpdateConfig:
    """The static argument of the update program."""
    return dataclasses.replace(
      self.phase.update_config,
      num_micro_batches=self.num_micro_batches,
      layout=self.layout,
      sequences_per_row=self.sequences_per_row,
    )

  def place(
    self, length_B: np.ndarray, prompt_length_B: np.ndarray | None
  ) -> Placement | None:
    """Where trajectories lie in the rows that are computed.

    Args:
      length_B: tokens of each.
      prompt_length_B: of its prompt; only read with shared prompts.

    Returns:
      A placement for `packing.lay_out`; None = a row each.
    """
    if self.phase.packed_length:
      return packing.pack(
        length_B,
        self.longest,
        self.phase.packed_length,
        self.rows_per_microbatch,
      )
    if self.phase.shared_prompt:
      return packing.share_prompts(
        length_B, prompt_length_B, self.phase.samples_per_prompt, *self._shared
      )
    return None

  def padding(self, length_B: np.ndarray, placement: Placement | None) -> float:
    """Share of padding in the places that an update computes."""
    if placement is None:
      return 1 - float(length_B.sum()) / (len(length_B) * self.length)
    # All shared rows are run, of packed ones the micro-batches in use.
    piece = len(placement.used_BT)
    if placement.segmented:
      piece = self.rows_per_microbatch
    return placement.padding(piece)
