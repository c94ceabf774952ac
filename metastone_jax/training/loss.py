"""The loss of one micro-batch: what is optimised, term by term.

Sums only; the denominators belong to the whole batch (see training.step).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from kernels.attention import PLAIN, Layout
from metastone_jax import policy, sprm
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, Params, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.training.places import Batch


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """What one update optimises; static under jit.

  Attributes:
    objective: the policy objective, its KL and entropy coefficients.
    policy_coefficient: 0 switches policy, KL and entropy off.
    score_coefficient: weight of the process-reward loss; 0 = off.
    score_loss: 'spr' (the paper), 'bce' or 'soft'.
    score_gradient_scale: factor on the score loss's gradient into the backbone
      (released: 1e-4).
    lm_coefficient: weight of the cross-entropy on demonstrations; 0 = off.
    num_micro_batches: pieces the rows are cut into.
    log_prob_chunk: see `kernels.token_log_prob`; None = automatic.
    layout: what the places of a row are, before it is split over devices.
    sequences_per_row: the most that a row holds; above 1 the batch has
      sequence_BT.
  """

  objective: policy.ObjectiveConfig = dataclasses.field(
    default_factory=policy.ObjectiveConfig
  )
  policy_coefficient: float = 1.0
  score_coefficient: float = 1.0
  score_loss: str = 'spr'
  score_gradient_scale: float = 1e-4
  lm_coefficient: float = 0.0
  num_micro_batches: int = 1
  log_prob_chunk: int | None = None
  layout: Layout = PLAIN
  sequences_per_row: int = 1

  def __post_init__(self):
    if self.score_loss not in sprm.KINDS:
      raise UserError(
        f'loss={self.score_loss!r} is unknown; use one of '
        f'{", ".join(sprm.KINDS)}'
      )
    if not (
      self.policy_coefficient or self.score_coefficient or self.lm_coefficient
    ):
      raise UserError(
        'every loss term is switched off: set policy_coefficient, '
        'score_coefficient or lm_coefficient above 0'
      )
    if self.num_micro_batches < 1:
      raise UserError(
        f'num_micro_batches={self.num_micro_batches} must be at least 1'
      )
    several = self.layout.packed or self.layout.prompt_length > 0
    if self.sequences_per_row < 1 or (
      self.sequences_per_row > 1 and not several
    ):
      raise ValueError(
        f'{self.sequences_per_row} sequences a row do not fit {self.layout}'
      )


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
  """x itself, its gradient multiplied by a constant."""
  if scale == 1:
    return x
  fixed = jax.lax.stop_gradient(x)
  if scale == 0:
    return fixed
  # x - fixed is exactly 0, so the value is exactly x.
  return fixed + scale * (x - fixed)


def one_a_row_or_token(rows: Batch, name: str) -> jax.Array:
  """The field `name`_BT where rows hold several sequences, else `name`_B."""
  token = f'{name}_BT'
  return rows[token] if token in rows else rows[f'{name}_B']


def sequences_of(rows: Batch, config: UpdateConfig) -> dict:
  """Arguments of `policy` that say which tokens are one sequence."""
  if config.sequences_per_row == 1:
    return {}
  return {
    'segment_BT': rows['sequence_BT'],
    'num_segments': config.sequences_per_row,
  }


def forward(
  model: ReflectiveModel, rows: Batch, sharder: Sharder, layout: Layout
) -> tuple[jax.Array, jax.Array]:
  """hidden_BTD and feature_BTD of a micro-batch."""
  hidden, feature, _ = model(
    rows['tokens_BT'],
    rows['position_BT'],
    rows['segment_BT'],
    sharder=sharder,
    layout=layout,
  )
  return hidden, feature


def loss_sums(
  params: Params,
  rows: Batch,
  weight_BT: jax.Array | None,
  totals: dict[str, jax.Array],
  seed: jax.Array,
  model_config: ModelConfig,
  config: UpdateConfig,
  sharder: Sharder,
  layout: Layout,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """This micro-batch's share of the loss, and the sums of its metrics.

  Args:
    params: masters.
    rows: the micro-batch, in stored order.
    weight_BT: of each step; None without the score loss.
    totals: denominators of the global batch.
    seed: uint32 scalar of the update's dropout.
    model_config: shapes.
    config: the objective.
    sharder: mesh.
    layout: of the rows as stored.
  """
  model = ReflectiveModel.bind(model_config, params)
  hidden, feature = forward(model, rows, sharder, layout)
  sequences = sequences_of(rows, config)
  loss = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
  sums: dict[str, jax.Array] = {}
  objective = config.objective
  if config.policy_coefficient or config.lm_coefficient:
    log_prob_BT, entropy_BT = model.token_log_prob(
      hidden,
      rows['target_BT'],
      temperature=one_a_row_or_token(rows, 'temperature'),
      sharder=sharder,
      chunk=config.log_prob_chunk,
    )
  if config.policy_coefficient:
    mask_BT = rows['policy_mask_BT']
    old_BT = rows.get('old_log_prob_BT')
    if old_BT is None:
      old_BT = jax.lax.stop_gradient(log_prob_BT)
    terms = policy.policy_terms(
      log_prob_BT,
      old_BT,
      one_a_row_or_token(rows, 'advantage'),
      mask_BT,
      config=objective,
      sampler_log_prob_BT=rows.get('sampler_log_prob_BT'),
      **sequences,
    )
    aggregate = functools.partial(
      policy.aggregate,
      mask_BT=mask_BT,
      aggregation=objective.aggregation,
      fixed_length=objective.fixed_length,
      **sequences,
    )
    policy_sum = terms.pop('policy')[0]
    entropy_sum = aggregate(entropy_BT)[0]
    part = policy_sum - objective.entropy_coefficient * entropy_sum
    sums['loss/policy'] = policy_sum / totals['policy']
    sums['policy/entropy'] = entropy_sum / totals['policy']
    if objective.kl_coefficient:
      kl_sum = policy.kl_terms(
        log_prob_BT,
        rows['ref_log_prob_BT'],
        mask_BT,
        objective.kl_form,
        aggregation=objective.aggregation,
        fixed_length=objective.fixed_length,
        **sequences,
      )[0]
      part += objective.kl_coefficient * kl_sum
      sums['policy/kl'] = kl_sum / totals['policy']
    loss += config.policy_coefficient * part / totals['policy']
    for name, (value, _) in terms.items():
      sums[f'policy/{name}'] = value / totals['tokens']
    if 'sampler_log_prob_BT' in rows:
      gap = policy.sampler_mismatch_terms(
        old_BT, rows['sampler_log_prob_BT'], mask_BT
      )
      sums['policy/sampler_mismatch'] = gap['mean'][0] / totals['tokens']
  if config.lm_coefficient:
    lm_sum = -jnp.sum(jnp.where(rows['lm_mask_BT'], log_prob_BT, 0))
    loss += config.lm_coefficient * lm_sum / totals['lm']
    sums['loss/lm'] = lm_sum / totals['lm']
  if config.score_coefficient:
    step_logit_BT, _ = model.step_scores(
      scale_gradient(feature, config.score_gradient_scale),
      weight_BT != 0,
      seed=seed,
      row_B=one_a_row_or_token(rows, 'row'),
      position_BT=rows['position_BT'],
      sharder=sharder,
    )
    score_sum = sprm.step_loss_sum(
      step_logit_BT, one_a_row_or_token(rows, 'correct'), weight_BT
    )
    loss += config.score_coefficient * score_sum / totals['score']
    sums['loss/score'] = score_sum / totals['score']
  sums['loss/total'] = loss
  return loss, jax.lax.stop_gradient(sums)
