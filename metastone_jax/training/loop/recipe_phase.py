"""One phase of a recipe: its batch words, objective and layout of rows.

Batch words, here and everywhere: prompts_per_step (P problems a rollout),
samples_per_prompt (N responses to each), updates_per_rollout (mini-batches,
each P / updates problems), sequences_per_microbatch (rows of one forward and
backward pass), demonstrations_per_step (supervised rows of one update).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from metastone_jax import policy
from metastone_jax.errors import UserError
from metastone_jax.training.step import UpdateConfig

OBJECTIVES = {
  'grpo': policy.grpo,
  'dr_grpo': policy.dr_grpo,
  'dapo': policy.dapo,
  'gspo': policy.gspo,
}
SCHEDULES = ('constant', 'cosine')


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
  """One phase of training.

  Attributes:
    name: of the phase, as in metrics and plots.
    steps: length in STEPS (one rollout and its updates, or one update of a
      phase without rollouts).
    prompts_per_step: P; 0 = no rollouts (a supervised phase).
    samples_per_prompt: N.
    updates_per_rollout: mini-batches of a rollout.
    sequences_per_microbatch: rows of one pass; 0 = all at once. With
      packed_length: packed rows.
    demonstrations_per_step: supervised rows of each update.
    backbone_learning_rate: of the backbone.
    head_learning_rate: of the score head.
    warmup_steps: linear rise of both rates, in steps.
    schedule: 'constant', or 'cosine' down to a tenth at the last step.
    policy_coefficient: 0 = no policy gradient.
    objective: grpo, dr_grpo, dapo or gspo.
    objective_options: fields of policy.ObjectiveConfig that differ from it.
    drop_zero_variance: leave groups of equal rewards out of the policy loss's
      denominator (DAPO's dynamic sampling, without drawing more).
    format_reward: added to the reward of a response that came to its end with
      an answer that can be read, right or wrong; usual is 0.1 where a model has
      yet to learn the form. 0 = off.
    truncation_penalty: taken from the reward of a response that the length
      limit has cut; 0 = off. Both, and overlong_buffer, change what the policy
      learns from (logged as reward/format, reward/truncated, reward/overlong
      and their sum with the correctness, reward/shaped); reward/mean and what
      the score head learns stay the correctness alone.
    overlong_buffer: DAPO soft overlong punishment over the last so many
      tokens; 0 = off.
    mask_truncated: responses that the length limit has cut give no policy
      gradient (DAPO overlong filtering): a cut answer says little about its
      thinking. They stay in their group's mean and std. The score loss leaves
      them out with or without this (SPEC 6).
    partial_rollouts: prompts that are drawn beyond prompts_per_step, so that a
      step need not wait for its longest responses: it ends when
      prompts_per_step groups are complete, and the next one goes on with the
      others. Their first tokens then come from earlier policies, whose sampler
      log-probs they keep: set objective_options.importance_truncation. Which
      groups a step gets depends on how many hosts and slots there are. A
      response that goes on is read again, into a prompt cache as long as it.
      0 = off.
    score_coefficient: weight of the score loss; 0 = off.
    score_loss: 'spr', 'bce' or 'soft'.
    score_gradient_scale: of the score loss into the backbone.
    lm_coefficient: weight of the cross-entropy on demonstrations; 0 = off.
    packed_length: places of a row that holds several whole trajectories, so
      that less of an update is padding; 0 = off, a row each. The mathematics
      is the same. At least the longest trajectory; longer rows waste less, but
      each costs attention over all its places.
    shared_prompt: the responses to a problem share one forward pass of its
      prompt (a row = a problem). The mathematics is the same. Saves
      max_prompt_length x (N - 1) places a problem.
    evaluate_every: steps between small held-out evaluations; 0 = none.
  """

  name: str
  steps: int
  prompts_per_step: int = 0
  samples_per_prompt: int = 8
  updates_per_rollout: int = 1
  sequences_per_microbatch: int = 0
  demonstrations_per_step: int = 0
  backbone_learning_rate: float = 1e-6
  head_learning_rate: float = 1e-5
  warmup_steps: int = 0
  schedule: str = 'constant'
  policy_coefficient: float = 1.0
  objective: str = 'grpo'
  objective_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  drop_zero_variance: bool = False
  format_reward: float = 0.0
  truncation_penalty: float = 0.0
  overlong_buffer: int = 0
  mask_truncated: bool = False
  partial_rollouts: int = 0
  score_coefficient: float = 1.0
  score_loss: str = 'spr'
  score_gradient_scale: float = 1e-4
  lm_coefficient: float = 0.0
  packed_length: int = 0
  shared_prompt: bool = False
  evaluate_every: int = 0

  def __post_init__(self):
    where = f'phases.{self.name}'
    for name in ('steps', 'samples_per_prompt', 'updates_per_rollout'):
      if getattr(self, name) < 1:
        raise UserError(f'{where}.{name}={getattr(self, name)} must be >= 1')
    for name in ('format_reward', 'truncation_penalty'):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(
          f'{where}.{name}={getattr(self, name)} must be between 0 (off) and '
          '1, what a right answer is worth'
        )
    if self.schedule not in SCHEDULES:
      raise UserError(
        f'{where}.schedule={self.schedule!r}; use one of {", ".join(SCHEDULES)}'
      )
    if self.objective not in OBJECTIVES:
      raise UserError(
        f'{where}.objective={self.objective!r}; use one of '
        f'{", ".join(OBJECTIVES)}'
      )
    if self.prompts_per_step % self.updates_per_rollout:
      raise UserError(
        f'{where}.updates_per_rollout={self.updates_per_rollout} must divide '
        f'prompts_per_step={self.prompts_per_step}'
      )
    if not 0 <= self.partial_rollouts <= self.prompts_per_step:
      raise UserError(
        f'{where}.partial_rollouts={self.partial_rollouts} must be between 0 '
        f'(off) and prompts_per_step={self.prompts_per_step}'
      )
    if not self.prompts_per_step and (
      self.policy_coefficient or self.score_coefficient
    ):
      raise UserError(
        f'{where}: the policy and score losses need rollouts; set '
        'prompts_per_step above 0, or policy_coefficient and '
        'score_coefficient to 0'
      )
    if bool(self.lm_coefficient) != bool(self.demonstrations_per_step):
      raise UserError(
        f'{where}: lm_coefficient={self.lm_coefficient} and '
        f'demonstrations_per_step={self.demonstrations_per_step} go together: '
        'both 0 or both above 0'
      )
    self._check_layout(where)
    rows, piece = self.rows_per_update, self.sequences_per_microbatch
    if piece and rows % piece and not self.packed_length:
      raise UserError(
        f'{where}.sequences_per_microbatch={piece} must divide the {rows} '
        'sequences of an update (prompts_per_step / updates_per_rollout x '
        'samples_per_prompt + demonstrations_per_step)'
      )
    try:
      _ = self.update_config  # refuses unknown losses and objective options
    except UserError as error:
      if str(error).startswith(where):
        raise
      raise UserError(f'{where}: {error}') from error

  def _check_layout(self, where: str) -> None:
    """Whether packing and shared prompts go together with the rest."""
    if self.packed_length < 0:
      raise UserError(
        f'{where}.packed_length={self.packed_length} must be >= 0 places; 0 = '
        'off'
      )
    if self.packed_length and not self.sequences_per_microbatch:
      raise UserError(
        f'{where}.packed_length needs sequences_per_microbatch, the packed '
        'rows of one pass: only passes that hold a token are run'
      )
    if not self.shared_prompt:
      return
    if self.packed_length:
      raise UserError(
        f'{where}: shared_prompt and packed_length={self.packed_length} are '
        'two ways to lay out a row; use one'
      )
    if self.demonstrations_per_step or not self.prompts_per_step:
      raise UserError(
        f'{where}: shared_prompt is for rollouts alone: a demonstration has a '
        'prompt of its own. Set shared_prompt=False, or lm_coefficient and '
        'demonstrations_per_step to 0'
      )
    if self.sequences_per_microbatch % self.samples_per_prompt:
      raise UserError(
        f'{where}.sequences_per_microbatch={self.sequences_per_microbatch} '
        f'must be a multiple of samples_per_prompt={self.samples_per_prompt} '
        'with shared_prompt: a row holds all responses to a problem'
      )

  @property
  def rollouts_per_step(self) -> int:
    """Responses drawn a step."""
    return self.prompts_per_step * self.samples_per_prompt

  @property
  def rows_per_update(self) -> int:
    """Sequences of one optimiser update."""
    return (
      self.rollouts_per_step // self.updates_per_rollout
      + self.demonstrations_per_step
    )

  @property
  def objective_config(self) -> policy.ObjectiveConfig:
    """The policy objective."""
    try:
      return OBJECTIVES[self.objective](**dict(self.objective_options))
    except TypeError as error:
      raise UserError(
        f'phases.{self.name}.objective_options: {error}'
      ) from error

  @property
  def update_config(self) -> UpdateConfig:
    """What an update optimises, with a row for every sequence.

    The update program's own comes from `row_plan`.
    """
    piece = self.sequences_per_microbatch or self.rows_per_update
    return UpdateConfig(
      objective=self.objective_config,
      policy_coefficient=self.policy_coefficient,
      score_coefficient=self.score_coefficient,
      score_loss=self.score_loss,
      score_gradient_scale=self.score_gradient_scale,
      lm_coefficient=self.lm_coefficient,
      num_micro_batches=max(1, self.rows_per_update // max(1, piece)),
    )
