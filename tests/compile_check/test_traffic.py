"""Bytes through memory, of programs whose traffic is plain."""

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

  found = traffic.memory_traffic(_text(loop, (64, 32, 128), (128, 128)))
  least = 64 * 4 * (32 * 128 + 128 * 128 + 32 * 128)
  # The backend may copy a slice out and its result back, and start from zeros.
  assert least <= found <= 1.01 * (least + 64 * 4 * 5 * 32 * 128)


HLO = """HloModule m

%fused (p: f32[8,128], q: s32[]) -> f32[1,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = f32[1,128]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={1,128}
}

ENTRY %main (a: f32[8,128], i: s32[]) -> f32[1,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %f = f32[1,128]{1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused
  %k = f32[4,128]{1,0} custom-call(%f, %a), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"1","bytes_accessed":"7000"}}
  ROOT %n = f32[4,128]{1,0} negate(%k)
}
"""


def test_slices_on_chip_arrays_and_kernels_that_say_what_they_read():
  # The fusion reads 512 and writes on the chip; 2,048 twice for `negate`.
  assert traffic.memory_traffic(HLO) == 512 + 7000 + 2 * 2048
