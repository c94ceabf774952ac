"""What a draw is: strategy, lengths, token ids; all static under jit."""

import dataclasses

from metastone_jax.errors import UserError, check_fields
from metastone_jax.sampling.processors import (
  BadTokens,
  MinP,
  Processor,
  RepetitionPenalty,
  TopK,
  TopP,
)


@dataclasses.dataclass(frozen=True)
class Effort:
  """How hard to try: the paper's k, and how long to think (SPEC 5).

  Attributes:
    k: candidates.
    thinking: share of a response that its thinking may take; the paper names
      no number. The rest is room for the answer, so that a candidate which
      thinks too long still gives one.
  """

  k: int
  thinking: float


EFFORTS = {
  'low': Effort(2, 0.5),
  'medium': Effort(8, 0.75),
  'high': Effort(32, 0.875),
}


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How candidates are drawn; hashable, a static argument of the programs.

  Attributes:
    max_response_length: R, tokens a response may have, the end token included.
    eos_id: ends a response.
    more_eos_ids: so do these.
    score_side: where marks count, 'train' or 'serve' (SPEC 2): the released
      server bounds the thinking by a tag only where it occurs once.
    pad_id: fills what follows.
    step_ids: ids of the step marks.
    think_start_id: <think>.
    think_end_id: </think>.
    temperature: logits are divided by it; 0 = greedy.
    top_k: only the k most likely tokens; 0 = off.
    top_p: the smallest set of tokens whose probability reaches it; 1 = off.
    min_p: only tokens this many times as likely as the likeliest; 0 = off.
    repetition_penalty: on tokens of the prompt and the response so far; 1 =
      off, above 1 discourages them (the released server: 1.05).
    bad_ids: tokens that are never drawn.
    thinking_budget: after so many thinking tokens </think> is forced; None =
      no limit below R.
    aggregator: trace score from step scores, see `sprm.trace_score`.
    released_selection: pure argmax of the score, and score 0 for a trace
      without marks, as the released code does. Default: an unfinished
      candidate wins only where no finished one exists, and a trace without
      marks is scored at its last thinking position (SPEC 5, 6).
  """

  max_response_length: int
  eos_id: int
  pad_id: int
  step_ids: tuple[int, ...]
  think_start_id: int
  think_end_id: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  bad_ids: tuple[int, ...] = ()
  thinking_budget: int | None = None
  aggregator: str = 'geometric'
  released_selection: bool = False
  more_eos_ids: tuple[int, ...] = ()
  score_side: str = 'train'

  def __post_init__(self):
    check_fields(
      'sampling.',
      self,
      (
        ('max_response_length', self.max_response_length >= 1, 'at least 1'),
        ('temperature', self.temperature >= 0, 'at least 0 (0 = greedy)'),
        ('top_k', self.top_k >= 0, 'at least 0 (0 = off)'),
        ('top_p', 0 < self.top_p <= 1, 'in (0, 1] (1 = off)'),
        ('min_p', 0 <= self.min_p <= 1, 'in [0, 1] (0 = off)'),
        (
          'repetition_penalty',
          self.repetition_penalty > 0,
          'above 0 (1 = off)',
        ),
        (
          'thinking_budget',
          self.thinking_budget is None
          or 1 <= self.thinking_budget < self.max_response_length,
          'at least 1 and below max_response_length',
        ),
      ),
    )

  @property
  def processors(self) -> tuple[Processor, ...]:
    """What happens to the logits, in the order of transformers' generate."""
    found = []
    if self.repetition_penalty != 1:
      found.append(RepetitionPenalty(self.repetition_penalty))
    if self.bad_ids:
      found.append(BadTokens(self.bad_ids))
    if self.top_k:
      found.append(TopK(self.top_k))
    if self.top_p < 1:
      found.append(TopP(self.top_p))
    if self.min_p:
      found.append(MinP(self.min_p))
    return tuple(found)

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Every id that ends a response."""
    return (self.eos_id, *self.more_eos_ids)


def check_num_candidates(k: int) -> None:
  """Raises UserError unless k >= 1."""
  if k < 1:
    raise UserError(f'k must be at least 1 candidate a problem: got k={k}')
