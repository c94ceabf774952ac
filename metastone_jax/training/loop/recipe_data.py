"""What a recipe says of its data and its draws."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from metastone_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Problems, demonstrations, lengths.

  Attributes:
    tasks: task name -> share of the problems; empty = to be named by
      data.source before anything runs. Any name is a task if its options have
      `source` (see tasks/dataset.py).
    task_options: task name -> its options.
    tokenizer: 'tiny' (shipped), 'source' (that of model.source) or a folder
      with a tokenizer.json or a SentencePiece tokenizer.model.
    step_marks: texts that end a step; each must be one token.
    think_tags: the two texts around the thinking, each one token; () = this
      model has none and its whole response is judged; None = <think> and
      </think> where the tokenizer has them.
    instruction: appended to questions that do not end in it, e.g. how to give
      the answer.
    system: a system message before every question; None = none.
    seed: which problems exist; shared by all runs that are compared.
    num_demonstrations: size of the ONE fixed set of supervised traces; 0 =
      none.
    max_prompt_length: tokens.
    max_response_length: tokens, thinking and answer.
  """

  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  task_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  tokenizer: str = 'tiny'
  step_marks: tuple[str, ...] = ('.\n\n',)
  think_tags: tuple[str, ...] | None = None
  instruction: str = ''
  system: str | None = None
  seed: int = 0
  num_demonstrations: int = 4096
  max_prompt_length: int = 32
  max_response_length: int = 48


@dataclasses.dataclass(frozen=True)
class DrawConfig:
  """Training and evaluation draws (SPEC 4: no top-p in training).

  Attributes:
    temperature: of rollouts, as top_k and top_p.
    top_k: only the k most likely tokens; 0 = off.
    top_p: the smallest set of tokens whose probability reaches it; 1 = off.
    evaluation_temperature: of held-out draws.
    evaluation_top_p: likewise.
    aggregator: step scores -> trace score.
    released_selection: see SamplingConfig.
    slots: responses that a host draws at a time, so that their caches fit; the
      next ones take the places of those that have ended. 0 = all of its share.
      No draw depends on it.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  evaluation_temperature: float = 1.0
  evaluation_top_p: float = 1.0
  aggregator: str = 'geometric'
  released_selection: bool = False
  slots: int = 0

  def __post_init__(self):
    if self.slots < 0:
      raise UserError(
        f'sampling.slots={self.slots} must be at least 0 (all at once)'
      )

  def num_slots(self, responses: int) -> int:
    """Responses that are drawn at a time, of so many."""
    return min(self.slots or responses, responses)
