"""The device's side of the engine: slots, prompts, and programs that move them.

Letters: B slots, P rows of the prompt store, n prompts that are prefilled
together, S positions of a prompt, R columns of the own caches, C turns.

On a mesh every device holds B / shards slots and P / shards rows, and a slot
reads a prompt of its own device: `prompt_B` in `Slots` counts from 0 on each.
It is None where the slots of a prompt are an equal group of neighbours.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.model import (
  LayerCache,
  ModelConfig,
  Params,
  ReflectiveModel,
  open_reading,
  read_piece,
)
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import rollout, slots, strategies
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.engine import growth
from metastone_jax.sampling.slots import Records, Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
  """What a candidate starts from, a row a prompt; caches are in the slots.

  Attributes:
    hidden_PD: final hidden state at the last position.
    feature_PD: score feature there.
    length_P: tokens.
    thinking_P: a <think> is open.
    seen_PV: tokens of each; None = nobody asks.
  """

  hidden_PD: jax.Array
  feature_PD: jax.Array
  length_P: jax.Array
  thinking_P: jax.Array
  seen_PV: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
  """n prompts that have been read.

  Attributes:
    prompts: their rows.
    caches: (keys nKhS, values nKSh) of each layer.
    valid_nS: real positions.
  """

  prompts: Prompts
  caches: tuple[tuple[jax.Array, jax.Array], ...]
  valid_nS: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Orders:
  """What each slot is to do before the next chunk.

  Attributes:
    start_B: take a new candidate.
    stop_B: give up the one that is being written.
    row_B: int32, the row of the new candidate's prompt.
    draw_B: int32, global draw index of its problem.
    candidate_B: int32, its number.
    written_B: int32, tokens of it that were read with the prompt.
    limit_B: int32, tokens it may have, these included.
    ends_B: int32, what ends it by itself, an index of `slots.ENDS`.
    budget_B: int32, its thinking budget.
    num_thinking_B: int32, thinking tokens among those that were read.
  """

  start_B: jax.Array
  stop_B: jax.Array
  row_B: jax.Array
  draw_B: jax.Array
  candidate_B: jax.Array
  written_B: jax.Array
  limit_B: jax.Array
  ends_B: jax.Array
  budget_B: jax.Array
  num_thinking_B: jax.Array

  @classmethod
  def none(cls, num_slots: int) -> 'Orders':
    """On the host, to be filled in: every slot goes on with what it does."""
    flags = ('start_B', 'stop_B')
    return cls(
      **{
        field.name: np.zeros(
          num_slots, bool if field.name in flags else np.int32
        )
        for field in dataclasses.fields(cls)
      }
    )


def placement(rank: int) -> tuple[str | None, ...]:
  """Logical axes of an array of `Slots` or `Prompts` of so many axes.

  What a slot or a row has is split by it, and caches by heads too.
  """
  if rank == 4:
    return 'batch', 'kv_heads', None, None
  return ('batch', *(None,) * (rank - 1)) if rank else ()


@dataclasses.dataclass(frozen=True)
class Programs:
  """The engine's functions; every one is pure, `jitted` compiles them.

  Attributes:
    model_config: shapes.
    config: strategy and token ids.
    sharder: mesh, or an empty Sharder().
    turns: C, of a chunk.
    shards: devices that share slots and rows.
    prefill_tokens: longer prompts are read in pieces of so many positions.
    grouped: every prompt has an equal group of neighbouring slots.
  """

  model_config: ModelConfig
  config: SamplingConfig
  sharder: Sharder
  turns: int
  shards: int
  prefill_tokens: int
  grouped: bool = False

  def empty(
    self, num_slots: int, num_prompts: int, positions: int, columns: int
  ) -> tuple[Slots, Prompts]:
    """Free slots, and a prompt store of which nothing is in use."""
    B, P, S, R = num_slots, num_prompts, positions, columns
    config = self.model_config
    K, h, D = config.num_kv_heads, config.head_width, config.width
    dtype = jnp.dtype(config.dtype)
    constrain = self.sharder.constrain
    one = LayerCache(
      jnp.zeros((P, K, h, S), dtype),
      jnp.zeros((P, K, S, h), dtype),
      jnp.zeros((B, K, h, R), dtype),
      jnp.zeros((B, K, R, h), dtype),
    )
    one = jax.tree.map(
      lambda x: constrain(x, 'batch', 'kv_heads', None, None), one
    )
    zero_B = jnp.zeros(B, jnp.int32)

    def seen(rows):
      if self.config.repetition_penalty == 1:
        return None
      return jnp.zeros((rows, config.padded_vocab_size), bool)

    prompts = Prompts(
      jnp.zeros((P, D), dtype),
      jnp.zeros((P, D), dtype),
      jnp.zeros(P, jnp.int32),
      jnp.zeros(P, bool),
      seen(P),
    )
    free = Slots(
      column=jnp.zeros((), jnp.int32),
      caches=(one,) * config.num_layers,
      own_valid_BR=jnp.zeros((B, R), bool),
      # A slot needs a position to read, also a free one.
      prompt_valid_PS=jnp.zeros((P, S), bool).at[:, 0].set(True),
      prompt_B=None if self.grouped else zero_B,
      hidden_BD=jnp.zeros((B, D), dtype),
      feature_BD=jnp.zeros((B, D), dtype),
      key_B=jax.vmap(jax.random.key)(zero_B),
      position_B=zero_B,
      written_B=zero_B,
      limit_B=zero_B,
      ends_B=zero_B,
      budget_B=zero_B,
      thinking_B=zero_B != 0,
      num_thinking_B=zero_B,
      stopped_B=zero_B != 0,
      seen_BV=seen(B),
    )
    return self._placed(free), self._placed(prompts)

  def _placed(self, tree):
    return jax.tree.map(
      lambda x: self.sharder.constrain(x, *placement(x.ndim)), tree
    )

  def prefill(
    self, params: Params, prompt_nS: jax.Array, length_n: jax.Array
  ) -> Prefilled:
    """Reads prompts, right-padded.

    Args:
      params: of the compute dtype.
      prompt_nS: int32.
      length_n: tokens of each, >= 1.
    """
    model = ReflectiveModel.bind(self.model_config, params)
    if prompt_nS.shape[1] > self.prefill_tokens:
      hidden, feature, caches = self._read(model, prompt_nS, length_n)
    else:
      hidden, feature, caches = model.prefill(
        prompt_nS, length_n, slots=0, columns=0, sharder=self.sharder
      )
    valid_nS = rollout.prompt_valid(prompt_nS, length_n)
    return Prefilled(
      Prompts(
        hidden,
        feature,
        length_n.astype(jnp.int32),
        rollout.thinking_open(prompt_nS, valid_nS, self.config),
        rollout.tokens_seen(
          prompt_nS, valid_nS, self.model_config.padded_vocab_size, self.config
        ),
      ),
      tuple((c.prompt_k_PKhS, c.prompt_v_PKSh) for c in caches),
      valid_nS,
    )

  def _read(self, model, prompt_nS, length_n):
    """As `model.prefill`, piece by piece."""
    n, S = prompt_nS.shape
    T = self.prefill_tokens

    def body(carry):
      start, reading = carry
      piece = jax.lax.dynamic_slice_in_dim(prompt_nS, start, T, axis=1)
      reading = read_piece(
        model, reading, piece, start, length_n, sharder=self.sharder
      )
      return start + T, reading

    _, reading = jax.lax.while_loop(
      lambda carry: carry[0] < jnp.max(length_n),
      body,
      (jnp.zeros((), jnp.int32), open_reading(model, n, S, self.sharder)),
    )
    caches = tuple(
      LayerCache.open(k, v, slots=0, columns=0) for k, v in reading.caches
    )
    return reading.hidden_PD, reading.feature_PD, caches

  def admit(
    self,
    slots: Slots,
    prompts: Prompts,
    prefilled: Prefilled,
    row_n: jax.Array,
  ) -> tuple[Slots, Prompts]:
    """Puts prompts into rows of the store; a row outside it is dropped."""

    def put(store, new):
      pads = [(0, 0)] + [
        (0, have - got)
        for have, got in zip(store.shape[1:], new.shape[1:], strict=True)
      ]
      new = jnp.pad(new, pads).astype(store.dtype)
      return store.at[row_n].set(new, mode='drop')

    caches = tuple(
      dataclasses.replace(
        cache,
        prompt_k_PKhS=put(cache.prompt_k_PKhS, k),
        prompt_v_PKSh=put(cache.prompt_v_PKSh, v),
      )
      for cache, (k, v) in zip(slots.caches, prefilled.caches, strict=True)
    )
    slots = dataclasses.replace(
      slots,
      caches=caches,
      prompt_valid_PS=put(slots.prompt_valid_PS, prefilled.valid_nS),
    )
    prompts = jax.tree.map(put, prompts, prefilled.prompts)
    return self._placed(slots), self._placed(prompts)

  def order(
    self, slots: Slots, prompts: Prompts, orders: Orders, seed: jax.Array
  ) -> Slots:
    """Slots as they are after the orders."""
    start, row = orders.start_B, orders.row_B

    def take(new, old):
      return jnp.where(start.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    key_B = strategies.keys(seed, orders.draw_B, orders.candidate_B)
    stop = orders.stop_B & ~start
    prompt_B = slots.prompt_B
    if prompt_B is not None:
      prompt_B = take(row % (len(prompts.length_P) // self.shards), prompt_B)
    return self._placed(
      dataclasses.replace(
        slots,
        own_valid_BR=slots.own_valid_BR & ~start[:, None],
        prompt_B=prompt_B,
        hidden_BD=take(prompts.hidden_PD[row], slots.hidden_BD),
        feature_BD=take(prompts.feature_PD[row], slots.feature_BD),
        key_B=jnp.where(start, key_B, slots.key_B),
        position_B=take(prompts.length_P[row], slots.position_B),
        written_B=take(orders.written_B, slots.written_B),
        limit_B=jnp.where(stop, 0, take(orders.limit_B, slots.limit_B)),
        ends_B=take(orders.ends_B, slots.ends_B),
        budget_B=take(orders.budget_B, slots.budget_B),
        thinking_B=take(prompts.thinking_P[row], slots.thinking_B),
        num_thinking_B=take(orders.num_thinking_B, slots.num_thinking_B),
        stopped_B=slots.stopped_B & ~start,
        seen_BV=jax.tree.map(
          lambda new, old: take(new[row], old), prompts.seen_PV, slots.seen_BV
        ),
      )
    )

  def chunk(
    self, params: Params, slots_in: Slots, least_active: jax.Array
  ) -> tuple[Slots, Records, jax.Array, jax.Array]:
    """Turns of all slots.

    Returns:
      The slots and the records; z at each slot's last position, (B,); and
      feature_BCD, see `slots.decode_chunk`.
    """
    model = ReflectiveModel.bind(self.model_config, params)
    after, records, feature_BCD = slots.decode_chunk(
      model,
      slots_in,
      turns=self.turns,
      config=self.config,
      sharder=self.sharder,
      least_active=least_active,
    )
    last_B = model.score(after.feature_BD[:, None])[:, 0]
    return self._placed(after), records, last_B, feature_BCD

  def score_at(
    self,
    params: Params,
    feature_BCD: jax.Array,
    slot: jax.Array,
    turn: jax.Array,
  ) -> jax.Array:
    """z of one feature of a chunk, a scalar."""
    model = ReflectiveModel.bind(self.model_config, params)
    return model.score(feature_BCD[slot, turn][None, None])[0, 0]

  def widen(self, slots: Slots, columns: int) -> Slots:
    """More columns for every slot."""
    return self._placed(growth.widen(slots, columns))

  def lengthen(self, slots: Slots, positions: int) -> Slots:
    """Longer rows in the prompt store."""
    return self._placed(growth.lengthen(slots, positions))

  def add_rows(
    self, slots: Slots, prompts: Prompts, num_prompts: int
  ) -> tuple[Slots, Prompts]:
    """More rows in the prompt store, equally many on each device."""
    grown = growth.add_rows(slots, prompts, num_prompts, self.shards)
    return self._placed(grown[0]), self._placed(grown[1])


def _options(sharder: Sharder) -> dict:
  """Compiler options of a chunk."""
  device = jax.devices()[0]
  if sharder.mesh is not None:
    device = sharder.mesh.devices.flat[0]
  if device.platform == 'gpu':
    # XLA joins products of one input (gate and up; queries, keys, values) to
    # one, for which it copies their weights side by side, here in every turn.
    return {'xla_gpu_dot_merger_threshold_mb': 0}
  return {}


@functools.cache
def jitted(programs: Programs) -> dict:
  """Compiled once a process; slots and prompts are donated."""
  return {
    'empty': jax.jit(programs.empty, static_argnums=(0, 1, 2, 3)),
    'prefill': jax.jit(programs.prefill),
    'admit': jax.jit(programs.admit, donate_argnums=(0, 1)),
    'order': jax.jit(programs.order, donate_argnums=(0,)),
    'chunk': jax.jit(
      programs.chunk,
      donate_argnums=(1,),
      compiler_options=_options(programs.sharder),
    ),
    'score_at': jax.jit(programs.score_at),
    # Nothing to donate: every result is larger than what it comes from.
    'widen': jax.jit(programs.widen, static_argnums=(1,)),
    'lengthen': jax.jit(programs.lengthen, static_argnums=(1,)),
    'add_rows': jax.jit(programs.add_rows, static_argnums=(2,)),
  }
