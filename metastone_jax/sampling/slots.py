"""Slots: what decodes, one token each a turn, and a chunk of such turns.

A slot is one candidate that is being written. All slots write the same COLUMN
of their own caches in a turn, whatever token of their response it is; which
columns a slot may read is a mask. So writing is one slice update, a slot that
has ended needs no care, and a new candidate takes over a slot by clearing its
mask. Columns are used round and round: there must be as many as the longest
response that is being written.

The score head reads the features of a chunk's step marks together when the
chunk ends (SPEC 1: of the position that predicts the mark): its weights are
read once a chunk, and only marks cost arithmetic.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from metastone_jax.model import LayerCache, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import strategies
from metastone_jax.sampling.config import SamplingConfig

# Turns of a chunk, at most: a compromise between scoring seldom and keeping few
# features.
TURNS = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """B slots over P prompts, between two turns.

  Attributes:
    column: int32 scalar, the column of the own caches written next.
    caches: one LayerCache a layer.
    own_valid_BR: columns that a slot may read.
    prompt_valid_PS: real positions of the prompts.
    prompt_B: int32, the prompt of each slot; None = equal groups of neighbours.
    hidden_BD: final hidden state that predicts the next token.
    feature_BD: score feature at the same position.
    key_B: key of each slot's candidate, see `strategies.row_keys`.
    position_B: position of the token drawn next, prompt included.
    written_B: tokens of the response so far.
    limit_B: tokens that it may have; 0 = the slot is free.
    trace_B: it ends with its thinking, by </think>, not by a stop id.
    budget_B: thinking tokens after which </think> is forced.
    thinking_B: a <think> is open.
    num_thinking_B: thinking tokens so far.
    stopped_B: it ended by itself: a stop id (or </think>) was written.
    seen_BV: tokens of the prompt and the response so far; None = nobody asks.
  """

  column: jax.Array
  caches: tuple[LayerCache, ...]
  own_valid_BR: jax.Array
  prompt_valid_PS: jax.Array
  prompt_B: jax.Array | None
  hidden_BD: jax.Array
  feature_BD: jax.Array
  key_B: jax.Array
  position_B: jax.Array
  written_B: jax.Array
  limit_B: jax.Array
  trace_B: jax.Array
  budget_B: jax.Array
  thinking_B: jax.Array
  num_thinking_B: jax.Array
  stopped_B: jax.Array
  seen_BV: jax.Array | None = None

  @property
  def active(self) -> jax.Array:
    """bool (B,), slots that will draw a token in the next turn."""
    return ~self.stopped_B & (self.written_B < self.limit_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Records:
  """What C turns have written; pad and zeros where a slot drew nothing.

  Attributes:
    written_BC: the slot drew a token in this turn.
    token_BC: int32.
    log_prob_BC: its log-prob at the rollout temperature, unfiltered.
    forced_BC: the token was forced by a thinking budget, not drawn.
    step_logit_BC: z (dropout off) at the position that predicts the token,
      where the token is a step mark or </think>.
  """

  written_BC: jax.Array
  token_BC: jax.Array
  log_prob_BC: jax.Array
  forced_BC: jax.Array
  step_logit_BC: jax.Array


def is_any(token: jax.Array, ids: tuple[int, ...]) -> jax.Array:
  """bool: the token is one of these."""
  return functools.reduce(
    jnp.logical_or, [token == i for i in ids], jnp.zeros(token.shape, bool)
  )


def _turn(
  model: ReflectiveModel,
  slots: Slots,
  *,
  config: SamplingConfig,
  layers,
  sharder: Sharder,
):
  """One token of every active slot; the slots and (token, log_prob, forced)."""
  active = slots.active
  logits_BV = model.logits(slots.hidden_BD)
  scaled_BV = logits_BV / (config.temperature or 1.0)
  processed_BV = scaled_BV
  for processor in config.processors:
    processed_BV = processor(processed_BV, slots.seen_BV)
  token_B = strategies.draw_tokens(
    processed_BV,
    slots.key_B,
    slots.written_B,
    greedy=config.temperature == 0,
  )
  forced_B = (
    slots.thinking_B
    & (slots.num_thinking_B >= slots.budget_B)
    & (token_B != config.think_end_id)
    & active
  )
  token_B = jnp.where(forced_B, config.think_end_id, token_B)
  log_prob_B = jnp.where(active, strategies.log_prob_of(scaled_BV, token_B), 0)
  token_B = jnp.where(active, token_B, config.pad_id)
  seen_BV = slots.seen_BV
  if seen_BV is not None:
    drawn_BV = token_B[:, None] == jnp.arange(seen_BV.shape[1])
    seen_BV = seen_BV | (drawn_BV & active[:, None])
  # The tags themselves are no thinking tokens.
  closes_B = token_B == config.think_end_id
  inside_B = slots.thinking_B & ~closes_B
  own_valid_BR = jax.lax.dynamic_update_slice_in_dim(
    slots.own_valid_BR, active[:, None], slots.column, axis=1
  )
  hidden, feature, caches = model.decode(
    token_B,
    slots.position_B,
    slots.caches,
    slots.column,
    slots.prompt_valid_PS,
    # Nobody looks at what a slot that has ended gets, so it reads nothing.
    own_valid_BR & active[:, None],
    slots.prompt_B,
    layers=layers,
    sharder=sharder,
  )

  def unless_ended(new, old):
    return jnp.where(active.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

  slots = dataclasses.replace(
    slots,
    column=(slots.column + 1) % own_valid_BR.shape[1],
    caches=caches,
    own_valid_BR=own_valid_BR,
    hidden_BD=unless_ended(hidden, slots.hidden_BD),
    feature_BD=unless_ended(feature, slots.feature_BD),
    position_B=slots.position_B + active,
    written_B=slots.written_B + active,
    thinking_B=unless_ended(
      inside_B | (token_B == config.think_start_id), slots.thinking_B
    ),
    num_thinking_B=slots.num_thinking_B + (inside_B & active),
    stopped_B=slots.stopped_B
    | active
    & jnp.where(slots.trace_B, closes_B, is_any(token_B, config.stop_ids)),
    seen_BV=seen_BV,
  )
  return slots, (active, token_B, log_prob_B, forced_B)


def decode_chunk(
  model: ReflectiveModel,
  slots: Slots,
  *,
  turns: int,
  config: SamplingConfig,
  sharder: Sharder,
  least_active: jax.Array | int = 0,
) -> tuple[Slots, Records, jax.Array]:
  """Up to `turns` turns, then the scores of the marks that they wrote.

  Args:
    model: with parameters in the compute dtype.
    slots: where to go on.
    turns: C, static.
    config: strategy and token ids; lengths and budgets are the slots' own.
    sharder: mesh, or an empty Sharder().
    least_active: the chunk ends when no more slots than this are active.

  Returns:
    The slots after it; what was written, C columns; and feature_BCD, the score
    feature that predicts each token.
  """
  B, D = slots.hidden_BD.shape
  layers = model.layers()
  acc = jnp.promote_types(slots.hidden_BD.dtype, jnp.float32)
  rows = (
    jnp.zeros((turns, B), bool),
    jnp.full((turns, B), config.pad_id, jnp.int32),
    jnp.zeros((turns, B), acc),
    jnp.zeros((turns, B), bool),
    jnp.zeros((turns, B, D), slots.feature_BD.dtype),
  )

  def goes_on(carry):
    turn, slots, _ = carry
    active = jnp.sum(slots.active, dtype=jnp.int32)
    return (turn < turns) & (active > least_active)

  def body(carry):
    turn, slots, rows = carry
    feature_BD = slots.feature_BD
    slots, new = _turn(
      model,
      slots,
      config=config,
      layers=layers,
      sharder=sharder,
    )
    rows = tuple(
      jax.lax.dynamic_update_index_in_dim(row, x.astype(row.dtype), turn, 0)
      for row, x in zip(rows, (*new, feature_BD), strict=True)
    )
    return turn + 1, slots, rows

  _, slots, rows = jax.lax.while_loop(
    goes_on, body, (jnp.zeros((), jnp.int32), slots, rows)
  )
  written, token, log_prob, forced, feature = (
    jnp.swapaxes(row, 0, 1) for row in rows
  )
  mark = written & is_any(token, (*config.step_ids, config.think_end_id))
  step_logit, _ = model.step_scores(feature, mark, sharder=sharder)
  records = Records(written, token, log_prob, forced, step_logit.astype(acc))
  return slots, records, feature


def decode_loop(
  model: ReflectiveModel,
  slots: Slots,
  *,
  turns: int,
  config: SamplingConfig,
  sharder: Sharder,
) -> tuple[Slots, Records]:
  """Chunks until no slot is active, at most `turns` turns: one program.

  Args:
    model: as for `decode_chunk`, and so on.
    slots: where to go on.
    turns: static.
    config: as for `decode_chunk`.
    sharder: as for `decode_chunk`.

  Returns:
    The slots and all records, `turns` columns.
  """
  chunk = min(TURNS, turns)
  count = -(-turns // chunk)
  one = functools.partial(
    decode_chunk,
    model,
    turns=chunk,
    config=config,
    sharder=sharder,
  )
  _, shapes, _ = jax.eval_shape(one, slots)
  # Turns that never come have written nothing.
  records = jax.tree.map(
    lambda x: jnp.zeros((x.shape[0], count * chunk), x.dtype), shapes
  )
  records = dataclasses.replace(
    records, token_BC=records.token_BC + config.pad_id
  )

  def goes_on(carry):
    index, slots, _ = carry
    return (index < count) & jnp.any(slots.active)

  def body(carry):
    index, slots, records = carry
    slots, new, _ = one(slots)
    records = jax.tree.map(
      lambda all_, x: jax.lax.dynamic_update_slice_in_dim(
        all_, x, index * chunk, axis=1
      ),
      records,
      new,
    )
    return index + 1, slots, records

  _, slots, records = jax.lax.while_loop(
    goes_on, body, (jnp.zeros((), jnp.int32), slots, records)
  )
  return slots, jax.tree.map(lambda x: x[:, :turns], records)
