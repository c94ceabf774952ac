"""Many problems x k candidates on a fixed set of slots, refilled as they end.

Decoding runs in compiled chunks of turns; between chunks candidates that have
ended are handed out and their slots go to the next ones in the queue. Programs
are compiled for shapes, not for work: slots and chunks are fixed, the prompt
store and the caches grow by doubling.

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
  refuse_nan,
)
from metastone_jax.sampling.engine.config import EngineConfig, bucket
from metastone_jax.sampling.slots import ENDS


@dataclasses.dataclass
class _Problem:
  """A request whose prompt is in the store."""

  request: Request
  row: int
  waiting: collections.deque
  live: int = 0


# Candidates that are being written, those that just ended -> those to give up.
Prune = Callable[[list[Draft], list[Candidate]], list[Draft]]


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
    P = engine_config.num_prompts or B // (engine_config.group or 1)  # at most
    self._shards = 1
    if sharder.mesh is not None:
      split = sharder.mesh_axes(('batch',), (B,))[0]
      self._shards = int(np.prod([sharder.mesh.shape[x] for x in split] or [1]))
    if P % self._shards:
      raise UserError(
        f'engine.num_prompts={P} must be a multiple of the {self._shards} '
        'devices that share the slots'
      )
    self._num_slots, self._num_prompts, self._most_prompts = B, P, P
    # Where a problem and its slots are chosen from together.
    self._pools = P if engine_config.group else self._shards
    self._run = programs_lib.jitted(
      programs_lib.Programs(
        model_config,
        config,
        sharder,
        engine_config.turns,
        self._shards,
        engine_config.prefill_tokens,
        bool(engine_config.group),
      )
    )
    self._slots = self._prompts = None
    self._columns = self._positions = 0
    self.turns = 0
    self._empty()

  def _empty(self) -> None:
    """Nothing is being written and nobody waits."""
    self._drafts: list[Draft | None] = [None] * self._num_slots
    self._waiting = [collections.deque() for _ in range(self._pools)]
    self._problems: dict[int, _Problem] = {}
    self._given_up: set[int] = set()

  def run(
    self,
    requests: Iterable[Request] | collections.deque[Request],
    prune: Prune | None = None,
    stop: Callable[[Draft], int | None] | None = None,
  ) -> Iterator[Candidate]:
    """Candidates in the order in which they end.

    Args:
      requests: served in this order. Of a deque they are taken one by one, so
        whoever iterates may add more.
      prune: called between chunks with the candidates that are being written
        and those that ended in the last one; which of the former to give up.
      stop: called with a candidate that has new tokens; how many of its tokens
        to keep if it ends there, else None. See `StopStrings`.

    Raises:
      UserError: a request that cannot be served, before anything is drawn; or
        log-probs that are no numbers.
    """
    queue = requests
    if not isinstance(queue, collections.deque):
      queue = collections.deque(requests)
    for request in queue:
      self._check(request)
    self._empty()
    if not queue:
      return
    self._open(queue)
    # By pool: free slots, free rows, problems with candidates to start.
    slots = np.arange(self._num_slots).reshape(self._pools, -1)
    self._free = [collections.deque(x.tolist()) for x in slots]
    self._rows = [
      collections.deque(range(pool, self._num_prompts, self._pools))
      for pool in range(self._pools)
    ]
    stopped: list[int] = []
    while True:
      self._start(queue, stopped)
      live = sum(draft is not None for draft in self._drafts)
      if not live:
        return
      more = bool(queue) or any(self._waiting)
      enough = max(1, int(self._shape.refill * live)) if more else live
      self._make_room()
      # Slots whose candidate the host ends; the device does not know yet.
      stopped = []
      ended = []
      for candidate in self._chunk(live - enough, stop, stopped):
        ended.append(candidate)
        yield candidate
      drafts = [draft for draft in self._drafts if draft is not None]
      pruned = {id(draft) for draft in prune(drafts, ended)} if prune else set()
      for slot, draft in enumerate(self._drafts):
        if draft is None:
          continue
        if id(draft) in pruned or draft.request.draw in self._given_up:
          stopped.append(slot)
          yield self._end(slot, PRUNED)

  def _check(self, request: Request) -> None:
    """Raises UserError where it cannot be served."""
    request.check(self.config, self.context)
    V = self.model_config.vocab_size
    if min(request.read) < 0 or max(request.read) >= V:
      raise UserError(
        f'request with draw index {request.draw}: its token ids must lie in '
        f'[0, {V}), the vocabulary of the model; got '
        f'{min(request.read)} to {max(request.read)}'
      )

  def give_up(self, draw: int) -> None:
    """Called while iterating `run`: this problem needs no more candidates.

    Those that are being written end as pruned after the present chunk; those
    that wait are dropped.

    Args:
      draw: draw index of the problem.
    """
    self._given_up.add(draw)

  def pending(self, draw: int) -> bool:
    """Whether `run` will hand out more candidates of a problem it has begun.

    Args:
      draw: draw index of the problem.
    """
    drafts = [d.request.draw for d in self._drafts if d is not None]
    waiting = [p.request.draw for pool in self._waiting for p in pool]
    return draw in drafts or (draw not in self._given_up and draw in waiting)

  def _open(self, requests: collections.deque[Request]) -> None:
    """Empty slots, as wide as the first chunk needs."""
    if self._shape.num_prompts is None and not self._shape.group:
      # Those that fill the slots at first; candidates that are longer than the
      # others keep as many again, often.
      candidates = np.cumsum([len(r.candidates) for r in requests])
      need = 1 + np.searchsorted(candidates, self._num_slots)
      need = min(2 * int(need), len(requests))
      self._num_prompts = min(
        bucket(-(-need // self._shards), 1) * self._shards, self._most_prompts
      )
    longest = max(len(r.read) for r in requests)
    self._positions = bucket(max(longest, self._shape.positions))
    self._columns = self._shape.columns or bucket(self._shape.turns)
    self._slots = self._prompts = None  # before there are two of them
    self._slots, self._prompts = self._run['empty'](
      self._num_slots, self._num_prompts, self._positions, self._columns
    )

  def _start(self, queue, stopped: list[int]) -> None:
    """Gives free slots the next candidates; reads new prompts for them."""
    orders = programs_lib.Orders.none(self._num_slots)
    orders.stop_B[stopped] = True
    opened: list[_Problem] = []
    while True:
      for pool in range(self._pools):
        self._fill(pool, orders)
      able = [
        pool
        for pool in range(self._pools)
        if self._free[pool] and self._rows[pool]
      ]
      if not queue:
        break
      if not able:
        if any(self._free) and self._num_prompts < self._most_prompts:
          self._add_rows()
          continue
        break
      request = queue.popleft()
      if request.draw in self._given_up:
        continue
      self._check(request)
      able.sort(key=lambda pool: -len(self._free[pool]))
      parts = 1
      if not self._shape.group:
        # Devices for which there is no other problem take a part of this one.
        parts = min(len(able) - len(queue), len(request.candidates))
      for pool, numbers in zip(
        able, np.array_split(request.candidates, max(1, parts)), strict=False
      ):
        problem = _Problem(
          request,
          self._rows[pool].popleft(),
          collections.deque(numbers.tolist()),
        )
        self._problems[problem.row] = problem
        self._waiting[pool].append(problem)
        opened.append(problem)
    self._prefill(opened)
    orders.row_B[:] = self._place(orders.row_B)
    if orders.start_B.any() or stopped:
      self._slots = self._run['order'](
        self._slots, self._prompts, orders, self._seed
      )

  def _fill(self, pool: int, orders: programs_lib.Orders) -> None:
    """Candidates of the pool's problems into its free slots."""
    free, waiting = self._free[pool], self._waiting[pool]
    while free and waiting:
      problem = waiting[0]
      if problem.request.draw in self._given_up:
        waiting.popleft().waiting.clear()
        self._release(problem)
        continue
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
        getattr(orders, name)[slot] = value

  def _prefill(self, problems: list[_Problem]) -> None:
    """Reads prompts into the store, as many at a time as memory is for."""
    problems = sorted(problems, key=lambda p: len(p.request.read))
    while problems:
      longest = bucket(
        max(len(problems[-1].request.read), self._shape.positions)
      )
      most = max(1, self._shape.prefill_tokens // longest)
      part, problems = problems[-most:], problems[:-most]
      n = bucket(len(part), 1)
      S = longest
      if S > self._positions:
        self._positions = S
        self._slots = self._run['lengthen'](self._slots, S)
      prompt_nS = np.full((n, S), self.config.pad_id, np.int32)
      length_n = np.ones(n, np.int32)
      row_n = np.full(n, self._num_prompts, np.int32)  # dropped
      for i, problem in enumerate(part):
        prompt = problem.request.read
        prompt_nS[i, : len(prompt)] = prompt
        length_n[i], row_n[i] = len(prompt), self._place(problem.row)
      read = self._run['prefill'](self._params, prompt_nS, length_n)
      self._slots, self._prompts = self._run['admit'](
        self._slots, self._prompts, read, row_n
      )

  def _place(self, row):
    """Where a row is on the device; rows go round the pools."""
    rows = self._num_prompts // self._pools
    return row % self._pools * rows + row // self._pools

  def _add_rows(self) -> None:
    """Twice the rows in the prompt store, at most as many as slots."""
    have = self._num_prompts
    self._num_prompts = min(2 * have, self._most_prompts)
    self._slots, self._prompts = self._run['add_rows'](
      self._slots, self._prompts, self._num_prompts
    )
    for row in range(have, self._num_prompts):
      self._rows[row % self._pools].append(row)

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

  def _chunk(self, least_active: int, stop, stopped) -> Iterator[Candidate]:
    """Turns of all slots, and the candidates that ended in them."""
    self._slots, records, last_B, feature_BCD = self._run['chunk'](
      self._params, self._slots, np.int32(least_active)
    )
    stopped_B = self._slots.stopped_B
    records, last_B, stopped_B = jax.device_get((records, last_B, stopped_B))
    self.turns += int(records.written_BC.any(0).sum())
    count_B = records.written_BC.sum(1)
    sound = all(
      np.isfinite(x).all()
      for x in (records.log_prob_BC, records.step_logit_BC, last_B)
    )
    for slot, draft in enumerate(self._drafts):
      if draft is None:
        continue
      count = int(count_B[slot])
      part = tuple(
        x[slot, :count]
        for x in (
          records.token_BC,
          records.log_prob_BC,
          records.forced_BC,
          records.step_logit_BC,
        )
      )
      if not sound:
        refuse_nan(draft, part, last_B[slot])
      draft.parts.append(part)
      draft.drawn += count
      draft.last_logit = float(last_B[slot])
      keep = stop(draft) if stop else None
      if keep is not None:
        dropped = draft.cut(keep)
        if dropped:
          draft.last_logit = float(
            self._run['score_at'](
              self._params,
              feature_BCD,
              np.int32(slot),
              np.int32(count - dropped),
            )
          )
        stopped.append(slot)
        yield self._end(slot, STOP)
      elif stopped_B[slot]:
        yield self._end(slot, STOP)
      elif not self._left(draft):
        yield self._end(slot, LENGTH)

  def _end(self, slot: int, reason: str) -> Candidate:
    """Hands a candidate out and frees what it had."""
    draft, self._drafts[slot] = self._drafts[slot], None
    self._free[slot // (self._num_slots // self._pools)].append(slot)
    problem = self._problems[draft.row]
    problem.live -= 1
    self._release(problem)
    return draft.finish(reason, self.config)

  def _release(self, problem: _Problem) -> None:
    """Frees the row of a problem that nobody reads any more."""
    if not problem.live and not problem.waiting:
      del self._problems[problem.row]
      self._rows[problem.row % self._pools].append(problem.row)
