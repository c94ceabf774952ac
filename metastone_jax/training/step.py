"""One update: a pure function (state, batch, rates) -> (state, metrics).

Every loss term is a (sum, denominator); the denominators and the SPR step
weights belong to the GLOBAL batch and are known before the backward pass, so K
micro-batches give the gradient of one batch. A term whose coefficient is 0 is
not computed. Terms (SPEC 3, 4):

  loss = policy + kl_coefficient * KL - entropy_coefficient * entropy
         + score_coefficient * SPR + lm_coefficient * cross-entropy

A batch is a dict of arrays, B rows x T positions, aligned with the PREDICTING
position (index t speaks of target_BT[t], the token after tokens_BT[t]):

  tokens_BT, target_BT, position_BT, segment_BT  int32; segment 0 = padding
  row_B            uint32, global row number: dropout depends on it alone
  temperature_B    logits are divided by it; 1 on demonstration rows
  policy_mask_BT   response tokens that get a policy gradient
  advantage_B      one a row
  old_log_prob_BT  absent: this is the only update of its rollout
  ref_log_prob_BT  needed while the KL coefficient is not 0
  sampler_log_prob_BT
  step_mask_BT     feature positions of counted marks
  step_logit_BT    dropout-off z of the sampler; absent: computed here first
  correct_B        final answer right
  score_weight_B   0 = do not train the head on this row
  lm_mask_BT       demonstration tokens
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from metastone_jax import policy, sprm
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, Params, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.training import optimiser
from metastone_jax.training.state import TrainState

Batch = dict[str, jax.Array]


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


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
  """x itself, its gradient multiplied by a constant."""
  if scale == 1:
    return x
  fixed = jax.lax.stop_gradient(x)
  if scale == 0:
    return fixed
  # x - fixed is exactly 0, so the value is exactly x.
  return fixed + scale * (x - fixed)


def _micro_batches(batch: Any, count: int, sharder: Sharder) -> Any:
  """(B, ...) -> (count, B / count, ...), row b into micro-batch b % count.

  That keeps a batch axis split over devices where it is.
  """

  def cut(x):
    x = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    x = jnp.swapaxes(x, 0, 1)
    return sharder.constrain(x, None, 'batch', *(None,) * (x.ndim - 2))

  return jax.tree.map(cut, batch)


def _uncut(x_KB: jax.Array) -> jax.Array:
  """The inverse of `_micro_batches` on one array."""
  x = jnp.swapaxes(x_KB, 0, 1)
  return x.reshape(-1, *x.shape[2:])


def _check_rows(batch: Batch, count: int) -> None:
  rows = batch['tokens_BT'].shape[0]
  if rows % count:
    raise UserError(
      f'{rows} sequences do not divide into {count} micro-batches; change '
      'sequences_per_microbatch'
    )


def log_prob_pass(
  params: Params,
  batch: Batch,
  *,
  model_config: ModelConfig,
  num_micro_batches: int,
  sharder: Sharder,
  with_log_prob: bool = True,
  with_step_logit: bool = True,
  log_prob_chunk: int | None = None,
) -> dict[str, jax.Array]:
  """Forward only, dropout off: the `old`, `ref` and step-logit program.

  Args:
    params: any float dtype.
    batch: tokens_BT, position_BT, segment_BT; for log-probs also target_BT
      and temperature_B.
    model_config: shapes.
    num_micro_batches: pieces the rows are cut into.
    sharder: mesh.
    with_log_prob: whether log_prob_BT is wanted.
    with_step_logit: whether step_logit_BT is wanted.
    log_prob_chunk: see `kernels.token_log_prob`.

  Returns:
    log_prob_BT of the targets and entropy_BT in nats; step_logit_BT.
  """
  _check_rows(batch, num_micro_batches)
  fields = ['tokens_BT', 'position_BT', 'segment_BT']
  if with_log_prob:
    fields += ['target_BT', 'temperature_B']
  model = ReflectiveModel.bind(model_config, params)

  def one(rows):
    hidden, feature, _ = model(
      rows['tokens_BT'],
      rows['position_BT'],
      rows['segment_BT'],
      sharder=sharder,
    )
    out = {}
    if with_log_prob:
      out['log_prob_BT'], out['entropy_BT'] = model.token_log_prob(
        hidden,
        rows['target_BT'],
        temperature=rows['temperature_B'],
        sharder=sharder,
        chunk=log_prob_chunk,
      )
    if with_step_logit:
      out['step_logit_BT'] = model.score(feature, sharder=sharder)
    return out

  batch = {name: batch[name] for name in fields}
  if num_micro_batches == 1:
    return one(batch)
  pieces = _micro_batches(batch, num_micro_batches, sharder)
  return jax.tree.map(_uncut, jax.lax.map(one, pieces))


def _loss_sums(
  params: Params,
  rows: Batch,
  weight_BT: jax.Array | None,
  totals: dict[str, jax.Array],
  seed: jax.Array,
  model_config: ModelConfig,
  config: UpdateConfig,
  sharder: Sharder,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """This micro-batch's share of the loss, and the sums of its metrics."""
  model = ReflectiveModel.bind(model_config, params)
  hidden, feature, _ = model(
    rows['tokens_BT'], rows['position_BT'], rows['segment_BT'], sharder=sharder
  )
  loss = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
  sums: dict[str, jax.Array] = {}
  objective = config.objective
  if config.policy_coefficient or config.lm_coefficient:
    log_prob_BT, entropy_BT = model.token_log_prob(
      hidden,
      rows['target_BT'],
      temperature=rows['temperature_B'],
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
      rows['advantage_B'],
      mask_BT,
      config=objective,
      sampler_log_prob_BT=rows.get('sampler_log_prob_BT'),
    )
    aggregate = functools.partial(
      policy.aggregate,
      mask_BT=mask_BT,
      aggregation=objective.aggregation,
      fixed_length=objective.fixed_length,
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
    step_logit_BT = model.score(
      scale_gradient(feature, config.score_gradient_scale),
      seed=seed,
      row_B=rows['row_B'],
      sharder=sharder,
    )
    score_sum = sprm.step_loss_sum(step_logit_BT, rows['correct_B'], weight_BT)
    loss += config.score_coefficient * score_sum / totals['score']
    sums['loss/score'] = score_sum / totals['score']
  sums['loss/total'] = loss
  return loss, jax.lax.stop_gradient(sums)


def update(
  state: TrainState,
  batch: Batch,
  learning_rates: dict[str, jax.Array],
  seed: jax.Array,
  *,
  model_config: ModelConfig,
  opt_config: optimiser.OptimiserConfig,
  config: UpdateConfig,
  sharder: Sharder,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimiser update over one global batch. Pure; jit it with donation.

  Args:
    state: see training.state.
    batch: see the module; only the fields of the terms in use are read.
    learning_rates: scalars 'backbone' and 'head'.
    seed: uint32 scalar of the run; dropout is a function of (seed, step, row,
      position, unit).
    model_config: shapes.
    opt_config: AdamW.
    config: the objective.
    sharder: mesh.

  Returns:
    the next state and scalar metrics: loss/*, policy/*, score/kept_*,
    grad_norm/*.
  """
  grads, metrics = gradient(
    state['params'],
    batch,
    seed,
    state['step'],
    model_config=model_config,
    config=config,
    sharder=sharder,
  )
  params, opt, norms = optimiser.apply(
    opt_config, grads, state['opt'], state['params'], learning_rates
  )
  state = {'params': params, 'opt': opt, 'step': state['step'] + 1}
  return state, {**metrics, **norms}


def gradient(
  params: Params,
  batch: Batch,
  seed: jax.Array,
  step: jax.Array,
  *,
  model_config: ModelConfig,
  config: UpdateConfig,
  sharder: Sharder,
) -> tuple[Params, dict[str, jax.Array]]:
  """The gradient of the whole batch and its metrics; see `update`."""
  K = config.num_micro_batches
  _check_rows(batch, K)
  totals: dict[str, jax.Array] = {}
  metrics: dict[str, jax.Array] = {}
  weight_BT = None
  one = jnp.ones((), jnp.float32)
  if config.policy_coefficient:
    mask_BT = batch['policy_mask_BT']
    objective = config.objective
    _, total = policy.aggregation_weights(
      mask_BT, objective.aggregation, fixed_length=objective.fixed_length
    )
    totals['policy'] = jnp.maximum(total, one)
    totals['tokens'] = jnp.maximum(jnp.sum(mask_BT), one)
  if config.lm_coefficient:
    totals['lm'] = jnp.maximum(jnp.sum(batch['lm_mask_BT']), one)
  if config.score_coefficient:
    step_logit_BT = batch.get('step_logit_BT')
    if step_logit_BT is None and config.score_loss != 'bce':
      step_logit_BT = log_prob_pass(
        params,
        batch,
        model_config=model_config,
        num_micro_batches=K,
        sharder=sharder,
        with_log_prob=False,
      )['step_logit_BT']
    if step_logit_BT is None:  # 'bce' weighs every step, whatever its logit
      step_logit_BT = jnp.zeros(
        batch['step_mask_BT'].shape,
        jnp.promote_types(model_config.dtype, jnp.float32),
      )
    weight_BT, counts = sprm.step_weights(
      step_logit_BT,
      batch['step_mask_BT'],
      batch['correct_B'],
      kind=config.score_loss,
      score_weight_B=batch['score_weight_B'],
    )
    totals['score'] = sprm.step_loss_denominator(weight_BT)
    metrics['score/kept_positive'] = counts.kept_positive / jnp.maximum(
      counts.positive, 1
    )
    metrics['score/kept_negative'] = counts.kept_negative / jnp.maximum(
      counts.negative, 1
    )
  dropout_seed = jnp.asarray(seed, jnp.uint32) + jnp.asarray(
    step, jnp.uint32
  ) * jnp.uint32(0x9E3779B9)
  batch = {
    name: value
    for name, value in batch.items()
    if value is not None and name != 'step_logit_BT'
  }
  loss_and_grad = jax.grad(
    functools.partial(
      _loss_sums,
      totals=totals,
      seed=dropout_seed,
      model_config=model_config,
      config=config,
      sharder=sharder,
    ),
    has_aux=True,
  )
  if K == 1:
    grads, sums = loss_and_grad(params, batch, weight_BT)
  else:
    pieces = _micro_batches((batch, weight_BT), K, sharder)

    def accumulate(carry, piece):
      rows, weight = piece
      return jax.tree.map(
        jnp.add, carry, loss_and_grad(params, rows, weight)
      ), (None)

    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(
        loss_and_grad,
        params,
        *jax.tree.map(lambda x: x[0], pieces),
      ),
    )
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, pieces)
  return grads, {**metrics, **sums}
