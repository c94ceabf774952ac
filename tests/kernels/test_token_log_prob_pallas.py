"""The kernels of the token log-prob, interpreted, against a float64 loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from kernels.token_log_prob import blocks_tpu, op, reference
from tests.kernels import token_log_prob_cases as cases
from tests.kernels.token_log_prob_cases import Case

# `InterpretParams` models memories, copies and uninitialised bits.
RUNS = {
  'tpu': dict(kind='pallas_tpu', interpret=True),
  'tpu_memory': dict(kind='pallas_tpu', interpret=pltpu.InterpretParams()),
  'gpu': dict(kind='pallas_gpu', interpret=True),
}

# A block of tokens is 128 and a tile of columns 256 wide here.
SHAPES = {
  'whole_tiles': Case(((2, 100), 128, 512)),
  'ragged': Case(((3, 77), 256, 650), vocab_size=601),
  'tail_of_128': Case(((1, 200), 128, 640)),
  'one_tile': Case(((1, 300), 128, 100)),
  'one_token': Case(((1, 1), 128, 300), vocab_size=257),
  'bfloat16': Case(((1, 200), 128, 650), 640, 'bfloat16', 'bfloat16'),
  'master': Case(((2, 100), 256, 650), 650, 'bfloat16', 'float32'),
  'sharp': Case(((1, 150), 128, 400), sharpness=300),
}
# Memories matter where copies of our own run, and where tiles are not whole.
COMBINATIONS = [
  (name, run)
  for name in SHAPES
  for run in ('tpu', 'gpu')
  if name != 'tail_of_128'
] + [(x, 'tpu_memory') for x in ('tail_of_128', 'one_tile', 'bfloat16')]


@functools.cache
def _made(name):
  inputs = cases.make(SHAPES[name])
  return inputs, cases.want(inputs, SHAPES[name].vocab_size)


def test_gradient_by_hand_is_that_of_the_reference():
  inputs = cases.make(Case(((2, 9), 8, 11)))

  def loss(hidden, kernel):
    log_prob, entropy = reference.token_log_prob(
      hidden,
      kernel,
      inputs.target_BT,
      jnp.asarray(inputs.temperature_BT, jnp.float64)[..., None],
    )
    return jnp.sum(
      inputs.weight_BT * log_prob + inputs.entropy_weight_BT * entropy
    ), (log_prob, entropy)

  with jax.enable_x64(True):
    grads, values = jax.grad(loss, (0, 1), has_aux=True)(
      jnp.asarray(inputs.hidden_BTD, jnp.float64),
      jnp.asarray(inputs.kernel_DV, jnp.float64),
    )
  want = cases.want(inputs)
  for g, w in zip((*values, *grads), want, strict=True):
    np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(('name', 'run'), COMBINATIONS)
def test_kernels_are_the_formula(name, run):
  case = SHAPES[name]
  inputs, want = _made(name)
  with cases.small_blocks():
    got = cases.run(inputs, vocab_size=case.vocab_size, **RUNS[run])
  cases.check(got, want, case.hidden, case.sharpness)
  assert got[2].dtype == case.hidden
  assert got[3].dtype == case.head
  if case.vocab_size:
    assert not np.asarray(got[3][:, case.vocab_size :], np.float32).any()


def test_a_few_blocks_of_tokens_at_a_time():
  """Three calls of one block: the last two add to what the first left."""
  inputs, want = _made('ragged')
  vocab_size = SHAPES['ragged'].vocab_size
  with cases.small_blocks(partial=1):
    got = cases.run(inputs, vocab_size=vocab_size, **RUNS['tpu_memory'])
  cases.check(got, want)


def test_pieces_of_tokens_on_a_gpu(monkeypatch):
  inputs, want = _made('ragged')
  monkeypatch.setattr('kernels.token_log_prob.pallas_gpu._PIECE', 100)
  monkeypatch.setattr('kernels.token_log_prob.pallas_gpu._PIECE_BYTES', 2**16)
  with cases.small_blocks():
    got = cases.run(
      inputs, vocab_size=SHAPES['ragged'].vocab_size, **RUNS['gpu']
    )
  cases.check(got, want)


def test_two_cores_share_the_work_without_a_race():
  """As on megacore chips, with a detector of races."""
  inputs, want = _made('master')
  params = pltpu.InterpretParams(num_cores_or_threads=2, detect_races=True)
  with cases.small_blocks():
    got = cases.run(inputs, kind='pallas_tpu', interpret=params)
  cases.check(got, want, 'bfloat16')
  assert not interpret_pallas_call.races.races_found


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
  st.integers(1, 3),
  st.integers(0, 90),
  st.integers(2, 400),
  st.sampled_from(['float32', 'bfloat16']),
  st.sampled_from(['tpu', 'gpu']),
  st.data(),
)
def test_any_number_of_tokens_and_columns(
  batch, length, columns, hidden, run, data
):
  # Interpreted, a single tile is a plain product, which XLA's CPU backend does
  # not have of two bfloat16 into float32.
  assume(hidden == 'float32' or run == 'gpu' or columns > 256)
  vocab_size = data.draw(st.integers(1, columns))
  case = Case(((batch, length), 128, columns), vocab_size, hidden)
  inputs = cases.make(case)
  with cases.small_blocks():
    got = cases.run(inputs, vocab_size=vocab_size, **RUNS[run])
  cases.check(got, cases.want(inputs, vocab_size), hidden)


@pytest.mark.parametrize('kind', op.KINDS)
def test_no_tokens(kind):
  inputs = cases.make(Case(((2, 0), 128, 300)))
  got = cases.run(inputs, kind=kind)
  assert [x.shape for x in got] == [(2, 0), (2, 0), (2, 0, 128), (128, 300)]
  assert not np.asarray(got[3]).any()


WIDTHS = (1536, 3584, 5120)


@pytest.mark.parametrize('vmem', [64 * 2**20, 128 * 2**20])
@pytest.mark.parametrize('head_bytes', [2, 4])
@pytest.mark.parametrize('width', WIDTHS)
def test_blocks_keep_a_tpu_busy(width, head_bytes, vmem):
  """Operations a byte of the head's traffic, against what a v5p needs."""
  common = dict(hidden_bytes=2, head_bytes=head_bytes, vmem=vmem)
  N, V = 32_768, 152_064
  blocks = blocks_tpu.forward(N, width, V, **common)
  assert blocks == blocks_tpu.Blocks(2048, 512)
  blocks = blocks_tpu.backward(N, width, V, **common)
  assert N % blocks.tokens == 0
  assert V % blocks.columns == 0
  assert blocks.columns >= 256
  # Three products; a tile of d_kernel is read and written.
  assert 3 * 2 * blocks.tokens / (head_bytes + 8) >= 240


@pytest.mark.parametrize('head_bytes', [2, 4])
def test_the_widest_model_has_blocks_worth_reading_the_head_for(head_bytes):
  blocks = blocks_tpu.backward(
    32_768,
    op._WIDEST,
    128_256,
    hidden_bytes=2,
    head_bytes=head_bytes,
    vmem=64 * 2**20,
  )
  assert blocks.tokens >= 256


def test_blocks_of_few_tokens_and_columns():
  common = dict(hidden_bytes=2, head_bytes=2, vmem=64 * 2**20)
  assert blocks_tpu.forward(13, 128, 11, **common) == blocks_tpu.Blocks(
    128, 128
  )
  # 4 blocks of 5 x 256; 17 x 256 has no divisor and is filled up to 3 x 6.
  for tokens, block in ((5000, 1280), (17 * 256, 6 * 256)):
    blocks = blocks_tpu.forward(tokens, 1536, 152_064, **common)
    assert blocks == blocks_tpu.Blocks(block, 512)
  with pytest.raises(ValueError, match="vector memory.*kind='xla'"):
    blocks_tpu.forward(128, 2**18, 1000, **common)
  for size, most, part in ((768, 512, 384), (1536, 512, 512), (128, 512, 128)):
    assert blocks_tpu.part(size, most) == part


def test_auto_picks_by_platform_and_shape():
  common = dict(tokens=32_768, width=1536, dtype=jnp.bfloat16)
  choose = op.choose
  assert choose('auto', platform='tpu', **common) == 'pallas_tpu'
  assert choose('auto', platform='gpu', **common) == 'pallas_gpu'
  assert choose('auto', platform='other', **common) == 'xla'
  for other in (
    dict(tokens=511),
    dict(width=100),
    dict(width=16384),
    dict(dtype=jnp.float32),
    dict(dtype=jnp.float16),
  ):
    for platform in ('tpu', 'gpu'):
      assert choose('auto', platform=platform, **(common | other)) == 'xla'
  assert choose('pallas_gpu', platform='cpu', **common) == 'pallas_gpu'


def test_what_a_kind_cannot_do_is_refused():
  inputs = cases.make(Case(((1, 4), 100, 30)))
  for kind, multiple in (('pallas_tpu', 128), ('pallas_gpu', 64)):
    with pytest.raises(ValueError, match=f'multiple of {multiple}.*D = 100'):
      cases.run(inputs, kind=kind)
  with pytest.raises(ValueError, match="float16; use kind='xla'"):
    cases.run(
      cases.make(Case(((1, 4), 128, 30), None, 'float16')), kind='pallas_tpu'
    )
  with pytest.raises(ValueError, match="'best'; use auto"):
    cases.run(inputs, kind='best')
