"""One compiled program draws all candidates of a batch of problems.

Prefill runs once a problem; a `while_loop` writes one token a candidate a turn
and stops when every candidate has ended. The score head reads the feature at
the very moment a token is drawn (SPEC 1: the position whose next token is the
mark), so a trace is scored when its last token is written: no second model, no
re-read.

The loop carries hidden states, not logits, and slots are common to all rows
(what a row may read is a mask), so a finished or forked row needs no care:
`continue_from` goes on from chosen rows of an earlier draw.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from metastone_jax.model import (
  LayerCache,
  ModelConfig,
  Params,
  ReflectiveModel,
)
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import strategies
from metastone_jax.sampling.config import SamplingConfig, check_num_candidates
from metastone_jax.sprm import (
  step_feature_mask,
  thinking_end_feature_mask,
  trace_score,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """The carry of the decode loop: P problems, N candidates, R slots.

  Attributes:
    slot: int32 scalar, the response slot drawn next.
    hidden_PND: final hidden state that predicts the next token.
    feature_PND: score feature at the same position.
    caches: one LayerCache a layer.
    own_valid_PNR: slots of the own cache a candidate may read.
    position_PN: position of the token drawn next.
    thinking_PN: a <think> is open.
    num_thinking_PN: thinking tokens written so far.
    done_PN: the candidate has ended.
    token_PNR: what was drawn, pad after the end.
    log_prob_PNR: its log-prob at the rollout temperature, unfiltered.
    step_logit_PNR: z at the position that predicts each token.
    last_step_logit_PN: z at the last position, which predicts nothing yet;
      written when the loop ends.
    forced_PNR: the token was forced (a thinking budget), not drawn.
  """

  slot: jax.Array
  hidden_PND: jax.Array
  feature_PND: jax.Array
  caches: tuple[LayerCache, ...]
  own_valid_PNR: jax.Array
  position_PN: jax.Array
  thinking_PN: jax.Array
  num_thinking_PN: jax.Array
  done_PN: jax.Array
  token_PNR: jax.Array
  log_prob_PNR: jax.Array
  step_logit_PNR: jax.Array
  last_step_logit_PN: jax.Array
  forced_PNR: jax.Array


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
    step_logit_PNR: z at the position predicting token r (dropout off).
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
  *,
  num_candidates: int,
  config: SamplingConfig,
  sharder: Sharder,
) -> DecodeState:
  """Prefill: the state before the first draw."""
  P, N, R = prompt_PS.shape[0], num_candidates, config.max_response_length
  hidden_PD, feature_PD, caches = model.prefill(
    prompt_PS,
    length_P,
    num_candidates=N,
    num_slots=R,
    sharder=sharder,
  )
  valid_PS = prompt_valid(prompt_PS, length_P)
  opened = jnp.sum(
    jnp.where(valid_PS, prompt_PS == config.think_start_id, False), axis=1
  )
  closed = jnp.sum(
    jnp.where(valid_PS, prompt_PS == config.think_end_id, False), axis=1
  )

  def per_candidate(x_P):
    return jnp.broadcast_to(x_P[:, None], (P, N) + x_P.shape[1:])

  acc = jnp.promote_types(hidden_PD.dtype, jnp.float32)
  return DecodeState(
    slot=jnp.zeros((), jnp.int32),
    hidden_PND=per_candidate(hidden_PD),
    feature_PND=per_candidate(feature_PD),
    caches=caches,
    own_valid_PNR=jnp.zeros((P, N, R), bool),
    position_PN=per_candidate(length_P.astype(jnp.int32)),
    thinking_PN=per_candidate(opened > closed),
    num_thinking_PN=jnp.zeros((P, N), jnp.int32),
    done_PN=jnp.zeros((P, N), bool),
    token_PNR=jnp.full((P, N, R), config.pad_id, jnp.int32),
    log_prob_PNR=jnp.zeros((P, N, R), acc),
    step_logit_PNR=jnp.zeros((P, N, R), acc),
    last_step_logit_PN=jnp.zeros((P, N), acc),
    forced_PNR=jnp.zeros((P, N, R), bool),
  )


def _is_any(token: jax.Array, ids: tuple[int, ...]) -> jax.Array:
  return functools.reduce(jnp.logical_or, [token == i for i in ids])


def decode_loop(
  model: ReflectiveModel,
  state: DecodeState,
  keys_PN: jax.Array,
  valid_PS: jax.Array,
  *,
  config: SamplingConfig,
  stop_ids: tuple[int, ...],
  sharder: Sharder,
) -> DecodeState:
  """Draws until every candidate wrote a stop id or its last slot."""
  R = state.token_PNR.shape[-1]
  layers = model.layers()

  def unfinished(state: DecodeState):
    return (state.slot < R) & ~jnp.all(state.done_PN)

  def turn(state: DecodeState) -> DecodeState:
    slot, done = state.slot, state.done_PN
    logits_PNV = model.logits(state.hidden_PND)
    token_PN, log_prob_PN = strategies.draw_tokens(
      logits_PNV,
      keys_PN,
      slot,
      temperature=config.temperature,
      top_k=config.top_k,
      top_p=config.top_p,
    )
    forced_PN = jnp.zeros_like(done)
    if config.thinking_budget is not None:
      forced_PN = (
        state.thinking_PN
        & (state.num_thinking_PN >= config.thinking_budget)
        & (token_PN != config.think_end_id)
      )
      token_PN = jnp.where(forced_PN, config.think_end_id, token_PN)
      scale = config.temperature or 1.0
      log_prob_PN = strategies.log_prob_of(logits_PNV / scale, token_PN)
    token_PN = jnp.where(done, config.pad_id, token_PN)
    step_logit_PN = model.score(state.feature_PND)

    def record(rows_PNR, value_PN):
      value_PN = jnp.where(done, 0, value_PN).astype(rows_PNR.dtype)
      return jax.lax.dynamic_update_slice_in_dim(
        rows_PNR, value_PN[..., None], slot, axis=2
      )

    # The tags themselves are no thinking tokens.
    inside = state.thinking_PN & (token_PN != config.think_end_id)
    thinking = inside | (token_PN == config.think_start_id)
    own_valid = jax.lax.dynamic_update_slice_in_dim(
      state.own_valid_PNR, ~done[..., None], slot, axis=2
    )
    hidden, feature, caches = model.decode(
      token_PN,
      state.position_PN,
      state.caches,
      slot,
      valid_PS,
      own_valid,
      layers=layers,
      sharder=sharder,
    )

    def freeze(old, new):
      return jnp.where(done[..., None], old, new)

    return DecodeState(
      slot=slot + 1,
      hidden_PND=freeze(state.hidden_PND, hidden),
      feature_PND=freeze(state.feature_PND, feature),
      caches=caches,
      own_valid_PNR=own_valid,
      position_PN=state.position_PN + ~done,
      thinking_PN=thinking,
      num_thinking_PN=state.num_thinking_PN + (inside & ~done),
      done_PN=done | _is_any(token_PN, stop_ids),
      token_PNR=jax.lax.dynamic_update_slice_in_dim(
        state.token_PNR, token_PN[..., None], slot, axis=2
      ),
      log_prob_PNR=record(state.log_prob_PNR, log_prob_PN),
      step_logit_PNR=record(state.step_logit_PNR, step_logit_PN),
      last_step_logit_PN=state.last_step_logit_PN,
      forced_PNR=record(state.forced_PNR, forced_PN),
    )

  state = jax.lax.while_loop(unfinished, turn, state)
  return dataclasses.replace(
    state,
    last_step_logit_PN=model.score(state.feature_PND).astype(
      state.last_step_logit_PN.dtype
    ),
  )


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
  state: DecodeState,
  prompt_PS: jax.Array,
  length_P: jax.Array,
  *,
  config: SamplingConfig,
) -> Rollout:
  """Marks, trace scores and lengths of a finished draw."""
  P, N, R = state.token_PNR.shape
  written_PN = jnp.sum(state.own_valid_PNR, axis=-1).astype(jnp.int32)
  joined = _joined(prompt_PS, length_P, state.token_PNR, config.pad_id)
  rows = joined.reshape(P * N, -1)
  row_length = (length_P[:, None] + written_PN).reshape(-1)
  tags = dict(
    think_start_id=config.think_start_id, think_end_id=config.think_end_id
  )
  side = config.score_side
  mask = step_feature_mask(rows, step_ids=config.step_ids, side=side, **tags)
  end_mask = thinking_end_feature_mask(
    rows, length_B=row_length, side=side, **tags
  )
  # Response token r is predicted at position length - 1 + r of its row.
  index_PR = jnp.broadcast_to(
    (length_P[:, None] - 1 + jnp.arange(R)[None])[:, None], (P, N, R)
  )

  def of_response(mask_BT):
    picked = jnp.take_along_axis(mask_BT.reshape(P, N, -1), index_PR, axis=2)
    return picked & (jnp.arange(R) < written_PN[..., None])

  step_mask_PNR = of_response(mask)
  # The last thinking position predicts </think> (a response token) or, where
  # none was written, nothing yet.
  end_PNR = of_response(end_mask)
  fallback_PN = jnp.where(
    jnp.any(end_PNR, axis=-1),
    jnp.sum(jnp.where(end_PNR, state.step_logit_PNR, 0), axis=-1),
    state.last_step_logit_PN,
  )
  score_PN = trace_score(
    state.step_logit_PNR,
    step_mask_PNR,
    aggregator=config.aggregator,
    fallback_logit_B=None if config.released_selection else fallback_PN,
  )
  return Rollout(
    token_PNR=state.token_PNR,
    length_PN=written_PN,
    finished_PN=state.done_PN,
    log_prob_PNR=state.log_prob_PNR,
    forced_PNR=state.forced_PNR,
    step_logit_PNR=state.step_logit_PNR,
    step_mask_PNR=step_mask_PNR,
    score_PN=score_PN,
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
  state = start(
    model,
    prompt_PS,
    length_P,
    num_candidates=candidate_N.shape[0],
    config=config,
    sharder=sharder,
  )
  state = decode_loop(
    model,
    state,
    strategies.row_keys(seed, draw_P, candidate_N),
    prompt_valid(prompt_PS, length_P),
    config=config,
    stop_ids=config.stop_ids,
    sharder=sharder,
  )
  return finish(state, prompt_PS, length_P, config=config)


def continue_from(
  state: DecodeState, best_P: jax.Array, extra_slots: int, pad_id: int
) -> DecodeState:
  """The state of one chosen candidate a problem, with more slots.

  Args:
    state: after a decode loop.
    best_P: int32, the candidate to go on from.
    extra_slots: slots added after the R used so far.
    pad_id: fills them.

  Returns:
    A state of N = 1 whose next slot is R; nothing is done.
  """

  def chosen(x: jax.Array) -> jax.Array:
    index = best_P.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=1)

  def widened(x: jax.Array, fill: Any = 0) -> jax.Array:
    pads = [(0, 0)] * x.ndim
    pads[2] = (0, extra_slots)
    return jnp.pad(chosen(x), pads, constant_values=fill)

  return DecodeState(
    slot=jnp.asarray(state.token_PNR.shape[-1], jnp.int32),
    hidden_PND=chosen(state.hidden_PND),
    feature_PND=chosen(state.feature_PND),
    caches=tuple(c.select(best_P, extra_slots) for c in state.caches),
    own_valid_PNR=widened(state.own_valid_PNR, False),
    position_PN=chosen(state.position_PN),
    thinking_PN=chosen(state.thinking_PN),
    num_thinking_PN=chosen(state.num_thinking_PN),
    done_PN=jnp.zeros_like(chosen(state.done_PN)),
    token_PNR=widened(state.token_PNR, pad_id),
    log_prob_PNR=widened(state.log_prob_PNR),
    step_logit_PNR=widened(state.step_logit_PNR),
    last_step_logit_PN=chosen(state.last_step_logit_PN),
    forced_PNR=widened(state.forced_PNR, False),
  )
