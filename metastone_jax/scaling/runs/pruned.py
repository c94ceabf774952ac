"""What pruning would have seen: the step scores of samples that are drawn.

Contract: a sweep draws every sample whole and keeps the logit and the place of
each mark (`StepMarks`, one `.npz` beside the samples). A trace's running score
after m tokens is that of the marks among its first m tokens, by the same
function that scores whole traces, so pruning at any milestones is replayed
without drawing again (`scaling.strategies.pruned_best_of_k`).

It differs from the engine's in three points: candidates are judged at exactly m
tokens (the engine looks when a chunk of turns ends); one without a mark by then
is not judged yet (the engine takes the logit of its last position, which is not
kept); and everyone who is left writes an answer (the engine does not write that
of a closed trace which a better one beats), so the replay overstates FLOPs.
"""

import dataclasses

import numpy as np
from etils import epath

from metastone_jax import sprm
from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.model import ModelConfig
from metastone_jax.sampling import Rollout
from metastone_jax.scaling.strategies import Milestones
from metastone_jax.telemetry import files

_ARRAYS = ('logit_PNS', 'place_PNS', 'prompt_P')


@dataclasses.dataclass(frozen=True, eq=False)
class StepMarks:
  """The counted marks of P x N samples, at most S each.

  Attributes:
    logit_PNS: float32 z of each mark, from the first; 0 beyond the last.
    place_PNS: int32, which token of the response the mark is; -1 beyond.
    prompt_P: tokens of the prompts.
    aggregator: of trace scores.
  """

  logit_PNS: np.ndarray
  place_PNS: np.ndarray
  prompt_P: np.ndarray
  aggregator: str = 'geometric'

  @classmethod
  def of_rollout(
    cls, rollout: Rollout, prompt_P: np.ndarray, aggregator: str
  ) -> 'StepMarks':
    """The marks of what was drawn."""
    mask_PNR = np.asarray(rollout.step_mask_PNR)
    most = max(1, int(mask_PNR.sum(-1).max()))
    # Stable: marks first, in their order.
    place_PNS = np.argsort(~mask_PNR, axis=-1, kind='stable')[..., :most]
    marked_PNS = np.take_along_axis(mask_PNR, place_PNS, -1)
    logit_PNS = np.take_along_axis(
      np.asarray(rollout.step_logit_PNR), place_PNS, -1
    )
    return cls(
      np.where(marked_PNS, logit_PNS, 0).astype(np.float32),
      np.where(marked_PNS, place_PNS, -1).astype(np.int32),
      np.asarray(prompt_P, np.int32),
      aggregator,
    )

  def running_score(self, tokens: int) -> np.ndarray:
    """Trace score PN of the marks among the first `tokens`; NaN without any."""
    seen_PNS = (self.place_PNS >= 0) & (self.place_PNS < tokens)
    score_PN = sprm.trace_score(
      self.logit_PNS, seen_PNS, aggregator=self.aggregator
    )
    return np.where(seen_PNS.any(axis=-1), score_PN, np.nan)

  def milestones(
    self, samples: EvaluationSamples, first: int, config: ModelConfig
  ) -> Milestones:
    """Milestones at first, 2 first, 4 first ... tokens, to the longest trace.

    Args:
      samples: that these marks belong to.
      first: tokens at the first milestone, at least 1.
      config: of the model, for the FLOPs.

    Raises:
      UserError: first < 1, or samples of another shape.
    """
    if first < 1:
      raise UserError(f'pruning: first={first} tokens, must be at least 1')
    if samples.shape != self.logit_PNS.shape[:2]:
      raise UserError(
        f'step marks of {self.logit_PNS.shape[:2]} samples do not belong to '
        f'{samples.shape} samples; remove the folder of this point'
      )
    longest = max(int(samples.thinking_PN.max()), first)
    tokens = [first]
    while 2 * tokens[-1] <= longest:
      tokens.append(2 * tokens[-1])
    running, flops = [], []
    for m in tokens:
      marks_PN = ((self.place_PNS >= 0) & (self.place_PNS < m)).sum(-1)
      write_P = config.decode_flops(m, self.prompt_P.astype(np.float64))
      running.append(self.running_score(m))
      flops.append(write_P[:, None] + config.score_flops(marks_PN))
    return Milestones(
      np.array(tokens), np.stack(running, axis=-1), np.stack(flops, axis=-1)
    )

  def save(self, path: epath.PathLike) -> epath.Path:
    """Writes one compressed .npz, whole or not at all."""
    arrays = {name: getattr(self, name) for name in _ARRAYS}
    arrays['aggregator'] = np.array(self.aggregator)
    return files.write_arrays(path, arrays)

  @classmethod
  def load(cls, path: epath.PathLike) -> 'StepMarks':
    """Reads what `save` wrote; `UserError` names a missing or broken file."""
    fix = 'remove the folder of this point, and it is drawn again'
    with files.reading_arrays(path, 'file of step marks', fix) as data:
      arrays = {name: data[name] for name in _ARRAYS}
      return cls(**arrays, aggregator=str(data['aggregator']))
