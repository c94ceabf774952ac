"""Best of k by the model's own score head, as one compiled program (SPEC 5).

- 'complete' (the released code): k complete responses, argmax of the score of
  their thinking.
- 'trace' (the paper): k thinking traces, the best is chosen, and the answer is
  written ONCE, from its cache.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, Params, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import rollout as rollout_lib
from metastone_jax.sampling import slots as slots_lib
from metastone_jax.sampling import strategies
from metastone_jax.sampling.config import SamplingConfig, check_num_candidates

FORMS = ('complete', 'trace')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BestOfK:
  """The candidates and the winner of each problem.

  Attributes:
    candidates: all k candidates ('trace': thinking only, ended by </think>).
    best_P: index of the winner.
    answer_PA: int32 response of the winner, padded, thinking included.
    answer_length_P: its tokens.
    answer_finished_P: it ended by the end token.
  """

  candidates: rollout_lib.Rollout
  best_P: jax.Array
  answer_PA: jax.Array
  answer_length_P: jax.Array
  answer_finished_P: jax.Array


def select_best(
  score_PN: jax.Array, finished_PN: jax.Array, *, released: bool = False
) -> jax.Array:
  """The winner of each problem: int32 (P,).

  The highest score among finished candidates; among all where none finished,
  or always with `released` (SPEC 5). Ties go to the first.
  """
  if not released:
    score_PN = jnp.where(finished_PN, score_PN + 2.0, score_PN)
  return jnp.argmax(score_PN, axis=1).astype(jnp.int32)


def best_of_k(
  params: Params,
  prompt_PS: jax.Array,
  length_P: jax.Array,
  seed: jax.Array,
  draw_P: jax.Array,
  *,
  k: int,
  model_config: ModelConfig,
  config: SamplingConfig,
  form: str = 'complete',
  answer_length: int = 0,
  sharder: Sharder,
) -> BestOfK:
  """Draws k candidates a problem, scores them in the loop, picks the best.

  A pure function; jit it with everything after `draw_P` static.

  Args:
    params: parameters of the model.
    prompt_PS: right-padded int32 prompts.
    length_P: tokens of each prompt.
    seed: integer scalar.
    draw_P: global draw index of each problem.
    k: candidates a problem.
    model_config: shapes.
    config: strategy, lengths, ids. In form 'trace' the thinking has
      max_response_length tokens, its last one a forced </think> if need be.
    form: 'complete' or 'trace'.
    answer_length: tokens of the answer in form 'trace', at least 1.
    sharder: mesh, or an empty Sharder().

  Raises:
    UserError: k < 1, an unknown form, or 'trace' without an answer length.
  """
  check_num_candidates(k)
  if form not in FORMS:
    raise UserError(f'form={form!r}; use one of {", ".join(FORMS)}')
  candidate_N = jnp.arange(k, dtype=jnp.int32)
  if form == 'complete':
    candidates = rollout_lib.sample(
      params,
      prompt_PS,
      length_P,
      seed,
      draw_P,
      candidate_N,
      model_config=model_config,
      config=config,
      sharder=sharder,
    )
    best_P = select_best(
      candidates.score_PN,
      candidates.finished_PN,
      released=config.released_selection,
    )

    def winner(x):
      return jnp.take_along_axis(
        x, best_P.reshape((-1,) + (1,) * (x.ndim - 1)), axis=1
      )[:, 0]

    return BestOfK(
      candidates,
      best_P,
      winner(candidates.token_PNR),
      winner(candidates.length_PN),
      winner(candidates.finished_PN),
    )
  if answer_length < 1:
    raise UserError(
      f"form 'trace' writes the answer apart: answer_length={answer_length} "
      'must be at least 1 token'
    )
  budget = config.thinking_budget
  if budget is None:
    # The last slot of a trace is </think>, drawn or forced.
    if config.max_response_length < 2:
      raise UserError("form 'trace' needs sampling.max_response_length >= 2")
    budget = config.max_response_length - 1
  config = dataclasses.replace(config, thinking_budget=budget)
  model = ReflectiveModel.bind(
    model_config, rollout_lib.decode_params(params, model_config)
  )
  slots = rollout_lib.start(
    model,
    prompt_PS,
    length_P,
    strategies.row_keys(seed, draw_P, candidate_N),
    config=config,
    sharder=sharder,
    trace=True,
  )
  slots, records = slots_lib.decode_loop(
    model,
    slots,
    turns=config.max_response_length,
    config=config,
    sharder=sharder,
  )
  candidates = rollout_lib.finish(
    model, slots, records, prompt_PS, length_P, config=config
  )
  # A forced </think> ends a trace, but it is no finished thought.
  natural_PN = candidates.finished_PN & ~jnp.any(candidates.forced_PNR, axis=-1)
  best_P = select_best(
    candidates.score_PN, natural_PN, released=config.released_selection
  )
  answer, written = slots_lib.decode_loop(
    model,
    rollout_lib.continue_from(
      slots, jnp.arange(len(best_P)) * k + best_P, answer_length
    ),
    turns=answer_length,
    config=config,
    sharder=sharder,
  )
  # The answer follows the trace without a gap.
  R = config.max_response_length
  pick_P = best_P[:, None]
  thought_P1 = jnp.take_along_axis(candidates.length_PN, pick_P, axis=1)
  trace_PR = jnp.take_along_axis(
    candidates.token_PNR, pick_P[..., None], axis=1
  )[:, 0]
  place_A = jnp.arange(R + answer_length)[None]
  index_PA = jnp.where(place_A < thought_P1, place_A, place_A - thought_P1 + R)
  token_PA = jnp.take_along_axis(
    jnp.concatenate([trace_PR, written.token_BC], axis=1),
    jnp.minimum(index_PA, R + answer_length - 1),
    axis=1,
  )
  total_P = answer.written_B
  token_PA = jnp.where(place_A < total_P[:, None], token_PA, config.pad_id)
  return BestOfK(candidates, best_P, token_PA, total_P, answer.stopped_B)
