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

Rows may hold several sequences (training.packing): then what is one a sequence
is given for every place, as row_BT, temperature_BT, advantage_BT, correct_BT
and score_weight_BT, and sequence_BT numbers the sequences of a row from 1.
Dropout depends on the sequence's number and the position in it, not on where
it lies. Of packed rows only the micro-batches that hold a token are run.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.attention import PLAIN, Layout
from metastone_jax import policy, sprm
from metastone_jax.model import ModelConfig, Params, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.training import optimiser, places
from metastone_jax.training.loss import UpdateConfig as UpdateConfig
from metastone_jax.training.loss import (
  forward,
  loss_sums,
  one_a_row_or_token,
  sequences_of,
)
from metastone_jax.training.loss import scale_gradient as scale_gradient
from metastone_jax.training.places import Batch as Batch
from metastone_jax.training.state import TrainState


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
  layout: Layout = PLAIN,
) -> dict[str, jax.Array]:
  """Forward only, dropout off: the `old`, `ref` and step-logit program.

  Args:
    params: any float dtype.
    batch: tokens_BT, position_BT, segment_BT; for log-probs also target_BT
      and the temperature; for step logits step_mask_BT.
    model_config: shapes.
    num_micro_batches: pieces the rows are cut into.
    sharder: mesh.
    with_log_prob: whether log_prob_BT is wanted.
    with_step_logit: whether step_logit_BT is wanted.
    log_prob_chunk: see `kernels.token_log_prob`.
    layout: of the rows, as in `UpdateConfig`.

  Returns:
    log_prob_BT of the targets and entropy_BT in nats; step_logit_BT, 0 outside
    step_mask_BT.
  """
  fields = ['tokens_BT', 'position_BT', 'segment_BT']
  if with_log_prob:
    fields += ['target_BT', 'temperature_B', 'temperature_BT']
  if with_step_logit:
    fields.append('step_mask_BT')
  batch = {name: batch[name] for name in fields if name in batch}
  layout = places.stored_layout(layout, sharder, batch['tokens_BT'].shape[1])
  out = _stored_log_prob_pass(
    params,
    places.store(batch, layout, sharder),
    model_config=model_config,
    num_micro_batches=num_micro_batches,
    sharder=sharder,
    with_log_prob=with_log_prob,
    with_step_logit=with_step_logit,
    log_prob_chunk=log_prob_chunk,
    layout=layout,
  )
  return {name: places.restore(x, layout) for name, x in out.items()}


def _stored_log_prob_pass(
  params,
  batch,
  *,
  model_config,
  num_micro_batches,
  sharder,
  with_log_prob,
  with_step_logit,
  log_prob_chunk,
  layout,
):
  """`log_prob_pass` on, and giving, places in stored order."""
  places.check_rows(batch, num_micro_batches)
  model = ReflectiveModel.bind(model_config, params)

  def one(rows):
    hidden, feature = forward(model, rows, sharder, layout)
    out = {}
    if with_log_prob:
      out['log_prob_BT'], out['entropy_BT'] = model.token_log_prob(
        hidden,
        rows['target_BT'],
        temperature=one_a_row_or_token(rows, 'temperature'),
        sharder=sharder,
        chunk=log_prob_chunk,
      )
    if with_step_logit:
      out['step_logit_BT'], _ = model.step_scores(
        feature, rows['step_mask_BT'] != 0, sharder=sharder
      )
    return out

  if num_micro_batches == 1:
    return one(batch)
  pieces = places.micro_batches(batch, num_micro_batches, sharder)
  count = places.num_used(pieces['segment_BT']) if layout.packed else None
  return places.map_pieces(one, pieces, count, sharder)


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


def dropout_seed(seed: jax.Array, step: jax.Array) -> jax.Array:
  """Of the dropout of one update: uint32, from the run's seed and the step."""
  step = jnp.asarray(step, jnp.uint32)
  return jnp.asarray(seed, jnp.uint32) + step * jnp.uint32(0x9E3779B9)


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
  places.check_rows(batch, K)
  layout = places.stored_layout(
    config.layout, sharder, batch['tokens_BT'].shape[1]
  )
  batch = places.store(batch, layout, sharder)
  totals: dict[str, jax.Array] = {}
  metrics: dict[str, jax.Array] = {}
  weight_BT = None
  one = jnp.ones((), jnp.float32)
  if config.policy_coefficient:
    mask_BT = batch['policy_mask_BT']
    objective = config.objective
    _, total = policy.aggregation_weights(
      mask_BT,
      objective.aggregation,
      fixed_length=objective.fixed_length,
      **sequences_of(batch, config),
    )
    totals['policy'] = jnp.maximum(total, one)
    totals['tokens'] = jnp.maximum(jnp.sum(mask_BT), one)
  if config.lm_coefficient:
    totals['lm'] = jnp.maximum(jnp.sum(batch['lm_mask_BT']), one)
  if config.score_coefficient:
    step_logit_BT = batch.get('step_logit_BT')
    if step_logit_BT is None and config.score_loss != 'bce':
      fields = ('tokens_BT', 'position_BT', 'segment_BT', 'step_mask_BT')
      step_logit_BT = _stored_log_prob_pass(
        params,
        {name: batch[name] for name in fields},
        model_config=model_config,
        num_micro_batches=K,
        sharder=sharder,
        with_log_prob=False,
        with_step_logit=True,
        log_prob_chunk=None,
        layout=layout,
      )['step_logit_BT']
    if step_logit_BT is None:  # 'bce' weighs every step, whatever its logit
      step_logit_BT = jnp.zeros(
        batch['step_mask_BT'].shape,
        jnp.promote_types(model_config.dtype, jnp.float32),
      )
    weight_BT, counts = sprm.step_weights(
      step_logit_BT,
      batch['step_mask_BT'],
      one_a_row_or_token(batch, 'correct'),
      kind=config.score_loss,
      score_weight_B=one_a_row_or_token(batch, 'score_weight'),
    )
    totals['score'] = sprm.step_loss_denominator(weight_BT)
    metrics['score/kept_positive'] = counts.kept_positive / jnp.maximum(
      counts.positive, 1
    )
    metrics['score/kept_negative'] = counts.kept_negative / jnp.maximum(
      counts.negative, 1
    )
  batch = {
    name: value
    for name, value in batch.items()
    if value is not None and name != 'step_logit_BT'
  }
  loss_and_grad = jax.grad(
    functools.partial(
      loss_sums,
      totals=totals,
      seed=dropout_seed(seed, step),
      model_config=model_config,
      config=config,
      sharder=sharder,
      layout=layout,
    ),
    has_aux=True,
  )
  if K == 1:
    grads, sums = loss_and_grad(params, batch, weight_BT)
  else:
    pieces = places.micro_batches((batch, weight_BT), K, sharder)
    count = None
    if layout.packed:
      count = places.num_used(pieces[0]['segment_BT'])
    grads, sums = places.sum_pieces(
      lambda piece: loss_and_grad(params, *piece), pieces, count
    )
  return grads, {**metrics, **sums}
