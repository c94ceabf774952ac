"""Which form scores the marks, and in what blocks."""

import functools

import jax.numpy as jnp
import pytest

from kernels.scoring_head import blocks_tpu, op

SHAPES = dict(places=65_536, width=1536, hidden=3072, dtype=jnp.bfloat16)


def test_auto_follows_platform_and_shape():
  choose = functools.partial(op.choose, 'auto')
  assert choose(platform='tpu', **SHAPES) == 'pallas_tpu'
  for platform in ('other', 'gpu'):
    assert choose(platform=platform, **SHAPES) == 'xla'
  for change in (
    dict(dtype=jnp.float32),
    dict(places=65_537),
    dict(places=2**17 + 2),
    dict(width=96, hidden=192),
    dict(hidden=128),
    dict(hidden=1000),
    dict(width=6144, hidden=12_288),
    dict(width=2**15, hidden=2**16),
  ):
    assert choose(platform='tpu', **{**SHAPES, **change}) == 'xla'


@pytest.mark.parametrize(
  'kind,change,reason',
  [
    ('splash', {}, 'use one of'),
    ('pallas_tpu', dict(dtype=jnp.float32), 'needs bfloat16 .* float32'),
    ('pallas_tpu', dict(places=7), 'even number .* 7 positions'),
    ('pallas_tpu', dict(width=96), 'multiples of 128 .* D 96'),
    ('pallas_gpu', dict(hidden=96), 'E of 128.* E 96'),
    ('pallas_gpu', dict(places=2**21), r'2\*\*31'),
  ],
)
def test_a_kind_that_cannot_is_refused(kind, change, reason):
  with pytest.raises(ValueError, match=reason):
    op.choose(kind, platform='tpu', **{**SHAPES, **change})


def test_blocks_fit_the_smallest_core():
  """Many widths, and what they are at those of the presets."""
  found = {}
  for width in (*range(128, 8192, 128), 1536, 3584, 5120):
    for backward in (False, True):
      blocks = blocks_tpu.blocks(width, 2 * width, backward)
      found[width, backward] = blocks.marks, blocks.units
      assert blocks.vmem(width, 2 * width, backward) <= 58 * 2**20
      # The next block is there before the last tile ends.
      assert blocks.marks // blocks.chunk < 2 * width // blocks.units
      assert blocks.marks % blocks.rows == blocks.marks % blocks.chunk == 0
      product = blocks_tpu.product_blocks(width, 2 * width, blocks.marks)
      assert width % product.width == 2 * width % product.units == 0
      assert blocks.marks % product.marks == product.marks % blocks.rows == 0
  expected = {
    (1536, False): (2048, 256),
    (1536, True): (2048, 512),
    (3584, False): (2048, 256),
    (3584, True): (1024, 512),
    (5120, False): (2048, 256),
    (5120, True): (1024, 512),
  }
  assert {key: found[key] for key in expected} == expected
  for hidden in (768, 1152, 12_288):  # of another `model.score_width`
    for backward in (False, True):
      blocks = blocks_tpu.blocks(1536, hidden, backward)
      assert blocks.vmem(1536, hidden, backward) <= 58 * 2**20
      assert hidden % blocks.units == 0
      assert blocks.marks // blocks.chunk < hidden // blocks.units
      product = blocks_tpu.product_blocks(1536, hidden, blocks.marks)
      assert hidden % product.units == 0
  assert blocks_tpu.blocks(2**15, 2**16) is None
  assert blocks_tpu.blocks(1536, 128) is None
  assert blocks_tpu.blocks(96, 192) is None
