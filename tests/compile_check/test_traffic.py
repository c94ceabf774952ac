"""Bytes through memory, of programs whose traffic is plain."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from metastone_jax.compile_check import traffic


def _text(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_product_reads_two_and_writes_one():
  text = _text(jnp.dot, (512, 256), (256, 128))
  whole = 4 * (512 * 256 + 256 * 128 + 512 * 128)
  assert traffic.memory_traffic(text) == pytest.approx(whole, rel=0.01)


def test_a_loop_reads_slices_and_writes_in_place():
  """Each of 64 turns reads its slice and all of w, and writes its slice."""

  def loop(x, w):
    return jax.lax.scan(lambda c, xi: (c, jnp.dot(xi, w)), None, x)[1]

  text = _text(loop, (64, 32, 128), (128, 128))
  found = traffic.memory_traffic(text)
  least = 64 * 4 * (32 * 128 + 128 * 128 + 32 * 128)
  # The backend may copy a slice out and its result back, and start from zeros.
  assert least <= found <= 1.01 * (least + 64 * 4 * 5 * 32 * 128)
  # As often as the caller says, whatever stands in the program.
  more = traffic.memory_traffic(text, main_turns=128)
  assert more - found == found - traffic.memory_traffic(text, main_turns=0)


def test_slices_on_chip_arrays_and_kernels_that_say_what_they_read():
  text = (pathlib.Path(__file__).parent / 'kernel.hlo').read_text()
  # The first fusion reads 512 and writes on the chip; `negate` moves 2,048
  # twice; the second reads all 2,048 through a nested bitcast and writes 512.
  # The kernel says 7,000, 512 of them of what the first fusion wrote.
  moved = 512 + 7000 - 512 + 2 * 2048 + 2048 + 512
  # One column of a tile of 128 is written: the tiles are read and written, 128
  # rows of 128 columns of two. One row of eight likewise, and it is read.
  moved += 2 * (2 * 128 * 128 * 2)
  moved += 512 + 2 * (8 * 128 * 4)
  moved += 512  # a row of four, to the chip
  moved += 2 * 2048 + 64  # without the scratch
  # A gather of 2,048 to 8,192, and what the fusion that carries it computes.
  moved += 2048 + 8192 + 2 * 2048
  assert traffic.memory_traffic(text) == moved
