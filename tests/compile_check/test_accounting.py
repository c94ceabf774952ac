"""FLOPs, bytes and seconds against numbers worked out by hand."""

import dataclasses
import heapq

import numpy as np
import pytest

from metastone_jax.compile_check import accounting
from metastone_jax.compile_check.targets import Chip
from metastone_jax.model import ModelConfig
from tests.benchmarks import head_cost

# Small enough for a pencil: D = 4, H = 2, K = 1, h = 2, F = 8, V = 10, L = 2.
CONFIG = ModelConfig(
  vocab_size=10,
  width=4,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_width=2,
  feed_forward=8,
  qkv_bias=False,
  remat='none',
)
# q 4x4, k and v 4x2, o 4x4, gate and up 4x8, down 8x4.
BLOCK = 16 + 8 + 8 + 16 + 32 + 32 + 32  # = 144 multiply-adds a token
SCORE = 2 * 16 + 2 * 4  # 4 x 8 and 8 x 1
ROWS, T = 3, 10
TOKENS = ROWS * T
ATTENTION = 2 * 2 * 4 * (T / 2) * TOKENS * 2  # two products, 2 a multiply-add


def _update(**options):
  defaults = dict(
    rows=ROWS, length=T, micro_batches=1, devices=1, tensor=1, flash=True
  )
  return accounting.update(CONFIG, **{**defaults, **options})


def test_flops_of_an_update():
  blocks, head = (2 * TOKENS * x for x in (2 * BLOCK, 4 * 10))
  forward = blocks + head + ATTENTION
  got = _update()
  assert got.model_flops == pytest.approx(3 * forward)
  # The head is made again in the backward pass; a flash kernel's backward does
  # 7 products for the forward's 2.
  want = 3 * blocks + 4 * head + 4.5 * ATTENTION
  assert got.flops == pytest.approx(want)
  full = dataclasses.replace(CONFIG, remat='full')
  again = accounting.update(
    full,
    rows=ROWS,
    length=T,
    micro_batches=1,
    devices=1,
    tensor=1,
    flash=True,
  )
  assert again.flops - got.flops == pytest.approx(blocks + ATTENTION)
  assert again.model_flops == got.model_flops


def test_bytes_of_an_update():
  # A product (n x a) @ (a x b): 2 (a b + n (a + b)) bytes.
  pairs = [(4, 4), (4, 2), (4, 2), (4, 4), (4, 8), (4, 8), (8, 4)]
  block = sum(2 * (a * b + TOKENS * (a + b)) for a, b in pairs)
  attention = 2 * TOKENS * 2 * (2 * 2 + 2 * 1)
  head = 2 * (4 * 10 + TOKENS * 4)
  parameters = CONFIG.num_backbone_parameters + CONFIG.num_score_parameters
  want = 3 * (2 * (block + attention) + head) + 28 * parameters
  assert _update().memory_bytes == pytest.approx(want)
  # Split over devices, each reads its own columns and its own tokens.
  split = _update(devices=6, tensor=2)
  assert split.flops == pytest.approx(_update().flops / 6)
  two = _update(micro_batches=2)
  weights = 3 * (2 * sum(2 * a * b for a, b in pairs) + 2 * 4 * 10)
  assert two.memory_bytes - want == pytest.approx(weights + 16 * parameters)


def test_seconds_and_mfu():
  chip = Chip('tpu', 1e9, 100.0, 10.0, 5.0, 4)
  work = accounting.Work(200.0, 150.0, 10.0, 20.0)
  assert work.parts(chip) == {
    'compute': 2.0,
    'memory': 1.0,
    'interconnect': 4.0,
  }
  assert work.seconds(chip) == 4.0
  assert work.mfu(chip) == pytest.approx(150 / 400)
  assert (work * 3 + work).flops == 800


def test_decoding_reads_weights_and_caches_once():
  got = accounting.decode_step(
    CONFIG,
    slots=6,
    prompts=2,
    prompt=5.0,
    context=7.0,
    devices=1,
    tensor=1,
  )
  weights = CONFIG.num_backbone_parameters + CONFIG.num_score_parameters
  weights -= 10 * 4  # embedding rows nobody looks up
  cache = 4 * 2 * 1 * 2  # keys and values, 2 layers, 1 head of 2, 2 bytes
  want = 2 * weights + cache * (2 * 5 + 6 * 7)
  assert got.memory_bytes == pytest.approx(want)
  assert got.sent_bytes == 0
  forward = CONFIG.forward_flops(6, 12.0) + 2 * 6 * SCORE
  assert got.flops == pytest.approx(forward)


def test_prefill_makes_no_logits_and_writes_caches():
  got = accounting.prefill(CONFIG, prompts=ROWS, length=T, devices=1, tensor=1)
  assert got.flops == pytest.approx(2 * TOKENS * 2 * BLOCK + ATTENTION)
  assert got.model_flops == got.flops
  pairs = [(4, 4), (4, 2), (4, 2), (4, 4), (4, 8), (4, 8), (8, 4)]
  block = sum(2 * (a * b + TOKENS * (a + b)) for a, b in pairs)
  attention = 2 * TOKENS * 2 * (2 * 2 + 2 * 1)
  cache = 4 * 2 * 1 * 2 * TOKENS
  assert got.memory_bytes == pytest.approx(2 * (block + attention) + cache)
  # Three prompts over three devices; over two, each reads all of them.
  for devices, share in ((3, 3), (2, 1)):
    split = accounting.prefill(
      CONFIG, prompts=ROWS, length=T, devices=devices, tensor=1
    )
    assert split.flops == pytest.approx(got.flops / share)


def test_the_head_is_a_small_part_of_a_decode_step():
  """A step without the head's weights and arithmetic, at every preset."""
  for model in head_cost.MODELS:
    for share in head_cost.shares(model):
      assert 0.0005 < share < 0.01


def test_expected_longest_against_simulation():
  lengths = accounting.Lengths(100.0, 0.6, 300)
  rng = np.random.default_rng(0)
  drawn = np.minimum(100 * np.exp(0.6 * rng.normal(size=(20_000, 16))), 300)
  assert lengths.mean == pytest.approx(drawn.mean(), rel=0.01)
  assert lengths.mean_square == pytest.approx((drawn**2).mean(), rel=0.01)
  for count in (1, 4, 16):
    longest = drawn[:, :count].max(axis=1).mean()
    assert lengths.expected_longest(count) == pytest.approx(longest, rel=0.01)


@pytest.mark.parametrize(
  ('responses', 'slots'), [(64, 64), (64, 24), (16, 4), (512, 64), (5, 8)]
)
def test_turns_of_a_queue_against_simulation(responses, slots):
  """Each slot takes the next response when its own has ended."""
  lengths = accounting.Lengths(8192.0, 0.6, 32768)
  rng = np.random.default_rng(0)
  turns, read = [], []
  for _ in range(400):
    drawn = 8192 * np.exp(0.6 * rng.normal(size=responses))
    drawn = np.minimum(drawn, 32768)
    ends = [0.0] * slots
    for length in drawn:
      heapq.heappush(ends, heapq.heappop(ends) + length)
    turns.append(max(ends))
    # A response reads 1, 2, ... of its own tokens, one turn after the other.
    read.append(np.sum(drawn**2) / 2)
  got = lengths.turns(responses, slots)
  assert got == pytest.approx(np.mean(turns), rel=0.03)
  want = np.mean(read) / (slots * np.mean(turns))
  got = lengths.mean_context(responses, slots)
  assert got == pytest.approx(want, rel=0.05)
