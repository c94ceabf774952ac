"""Many problems x k candidates on a fixed set of slots, refilled as they end.

Decoding runs in compiled chunks of turns; between chunks candidates that have
ended are handed out and their slots go to the next ones in the queue. Programs
are compiled for shapes, not for work: slots and chunks are fixed, prompts and
caches grow by doubling.

A candidate's tokens depend on (seed, draw, candidate, position) and its prompt
alone: not on the slot, on what else is being written, or on when it began.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, Params
from metastone_jax.parallel import Sharder
from metastone_jax.sampling.config import SamplingConfig
from metastone_jax.sampling.engine import programs as programs_lib
from metastone_jax.sampling.engine.candidates import (
  LENGTH,
  PRUNED,
  STOP,
  Candidate,
  Draft,
  Request,
)
from metastone_jax.sampling.slots import ENDS


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Shapes of the engine.

  Attributes:
    num_slots: candidates that are written at a time.
    num_prompts: problems that they may belong to; None = as many as slots. A
      slot waits where all are taken, so this is for caches of long prompts.
    turns: tokens of a chunk.
    refill: share of the active slots that must have ended before a chunk stops
      early for the queue.
    context: tokens of prompt and response together; None = no limit.
  """

  num_slots: int = 32
  num_prompts: int | None = None
  turns: int = 32
  refill: float = 0.125
  context: int | None = None

  def __post_init__(self):
    for name, ok, rule in (
      ('num_slots', self.num_slots >= 1, 'at least 1'),
      (
        'num_prompts',
        self.num_prompts is None or self.num_prompts >= 1,
        'at least 1',
      ),
      ('turns', self.turns >= 1, 'at least 1'),
      ('refill', 0 < self.refill <= 1, 'in (0, 1]'),
    ):
      if not ok:
        raise UserError(
          f'engine.{name} must be {rule}: got {getattr(self, name)}'
        )


def bucket(size: int, least: int = 16) -> int:
  """The smallest power of two that holds it."""
  return max(least, 1 << max(size - 1, 0).bit_length())


@dataclasses.dataclass
class _Problem:
  """A request whose prompt is in the store."""

  request: Request
  row: int
  waiting: collections.deque
  live: int = 0


class Engine:
  """Serves requests with one set of weights.

  Args:
    params: of the compute dtype and laid out for decoding (see
      `rollout.decode_params`).
    seed: integer; with draw index, candidate and position the randomness.
    model_config: shapes.
    config: strategy, lengths, ids.
    engine_config: shapes of the engine.
    sharder: mesh, or an empty Sharder().

  Attributes:
    model_config: as given.
    config: as given.
    context: tokens of prompt and response together; None = no limit.
    turns: made so far, each one token of every active slot.
  """

  def __init__(
    self,
    params: Params,
    seed: int,
    *,
    model_config: ModelConfig,
    config: SamplingConfig,
    engine_config: EngineConfig,
    sharder: Sharder,
  ):
    self._params, self._seed = params, np.int32(seed)
    self.model_config, self.config = model_config, config
    self.context = engine_config.context
    self._shape = engine_config
    B = engine_config.num_slots
    P = engine_config.num_prompts or B
    self._shards = 1
    if sharder.mesh is not None:
      split = sharder.mesh_axes(('batch',), (B,))[0]
      self._shards = int(np.prod([sharder.mesh.shape[x] for x in split] or [1]))
    if P % self._shards:
      raise UserError(
        f'engine.num_prompts={P} must be a multiple of the {self._shards} '
        'devices that share the slots'
      )
    self._num_slots, self._num_prompts = B, P
    self._run = programs_lib.jitted(
      programs_lib.Programs(
        model_config, config, sharder, engine_config.turns, self._shards
      )
    )
    self._slots = self._prompts = None
    self._drafts: list[Draft | None] = [None] * B
    self._columns = self._positions = 0
    self.turns = 0

  def run(
    self,
    requests: Iterable[Request] | collections.deque[Request],
    prune: Callable[[list[Draft]], list[Draft]] | None = None,
  ) -> Iterator[Candidate]:
    """Candidates in the order in which they end.

    Args:
      requests: served in this order. Of a deque they are taken one by one, so
        whoever iterates may add more.
      prune: called between chunks with the candidates that are being written;
        those that it returns are given up.

    Raises:
      UserError: a request that cannot be served, before anything is drawn; or
        log-probs that are no numbers.
    """
    queue = requests
    if not isinstance(queue, collections.deque):
      queue = collections.deque(requests)
    for request in queue:
      request.check(self.config, self._shape.context)
    if not queue:
      return
    self._open(queue)
    # By shard: free slots, free rows, problems with candidates to start.
    slots = np.arange(self._num_slots).reshape(self._shards, -1)
    rows = np.arange(self._num_prompts).reshape(self._shards, -1)
    self._free = [collections.deque(x.tolist()) for x in slots]
    self._rows = [collections.deque(x.tolist()) for x in rows]
    self._waiting = [collections.deque() for _ in range(self._shards)]
    self._problems: dict[int, _Problem] = {}
    self._drafts = [None] * self._num_slots
    stopped: list[int] = []
    while True:
      self._start(queue, stopped)
      live = sum(draft is not None for draft in self._drafts)
      if not live:
        return
      more = bool(queue) or any(self._waiting)
      enough = max(1, int(self._shape.refill * live)) if more else live
      self._make_room()
      yield from self._chunk(live - enough)
      stopped = []
      if prune is not None:
        drafts = [draft for draft in self._drafts if draft is not None]
        given_up = {id(draft) for draft in prune(drafts)} if drafts else set()
        for slot, draft in enumerate(self._drafts):
          if draft is not None and id(draft) in given_up:
            stopped.append(slot)
            yield self._end(slot, PRUNED)

  def _open(self, requests: Iterable[Request]) -> None:
    """Empty slots, as wide as the first chunk needs."""
    self._positions = bucket(max(len(r.read) for r in requests))
    self._columns = bucket(self._shape.turns)
    self._slots, self._prompts = self._run['empty'](
      self._num_slots, self._num_prompts, self._positions, self._columns
    )

  def _start(self, queue, stopped: list[int]) -> None:
    """Gives free slots the next candidates; reads new prompts for them."""
    B = self._num_slots
    orders = {
      'start_B': np.zeros(B, bool),
      'stop_B': np.zeros(B, bool),
      **{
        name: np.zeros(B, np.int32)
        for name in (
          'row_B',
          'draw_B',
          'candidate_B',
          'written_B',
          'limit_B',
          'ends_B',
          'budget_B',
          'num_thinking_B',
        )
      },
    }
    orders['stop_B'][stopped] = True
    opened: list[_Problem] = []
    while True:
      for shard in range(self._shards):
        self._fill(shard, orders)
      able = [
        shard
        for shard in range(self._shards)
        if self._free[shard] and self._rows[shard]
      ]
      if not queue or not able:
        break
      shard = max(able, key=lambda shard: len(self._free[shard]))
      request = queue.popleft()
      request.check(self.config, self._shape.context)
      problem = _Problem(
        request,
        self._rows[shard].popleft(),
        collections.deque(request.candidates),
      )
      self._problems[problem.row] = problem
      self._waiting[shard].append(problem)
      opened.append(problem)
    self._prefill(opened)
    if orders['start_B'].any() or stopped:
      self._slots = self._run['order'](
        self._slots, self._prompts, programs_lib.Orders(**orders), self._seed
      )

  def _fill(self, shard: int, orders: dict) -> None:
    """Candidates of the shard's problems into its free slots."""
    free, waiting = self._free[shard], self._waiting[shard]
    while free and waiting:
      problem = waiting[0]
      request, number = problem.request, problem.waiting.popleft()
      if not problem.waiting:
        waiting.popleft()
      slot = free.popleft()
      problem.live += 1
      self._drafts[slot] = Draft(request, number, problem.row)
      for name, value in (
        ('start_B', True),
        ('row_B', problem.row),
        ('draw_B', request.draw),
        ('candidate_B', number),
        ('written_B', len(request.written)),
        ('limit_B', request.limit(self.config)),
        ('ends_B', ENDS.index(request.ends)),
        ('budget_B', request.budget(self.config)),
        ('num_thinking_B', request.num_thinking(self.config)),
      ):
        orders[name][slot] = value

  def _prefill(self, problems: list[_Problem]) -> None:
    """Reads prompts into the store, as many at a time as shapes exist for."""
    most = bucket(self._num_prompts, 1)
    for first in range(0, len(problems), most):
      part = problems[first : first + most]
      n = bucket(len(part), 1)
      S = bucket(max(len(p.request.read) for p in part))
      if S > self._positions:
        self._positions = S
        self._slots = self._run['lengthen'](self._slots, S)
      prompt_nS = np.full((n, S), self.config.pad_id, np.int32)
      length_n = np.ones(n, np.int32)
      row_n = np.full(n, self._num_prompts, np.int32)  # dropped
      for i, problem in enumerate(part):
        prompt = problem.request.read
        prompt_nS[i, : len(prompt)] = prompt
        length_n[i], row_n[i] = len(prompt), problem.row
      read = self._run['prefill'](self._params, prompt_nS, length_n)
      self._slots, self._prompts = self._run['admit'](
        self._slots, self._prompts, read, row_n
      )

  def _make_room(self) -> None:
    """Columns for the next chunk: no slot may come round to its own first."""
    need = max(
      min(self._left(draft), self._shape.turns) + draft.drawn
      for draft in self._drafts
      if draft is not None
    )
    if need > self._columns:
      self._columns = bucket(need)
      self._slots = self._run['widen'](self._slots, self._columns)

  def _left(self, draft: Draft) -> int:
    """Tokens that a candidate may still write."""
    request = draft.request
    return request.limit(self.config) - len(request.written) - draft.drawn

  def _chunk(self, least_active: int) -> Iterator[Candidate]:
    """Turns of all slots, and the candidates that ended in them."""
    self._slots, records, last_B = self._run['chunk'](
      self._params, self._slots, np.int32(least_active)
    )
    stopped_B = self._slots.stopped_B
    records, last_B, stopped_B = jax.device_get((records, last_B, stopped_B))
    self.turns += int(records.written_BC.any(0).sum())
    for slot, draft in enumerate(self._drafts):
      if draft is None:
        continue
      count = int(records.written_BC[slot].sum())
      part = tuple(
        x[slot, :count]
        for x in (
          records.token_BC,
          records.log_prob_BC,
          records.forced_BC,
          records.step_logit_BC,
        )
      )
      if not np.isfinite(part[1]).all():
        raise UserError(
          f'the log-prob of a token of draw {draft.request.draw}, candidate '
          f'{draft.number} is {part[1][~np.isfinite(part[1])][0]}: the weights '
          'hold NaN or infinity; load another checkpoint'
        )
      draft.parts.append(part)
      draft.drawn += count
      draft.last_logit = float(last_B[slot])
      if stopped_B[slot]:
        yield self._end(slot, STOP)
      elif not self._left(draft):
        yield self._end(slot, LENGTH)

  def _end(self, slot: int, reason: str) -> Candidate:
    """Hands a candidate out and frees what it had."""
    draft, self._drafts[slot] = self._drafts[slot], None
    shard = slot // (self._num_slots // self._shards)
    self._free[shard].append(slot)
    problem = self._problems[draft.row]
    problem.live -= 1
    if not problem.live and not problem.waiting:
      del self._problems[draft.row]
      self._rows[shard].append(draft.row)
    return draft.finish(reason, self.config)
