"""One compiled program draws all candidates of a batch of problems.

Prefill runs once a problem; a loop writes one token a candidate a turn
(`slots`) and stops when every candidate has ended. A trace is scored while it
is written: no second model, no re-read.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metastone_jax.model import ModelConfig, Params, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import slots as slots_lib
from metastone_jax.sampling import strategies
from metastone_jax.sampling.config import SamplingConfig, check_num_candidates
from metastone_jax.sampling.judging import judge
from metastone_jax.sampling.slots import ENDS, Records, Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
  """Candidates with their scores; index r speaks of response token r.

  Attributes:
    token_PNR: int32 responses, padded after their end.
    length_PN: tokens of each response, the end token included.
    finished_PN: ended by the end token, not by the length limit.
    log_prob_PNR: sampler log-probs (temperature-scaled, unfiltered), 0 after
      the end.
    forced_PNR: tokens that were forced by a thinking budget: no policy
      gradient there.
    step_logit_PNR: z at the position predicting token r (dropout off), where
      that is a step mark or </think>; else 0.
    step_mask_PNR: where token r is a counted mark.
    score_PN: trace scores.
  """

  token_PNR: jax.Array
  length_PN: jax.Array
  finished_PN: jax.Array
  log_prob_PNR: jax.Array
  forced_PNR: jax.Array
  step_logit_PNR: jax.Array
  step_mask_PNR: jax.Array
  score_PN: jax.Array


def decode_params(params: Params, config: ModelConfig) -> Params:
  """Parameters as the decode loop reads them: cast to the compute dtype.

  Called inside the sampling program, once a rollout; the float32 masters are
  not touched.
  """
  return jax.tree.map(lambda x: x.astype(config.dtype), params)


def prompt_valid(prompt_PS: jax.Array, length_P: jax.Array) -> jax.Array:
  """bool (P, S): real prompt positions."""
  return jnp.arange(prompt_PS.shape[1])[None] < length_P[:, None]


def start(
  model: ReflectiveModel,
  prompt_PS: jax.Array,
  length_P: jax.Array,
  key_PN: jax.Array,
  *,
  config: SamplingConfig,
  sharder: Sharder,
  trace: bool = False,
) -> Slots:
  """Prefill: the slots, N a prompt, before the first draw.

  Args:
    model: with parameters in the compute dtype.
    prompt_PS: right-padded prompts.
    length_P: tokens of each.
    key_PN: `strategies.row_keys`.
    config: lengths, budget, ids.
    sharder: mesh, or an empty Sharder().
    trace: they end with their thinking.
  """
  (P, N), R = key_PN.shape, config.max_response_length
  B = P * N
  hidden_PD, feature_PD, caches = model.prefill(
    prompt_PS, length_P, slots=B, columns=R, sharder=sharder
  )
  valid_PS = prompt_valid(prompt_PS, length_P)
  zero_B = jnp.zeros(B, jnp.int32)
  budget = R if config.thinking_budget is None else config.thinking_budget
  return Slots(
    column=jnp.zeros((), jnp.int32),
    caches=caches,
    own_valid_BR=jnp.zeros((B, R), bool),
    prompt_valid_PS=valid_PS,
    prompt_B=None,
    hidden_BD=jnp.repeat(hidden_PD, N, axis=0),
    feature_BD=jnp.repeat(feature_PD, N, axis=0),
    key_B=key_PN.reshape(B),
    position_B=jnp.repeat(length_P.astype(jnp.int32), N),
    written_B=zero_B,
    limit_B=zero_B + R,
    ends_B=zero_B + ENDS.index('trace' if trace else 'response'),
    budget_B=zero_B + budget,
    thinking_B=jnp.repeat(thinking_open(prompt_PS, valid_PS, config), N),
    num_thinking_B=zero_B,
    stopped_B=zero_B != 0,
    seen_BV=_repeated(
      tokens_seen(prompt_PS, valid_PS, model.config.padded_vocab_size, config),
      N,
    ),
  )


def _repeated(x_P: jax.Array | None, times: int):
  return None if x_P is None else jnp.repeat(x_P, times, axis=0)


def tokens_seen(
  prompt_PS: jax.Array,
  valid_PS: jax.Array,
  vocab_size: int,
  config: SamplingConfig,
) -> jax.Array | None:
  """bool (P, V): tokens of each prompt; None where nobody asks for them."""
  if config.repetition_penalty == 1:
    return None
  row_P1 = jnp.arange(prompt_PS.shape[0])[:, None]
  seen_PV = jnp.zeros((prompt_PS.shape[0], vocab_size), bool)
  return seen_PV.at[row_P1, prompt_PS].max(valid_PS)


def thinking_open(
  prompt_PS: jax.Array, valid_PS: jax.Array, config: SamplingConfig
) -> jax.Array:
  """bool (P,): the last tag of the prompt is a <think>."""
  place_S = jnp.arange(prompt_PS.shape[1])

  def last(token):
    return jnp.max(
      jnp.where(valid_PS & (prompt_PS == token), place_S, -1), axis=1
    )

  return last(config.think_start_id) > last(config.think_end_id)


def _joined(prompt_PS, length_P, token_PNR, pad_id):
  """(P, N, S + R) rows without a gap between prompt and response."""
  P, N, R = token_PNR.shape
  S = prompt_PS.shape[1]
  place_T = jnp.arange(S + R)
  response_index = jnp.clip(place_T[None] - length_P[:, None], 0, R - 1)
  from_response = jnp.take_along_axis(
    token_PNR, jnp.broadcast_to(response_index[:, None], (P, N, S + R)), axis=2
  )
  past_end = place_T[None] >= length_P[:, None] + R
  padded = jnp.pad(prompt_PS, ((0, 0), (0, R)), constant_values=pad_id)
  joined = jnp.where(
    (place_T[None] < length_P[:, None])[:, None],
    padded[:, None],
    from_response,
  )
  return jnp.where(past_end[:, None], pad_id, joined)


def finish(
  model: ReflectiveModel,
  slots: Slots,
  records: Records,
  prompt_PS: jax.Array,
  length_P: jax.Array,
  *,
  config: SamplingConfig,
) -> Rollout:
  """Marks, trace scores and lengths of a finished draw of equal groups."""
  P = prompt_PS.shape[0]
  B = records.token_BC.shape[0]
  N = B // P

  def in_groups(x_B):
    return x_B.reshape(P, N, *x_B.shape[1:])

  token_PNR = in_groups(records.token_BC)
  written_PN = jnp.sum(in_groups(records.written_BC), axis=-1, dtype=jnp.int32)
  joined = _joined(prompt_PS, length_P, token_PNR, config.pad_id)
  step_mask_BR, score_B = judge(
    joined.reshape(B, -1),
    jnp.repeat(length_P, N),
    written_PN.reshape(B),
    records.step_logit_BC,
    model.score(slots.feature_BD[:, None])[:, 0],
    config,
  )
  return Rollout(
    token_PNR=token_PNR,
    length_PN=written_PN,
    finished_PN=in_groups(slots.stopped_B),
    log_prob_PNR=in_groups(records.log_prob_BC),
    forced_PNR=in_groups(records.forced_BC),
    step_logit_PNR=in_groups(records.step_logit_BC),
    step_mask_PNR=in_groups(step_mask_BR),
    score_PN=in_groups(score_B),
  )


def sample(
  params: Params,
  prompt_PS: jax.Array,
  length_P: jax.Array,
  seed: jax.Array,
  draw_P: jax.Array,
  candidate_N: jax.Array,
  *,
  model_config: ModelConfig,
  config: SamplingConfig,
  sharder: Sharder,
) -> Rollout:
  """Draws N complete responses to each of P prompts. A pure function: jit it.

  A candidate's tokens depend on (seed, draw, candidate, position) and its
  prompt only.

  Args:
    params: parameters of the model, any float dtype.
    prompt_PS: right-padded int32 prompts.
    length_P: tokens of each prompt, >= 1.
    seed: uint32 or int32 scalar.
    draw_P: int32 global draw index of each problem.
    candidate_N: int32 candidate numbers, usually arange(N).
    model_config: shapes.
    config: strategy, lengths, ids.
    sharder: mesh, or an empty Sharder().

  Returns:
    The candidates with log-probs, step logits and trace scores.

  Raises:
    UserError: N < 1.
  """
  check_num_candidates(candidate_N.shape[0])
  model = ReflectiveModel.bind(
    model_config, decode_params(params, model_config)
  )
  slots = start(
    model,
    prompt_PS,
    length_P,
    strategies.row_keys(seed, draw_P, candidate_N),
    config=config,
    sharder=sharder,
  )
  slots, records = slots_lib.decode_loop(
    model,
    slots,
    turns=config.max_response_length,
    config=config,
    sharder=sharder,
  )
  return finish(model, slots, records, prompt_PS, length_P, config=config)


def continue_from(slots: Slots, slot_P: jax.Array, extra: int) -> Slots:
  """One chosen slot a prompt goes on to its answer, of `extra` tokens.

  Args:
    slots: after a decode loop.
    slot_P: int32, the slot to go on from, one of each prompt's.
    extra: tokens, and columns added for them.

  Returns:
    P slots that have not stopped.
  """

  def widened(x_BR):
    return jnp.pad(x_BR[slot_P], ((0, 0), (0, extra)))

  written_P = slots.written_B[slot_P]
  return dataclasses.replace(
    jax.tree.map(
      lambda x: x[slot_P],
      dataclasses.replace(
        slots,
        column=None,
        caches=None,
        own_valid_BR=None,
        prompt_valid_PS=None,
        prompt_B=None,
      ),
    ),
    # The first of the added ones: those before are in use, or free for good.
    column=jnp.asarray(slots.own_valid_BR.shape[1], jnp.int32),
    caches=tuple(c.select(slot_P, extra) for c in slots.caches),
    own_valid_BR=widened(slots.own_valid_BR),
    prompt_valid_PS=slots.prompt_valid_PS,
    limit_B=written_P + extra,
    ends_B=jnp.full_like(written_P, ENDS.index('response')),
    stopped_B=jnp.zeros_like(written_P, bool),
  )
