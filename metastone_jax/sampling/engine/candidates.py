"""Requests, and the candidates that come out of them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.judging import judge
from metastone_jax.sampling.slots import ENDS

# Why a candidate ended.
STOP, LENGTH, PRUNED = 'stop', 'length', 'pruned'


@dataclasses.dataclass(frozen=True)
class Request:
  """One problem.

  Attributes:
    prompt: token ids, at least one.
    draw: global draw index; with the seed and a candidate's number it makes
      the candidate's randomness.
    candidates: numbers of the candidates to write, usually range(k).
    written: tokens of the response that exist already: read with the prompt,
      counted in lengths and budgets, not drawn and not returned.
    max_tokens: of a response; None = the configured max_response_length.
    thinking_budget: None = the configured one.
    ends: what ends it by itself: 'response': a stop id. 'trace': </think>,
      which the budget forces; the thinking only. 'step': the next step mark,
      </think> or a stop id.
  """

  prompt: tuple[int, ...]
  draw: int
  candidates: tuple[int, ...]
  written: tuple[int, ...] = ()
  max_tokens: int | None = None
  thinking_budget: int | None = None
  ends: str = 'response'

  def check(self, config: SamplingConfig, context: int | None) -> None:
    """Raises UserError where it cannot be served.

    Args:
      config: of the engine.
      context: tokens of prompt and response together; None = no limit.
    """
    name = f'request with draw index {self.draw}'
    if not self.prompt:
      raise UserError(f'{name}: the prompt is empty; give at least one token')
    if not self.candidates:
      raise UserError(f'{name}: k = 0 candidates; ask for at least 1')
    if len(set(self.candidates)) < len(self.candidates):
      raise UserError(
        f'{name}: candidates={self.candidates} names one twice, which would be '
        'the same response'
      )
    if self.ends not in ENDS:
      raise UserError(
        f'{name}: ends={self.ends!r}; use one of {", ".join(ENDS)}'
      )
    limit, least = self.limit(config), len(self.written) + 1
    if not least <= limit <= config.max_response_length:
      raise UserError(
        f'{name}: max_tokens={limit} must lie in '
        f'[{least}, {config.max_response_length}], from one more than are '
        'written to sampling.max_response_length'
      )
    budget, trace = self.budget(config), self.ends == 'trace'
    if budget < 1 or (trace and budget >= limit):
      most = f' and below the {limit} tokens of a trace' if trace else ''
      raise UserError(
        f'{name}: thinking_budget={budget} must be at least 1{most}'
      )
    if context is not None and len(self.prompt) + limit > context:
      raise UserError(
        f'{name}: a prompt of {len(self.prompt)} tokens and a response of up '
        f'to {limit} do not fit the context of {context}; shorten the prompt '
        'or lower max_tokens'
      )

  def limit(self, config: SamplingConfig) -> int:
    """Tokens that a response may have."""
    if self.max_tokens is None:
      return config.max_response_length
    return self.max_tokens

  def budget(self, config: SamplingConfig) -> int:
    """Thinking tokens after which </think> is forced."""
    for budget in (self.thinking_budget, config.thinking_budget):
      if budget is not None:
        return budget
    # The last token of a trace is </think>, drawn or forced.
    return self.limit(config) - (self.ends == 'trace')

  @property
  def read(self) -> tuple[int, ...]:
    """What is read before the first draw."""
    return self.prompt + self.written

  def num_thinking(self, config: SamplingConfig) -> int:
    """Thinking tokens in `written`."""
    if not self.written:
      return 0
    inside, count = False, 0
    for place, token in enumerate(self.read):
      inside &= token != config.think_end_id
      count += inside and place >= len(self.prompt)
      inside |= token == config.think_start_id
    return count


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One finished candidate; R tokens.

  Attributes:
    request: what it answers.
    number: the candidate's number.
    reason: 'stop' (what the request's `ends` names), 'length' or 'pruned'.
    token_R: int32, the stop id included.
    log_prob_R: at the rollout temperature, unfiltered.
    forced_R: forced by a thinking budget, not drawn.
    step_logit_R: z at the position that predicts each mark or </think>.
    last_logit: z at the last position.
    config: ids and aggregator, for the score.
  """

  request: Request
  number: int
  reason: str
  token_R: np.ndarray
  log_prob_R: np.ndarray
  forced_R: np.ndarray
  step_logit_R: np.ndarray
  last_logit: float
  config: SamplingConfig

  @property
  def finished(self) -> bool:
    """Whether it ended by itself."""
    return self.reason == STOP

  @property
  def step_mask_R(self) -> np.ndarray:  # noqa: N802 (shape suffix)
    """bool, where token r is a counted mark."""
    return self._judged[0]

  @property
  def score(self) -> float:
    """Of the trace."""
    return self._judged[1]

  @functools.cached_property
  def _judged(self):
    # When it is asked for: who wants those of many takes them together.
    return score_of(
      self.request.read,
      self.token_R,
      self.step_logit_R,
      self.last_logit,
      self.config,
    )


@dataclasses.dataclass
class Draft:
  """A candidate while it is written, on the host.

  Attributes:
    request: what it answers.
    number: the candidate's number.
    row: of its prompt in the store.
    drawn: tokens so far.
    parts: (token, log_prob, forced, step_logit) of each chunk.
    last_logit: z at its last position.
  """

  request: Request
  number: int
  row: int
  drawn: int = 0
  parts: list = dataclasses.field(default_factory=list)
  last_logit: float = 0.0

  @property
  def token_R(self) -> np.ndarray:  # noqa: N802 (shape suffix)
    """int32, all tokens so far."""
    parts = [part[0] for part in self.parts]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)

  def cut(self, keep: int) -> int:
    """Drops what the last chunk wrote beyond `keep` tokens; how many."""
    dropped = self.drawn - keep
    if dropped:
      self.parts[-1] = tuple(x[:-dropped] for x in self.parts[-1])
      self.drawn = keep
    return dropped

  def finish(self, reason: str, config: SamplingConfig) -> Candidate:
    """The candidate that it has become."""
    token, log_prob, forced, z = (
      np.concatenate([np.asarray(part[i]) for part in self.parts])
      if self.parts
      else np.zeros(0)
      for i in range(4)
    )
    return Candidate(
      self.request,
      self.number,
      reason,
      token.astype(np.int32),
      log_prob,
      forced.astype(bool),
      z,
      self.last_logit,
      config,
    )


def refuse_nan(draft: Draft, part: Sequence[np.ndarray], last_logit) -> None:
  """Raises UserError if a log-prob or a step logit of a chunk is no number.

  Args:
    draft: whose.
    part: (token, log_prob, forced, step_logit) of the chunk.
    last_logit: z at its end.
  """
  for what, x in (
    ('log-prob', part[1]),
    ('step logit', np.append(part[3], last_logit)),
  ):
    wrong = x[~np.isfinite(x)]
    if len(wrong):
      raise UserError(
        f'a {what} of draw {draft.request.draw}, candidate {draft.number} is '
        f'{wrong[0]}: the weights hold NaN or infinity; load another checkpoint'
      )


def score_of(
  prompt: Sequence[int],
  token_R: np.ndarray,
  step_logit_R: np.ndarray,
  last_logit: float,
  config: SamplingConfig,
) -> tuple[np.ndarray, float]:
  """Where the counted marks of a response are, and the score of its trace.

  Args:
    prompt: token ids that were read; marks among them do not count.
    token_R: what was drawn.
    step_logit_R: z where it is a mark or </think>.
    last_logit: z at the last position.
    config: ids, aggregator.
  """
  row = np.concatenate([np.asarray(prompt, np.int32), token_R])
  mask_BR, score_B = judge(
    row.astype(np.int32)[None],
    np.array([len(prompt)]),
    np.array([len(token_R)]),
    step_logit_R[None],
    np.array([last_logit]),
    config,
  )
  return mask_BR[0], float(score_B[0])


def by_draw(requests: list[Request]) -> dict[int, Request]:
  """Requests by their draw index.

  Raises:
    UserError: two of them have the same one.
  """
  found = {request.draw: request for request in requests}
  if len(found) < len(requests):
    raise UserError(
      'several requests have one draw index; their candidates would share '
      'their randomness: number them'
    )
  return found


def flops(config: ModelConfig, candidates: Sequence[Candidate]) -> float:
  """FLOPs of candidates of one request: what it names is read once for all.

  The score head is left out, see `ModelConfig.forward_flops`.
  """
  read = len(candidates[0].request.read)
  return config.prefill_flops(read) + sum(
    config.decode_flops(len(c.token_R), read) for c in candidates
  )
