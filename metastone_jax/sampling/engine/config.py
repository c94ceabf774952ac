"""Shapes of the engine, and the buckets that its programs are compiled for."""

import dataclasses

from metastone_jax.errors import check_fields


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Shapes of the engine.

  Attributes:
    num_slots: candidates that are written at a time.
    num_prompts: problems that they may belong to at a time; a slot waits where
      all are taken. None = as few as need be, up to one a slot: a prompt that
      is kept takes memory, and without a kernel also time.
    turns: tokens of a chunk.
    refill: share of the active slots that must have ended before a chunk stops
      early for the queue.
    prefill_tokens: positions that are read at a time, a power of two: of
      several short prompts together, or of a longer one piece by piece.
    group: slots that belong to one problem at a time, neighbours, in place of
      `num_prompts`; 0 = any slot serves any problem. A decoder reads the prompt
      of an equal group with less work, but slots of a group wait for its last
      candidate: for problems that all start at once.
    positions: of the prompt caches, from the start, if prompts are no longer;
      0 = as many as the first requests need. Runs whose prompts differ in
      length then share their programs.
    columns: of the slots' own caches, from the start; 0 = as many as the first
      chunk needs. Those of the longest response are never moved or copied.
    context: tokens of prompt and response together; None = no limit.
  """

  num_slots: int = 32
  num_prompts: int | None = None
  turns: int = 32
  refill: float = 0.125
  prefill_tokens: int = 8192
  group: int = 0
  positions: int = 0
  columns: int = 0
  context: int | None = None

  def __post_init__(self):
    check_fields(
      'engine.',
      self,
      (
        ('num_slots', self.num_slots >= 1, 'at least 1'),
        (
          'num_prompts',
          self.num_prompts is None or self.num_prompts >= 1,
          'at least 1',
        ),
        ('turns', self.turns >= 1, 'at least 1'),
        ('refill', 0 < self.refill <= 1, 'in (0, 1]'),
        (
          'prefill_tokens',
          self.prefill_tokens >= 16
          and self.prefill_tokens == bucket(self.prefill_tokens),
          'a power of two, at least 16',
        ),
        (
          'group',
          self.group >= 0 and self.num_slots % (self.group or 1) == 0,
          f'0 or a divisor of num_slots={self.num_slots}',
        ),
        (
          'num_prompts',
          not self.group or self.num_prompts is None,
          'None where slots have groups',
        ),
        ('positions', self.positions >= 0, 'at least 0'),
        ('columns', self.columns >= 0, 'at least 0'),
      ),
    )


def bucket(size: int, least: int = 16) -> int:
  """The smallest power of two that holds it."""
  return max(least, 1 << max(size - 1, 0).bit_length())
