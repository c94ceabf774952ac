"""FLOPs, bytes and roofline seconds of a recipe's programs, counted by hand.

All of it is arithmetic on shapes; only the bytes between devices are read from
the compiled program. For one device:

  compute seconds      FLOPs incl. what is recomputed / peak FLOP/s
  memory seconds       bytes of matrix operands, optimiser state, caches / HBM
  interconnect seconds bytes sent / link bandwidth
  seconds              the largest of the three (they overlap at best)
  MFU                  3 x forward FLOPs, causal, nothing twice,
                       / (seconds x peak FLOP/s)

FLOPs of an update of n tokens in rows of T, from `ModelConfig.forward_flops`
with the mean context T / 2 (causal). Forward once, backward twice, plus

  blocks     once more where `remat` recomputes them ('full', 'offload')
  attention  a flash kernel's backward makes its scores again in both of its
             two passes: 7 products of the forward's 2, instead of 4; where
             the backend computes the whole square, everything twice
  head       the policy head's logits are made again in the backward pass

Bytes of a matrix product (n x D) @ (D x O) with O split over t devices:
2 (D O / t + n (D + O / t)), in bfloat16; it is done 4 times with remat (once
forward, once again, twice backward), else 3. AdamW reads gradient, master and
two moments and writes three of them: 28 bytes a parameter; K > 1 micro-batches
read and write the float32 gradient K times.

Decoding one token of B slots reads the weights and the slots' caches once, and
scores every slot; training scores step marks alone, which is left out.

A host writes n responses of mean length l with B slots, each slot going to the
next response when one ends, in about

  turns = l (n - B) / B + E[longest of B]

turns of all slots: the first n - B responses keep them all busy, the last B run
out. That is within 2 % of simulated queues; a slot waits for the end of its
chunk besides, half a chunk a response at most. In a turn, a slot has on average

  context = n E[length^2] / (2 B turns)

tokens of its own to read, none once it has ended.
"""

import dataclasses
import statistics

import numpy as np

from metastone_jax.compile_check.targets import Chip
from metastone_jax.model import ModelConfig

_RECOMPUTED_BLOCKS = {
  'none': 0.0,
  'full': 1.0,
  'offload': 1.0,
  # Their matrix products other than attention are kept.
  'dots': 0.0,
  'attention': 1.0,
}
_RECOMPUTES_ATTENTION = {'full', 'offload', 'dots'}


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device has to do in one run of a program.

  Attributes:
    flops: with recomputation.
    model_flops: 3 x forward (or 1 x, without a gradient), nothing twice.
    memory_bytes: read from and written to its memory.
    sent_bytes: sent to other devices.
  """

  flops: float
  model_flops: float
  memory_bytes: float
  sent_bytes: float = 0.0

  def __mul__(self, times: float) -> 'Work':
    return Work(*(x * times for x in dataclasses.astuple(self)))

  def __add__(self, other: 'Work') -> 'Work':
    pairs = zip(
      dataclasses.astuple(self), dataclasses.astuple(other), strict=True
    )
    return Work(*(a + b for a, b in pairs))

  def parts(self, chip: Chip) -> dict[str, float]:
    """Seconds of each limit: compute, memory, interconnect."""
    return {
      'compute': self.flops / chip.flops,
      'memory': self.memory_bytes / chip.memory_bandwidth,
      'interconnect': self.sent_bytes / chip.link_bandwidth,
    }

  def seconds(self, chip: Chip) -> float:
    """The roofline: the largest of the three limits."""
    return max(self.parts(chip).values())

  def mfu(self, chip: Chip) -> float:
    """Model FLOPs utilisation at the roofline."""
    return self.model_flops / (self.seconds(chip) * chip.flops)


def _products(config: ModelConfig) -> list[tuple[int, int]]:
  """(D, O) of every matrix product of one block."""
  D, F, h = config.width, config.feed_forward, config.head_width
  H, K = config.num_heads, config.num_kv_heads
  return [
    (D, H * h),
    (D, K * h),
    (D, K * h),
    (H * h, D),
    (D, F),
    (D, F),
    (F, D),
  ]


def _operand_bytes(config: ModelConfig, tokens: float, tensor: int) -> float:
  """Of one forward pass over a device's tokens."""
  block = sum(
    2 * (a * b / tensor + tokens * (a + b / tensor))
    for a, b in _products(config)
  )
  # Queries, keys, values and outputs once; flash attention keeps the rest.
  attention = 2 * tokens * config.head_width / tensor
  attention *= 2 * config.num_heads + 2 * config.num_kv_heads
  D, V = config.width, config.padded_vocab_size
  head = 2 * (D * V / tensor + tokens * D)  # logits never leave the chip
  return config.num_layers * (block + attention) + head


def _attention_flops(config: ModelConfig, tokens: float, context: float):
  """The two products of attention, forward, causal."""
  width = config.num_heads * config.head_width
  return 4.0 * tokens * config.num_layers * width * context


def update(
  config: ModelConfig,
  *,
  rows: int,
  length: int,
  micro_batches: int,
  devices: int,
  tensor: int,
  flash: bool,
) -> Work:
  """One optimiser update of `rows` rows of `length` tokens, per device."""
  tokens = rows * length
  attention = _attention_flops(config, tokens, length / 2)
  forward = config.forward_flops(tokens, length / 2)
  head = 2.0 * tokens * config.width * config.vocab_size
  blocks = forward - head - attention
  again = _RECOMPUTED_BLOCKS[config.remat]
  # In units of one forward pass over the causal half.
  attention_times = 1 + 3.5 + (config.remat in _RECOMPUTES_ATTENTION)
  if not flash:
    attention_times = 2 * (3 + 1)  # the whole square; its scores made again
  flops = blocks * (3 + again) + attention * attention_times + head * 4
  parameters = config.num_backbone_parameters + config.num_score_parameters
  own_tokens = tokens / (devices / tensor)
  passes = 3 + again
  memory = (
    micro_batches
    * passes
    * _operand_bytes(config, own_tokens / micro_batches, tensor)
  )
  memory += 28 * parameters / devices
  if micro_batches > 1:
    memory += micro_batches * 8 * parameters / devices
  return Work(flops / devices, 3 * forward / devices, memory)


def forward_pass(
  config: ModelConfig,
  *,
  rows: int,
  length: int,
  micro_batches: int,
  devices: int,
  tensor: int,
  flash: bool,
) -> Work:
  """Log-probs of rows, without a gradient, per device."""
  tokens = rows * length
  forward = config.forward_flops(tokens, length / 2)
  flops = forward
  if not flash:
    flops += _attention_flops(config, tokens, length / 2)
  own_tokens = tokens / (devices / tensor)
  memory = micro_batches * _operand_bytes(
    config, own_tokens / micro_batches, tensor
  )
  return Work(flops / devices, forward / devices, memory)


def prefill(
  config: ModelConfig,
  *,
  prompts: int,
  length: int,
  devices: int,
  tensor: int,
) -> Work:
  """Prompts into caches, per device: no logits; whole where they do not divide.

  Args:
    config: shapes.
    prompts: that are read together.
    length: of each, with padding.
    devices: that read them together.
    tensor: devices that share the weights.
  """
  tokens = prompts * length
  shards = devices // tensor
  own = tokens / (shards if prompts % shards == 0 else 1)
  D, V = config.width, config.padded_vocab_size
  flops = config.forward_flops(own, length / 2)
  flops -= 2.0 * own * D * config.vocab_size
  memory = _operand_bytes(config, own, tensor)
  memory -= 2 * (D * V / tensor + own * D)
  memory += cache_bytes_a_token(config) * own / tensor
  return Work(flops / tensor, flops / tensor, memory)


def cache_bytes_a_token(config: ModelConfig) -> int:
  """Keys and values of one token in all layers, 2 bytes each."""
  return 4 * config.num_layers * config.num_kv_heads * config.head_width


def decode_step(
  config: ModelConfig,
  *,
  slots: int,
  prompts: int,
  prompt: float,
  context: float,
  devices: int,
  tensor: int,
) -> Work:
  """One token of every slot, per device; `devices` draw these slots together.

  Args:
    config: shapes.
    slots: responses that are written at a time.
    prompts: whose caches are read, each once for all its slots.
    prompt: tokens of a prompt.
    context: tokens a slot has written so far, on average.
    devices: that share the slots; these are split over devices / tensor.
    tensor: devices that share the weights.
  """
  forward = config.forward_flops(slots, prompt + context)
  forward += config.score_flops(slots)
  cache = cache_bytes_a_token(config) * (prompts * prompt + slots * context)
  weights = config.num_backbone_parameters + config.num_score_parameters
  if not config.tied_embeddings:
    weights -= config.vocab_size * config.width  # rows that no slot looks up
  memory = 2 * weights / tensor + cache / devices
  # Two sums over the tensor axis a layer, each of the slots' hidden states.
  own = slots / (devices / tensor)
  sent = 2 * config.num_layers * own * config.width * 2
  sent *= 2 * (tensor - 1) / tensor
  return Work(forward / devices, forward / devices, memory, sent)


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Response lengths: log-normal, cut at the limit, as reasoning models write.

  Attributes:
    median: tokens.
    sigma: of the logarithm.
    limit: longest response.
  """

  median: float
  sigma: float
  limit: int

  def _quantiles(self, count: int = 4000) -> np.ndarray:
    u = (np.arange(count) + 0.5) / count
    z = np.array([statistics.NormalDist().inv_cdf(x) for x in u])
    return np.minimum(self.median * np.exp(self.sigma * z), self.limit)

  @property
  def mean(self) -> float:
    """Tokens of a response."""
    return float(self._quantiles().mean())

  @property
  def mean_square(self) -> float:
    """Of the tokens of a response."""
    return float((self._quantiles() ** 2).mean())

  def turns(self, responses: int, slots: int) -> float:
    """Turns in which so many slots write so many responses, see the module."""
    slots = min(slots, responses)
    return self.mean * (responses / slots - 1) + self.expected_longest(slots)

  def mean_context(self, responses: int, slots: int) -> float:
    """Own tokens that a slot reads in a turn, on average."""
    turns = self.turns(responses, slots)
    return responses * self.mean_square / (2 * slots * turns)

  def expected_longest(self, count: int) -> float:
    """Expected longest of so many independent responses.

    The i-th of m ordered quantiles is the longest with probability
    (i/m)^count - ((i-1)/m)^count.
    """
    q = self._quantiles()
    edge = (np.arange(len(q) + 1) / len(q)) ** count
    return float(np.sum(q * np.diff(edge)))
