"""Responses that every arm of a seed is fitted on, or judges: rows and reading.

Contract: `Drawn` is one `.npz` (no pickles), whole or absent. Its B = P x N
rows are group-major and padded to T; everything per token is aligned with the
PREDICTING position, as in training batches. What the checkpoint that drew them
makes of them is read once and kept, so that arms which leave the backbone alone
need no backbone: features at the marks and at the last thinking position,
log-probs, self-certainty.
"""

# ruff: noqa: N802 (shapes in names carry capitals)

import dataclasses
import functools

import numpy as np
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling.job import REMOVE_POINT
from metastone_jax.telemetry import files
from metastone_jax.training.loop.collect import Rows, base_rows

POSITIONS = ('before', 'at', 'end')


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
  """P x N responses of one split.

  Attributes:
    problem_ids: of the P problems.
    tokens_BT: int32, prompt and response, padded.
    prompt_length_B: tokens of the prompts.
    length_B: tokens of the rows.
    mark_BT: bool, feature positions of counted marks (one before each).
    end_B: the last thinking position of each row.
    correct_PN: bool.
    answers_PN: ids of answers, -1 unparsed.
    finished_PN: bool.
    score_weight_B: float32, 0 = truncated or unparsed: not trained on.
    flops_P: of drawing the N responses to each problem, prompt included.
    feature_MD: float32, the residual stream entering the last block at the
      places of `read_BT`, row by row.
    log_prob_BT: float32, of the next token in nats, 0 outside the response.
    certainty_B: float32, self-certainty in nats (see `judging`).
  """

  problem_ids: np.ndarray
  tokens_BT: np.ndarray
  prompt_length_B: np.ndarray
  length_B: np.ndarray
  mark_BT: np.ndarray
  end_B: np.ndarray
  correct_PN: np.ndarray
  answers_PN: np.ndarray
  finished_PN: np.ndarray
  score_weight_B: np.ndarray
  flops_P: np.ndarray
  feature_MD: np.ndarray
  log_prob_BT: np.ndarray
  certainty_B: np.ndarray

  @property
  def shape(self) -> tuple[int, int]:
    """(P, N)."""
    return self.correct_PN.shape

  @functools.cached_property
  def response_BT(self) -> np.ndarray:
    """True where the next token is of the response."""
    place_T = np.arange(self.tokens_BT.shape[1])
    return (place_T >= self.prompt_length_B[:, None] - 1) & (
      place_T < self.length_B[:, None] - 1
    )

  @functools.cached_property
  def end_BT(self) -> np.ndarray:
    """`end_B` as a mask."""
    return np.arange(self.tokens_BT.shape[1]) == self.end_B[:, None]

  @property
  def read_BT(self) -> np.ndarray:
    """Places of `feature_MD`."""
    return self.mark_BT | self.end_BT

  def step_mask_BT(self, position: str) -> np.ndarray:
    """Where a head reads its steps.

    Args:
      position: 'before' the mark (SPEC 1), 'at' the mark itself, or at the
        'end' of the thinking alone.

    Raises:
      UserError: another word.
    """
    if position == 'before':
      return self.mark_BT
    if position == 'at':
      return np.roll(self.mark_BT, 1, axis=1)  # no mark is beyond the row
    if position == 'end':
      return self.end_BT
    raise UserError(
      f'position must be one of {", ".join(POSITIONS)}: got {position!r}'
    )

  def rows(self, position: str) -> Rows:
    """Fields of a training batch (`training.step`), B rows."""
    return {
      **base_rows(self.tokens_BT, self.length_B, 0),
      'step_mask_BT': self.step_mask_BT(position),
      'correct_B': self.correct_PN.reshape(-1),
      'score_weight_B': self.score_weight_B,
      'lm_mask_BT': self.response_BT,
    }

  def features(self, mask_BT: np.ndarray) -> Rows:
    """The kept features at a part of `read_BT`, left-aligned.

    Args:
      mask_BT: of those places.

    Returns:
      feature_BSD, mark_BS (which slots hold one), position_BS and row_B.
    """
    place_BT = np.cumsum(self.read_BT).reshape(self.read_BT.shape) - 1
    S = max(1, int(mask_BT.sum(axis=1).max()))
    # Stable: the chosen places first, in their order.
    position_BS = np.argsort(~mask_BT, axis=1, kind='stable')[:, :S]
    mark_BS = np.take_along_axis(mask_BT, position_BS, axis=1)
    index_BS = np.where(
      mark_BS, np.take_along_axis(place_BT, position_BS, axis=1), 0
    )
    return {
      'feature_BSD': self.feature_MD[index_BS],
      'mark_BS': mark_BS,
      'position_BS': position_BS.astype(np.int32),
      'row_B': np.arange(len(mask_BT), dtype=np.uint32),
    }

  def save(self, path: epath.PathLike) -> epath.Path:
    """Writes one .npz, whole or not at all."""
    arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return files.write_arrays(path, arrays, compress=False)

  @classmethod
  def load(cls, path: epath.PathLike) -> 'Drawn':
    """Reads what `save` wrote; `UserError` names a missing or broken file."""
    what = 'file of drawn responses'
    with files.reading_arrays(path, what, REMOVE_POINT) as data:
      return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls)})
