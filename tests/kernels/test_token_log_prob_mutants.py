"""Kernels of the token log-prob that are broken.

A comparison that a broken kernel passes is no comparison: each mutant below is
one small mistake, and each must be noticed.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from kernels.token_log_prob import (
  op,
  pallas_common,
  pallas_gpu,
  pallas_tpu,
  pallas_tpu_backward,
  stream_tpu,
)
from tests.kernels import test_token_log_prob_split as over_devices
from tests.kernels import token_log_prob_cases as cases
from tests.kernels.test_token_log_prob_pallas import RUNS
from tests.kernels.token_log_prob_cases import Case

# Two blocks of tokens, five tiles in two halves, the last one ragged; padding
# of the vocabulary.
CASE = Case(((1, 200), 128, 600), 590)


@functools.cache
def _case(dtype):
  case = dataclasses.replace(CASE, hidden=dtype, head=dtype)
  inputs = cases.make(case)
  return inputs, cases.want(inputs, case.vocab_size)


def _attempt(run, dtype='float32'):
  inputs, want = _case(dtype)
  with cases.small_blocks(columns=128):
    got = cases.run(inputs, vocab_size=CASE.vocab_size, **RUNS[run])
  cases.check(got, want, dtype)


@pytest.mark.parametrize(
  ('run', 'dtype'),
  [('tpu_memory', 'float32'), ('tpu_memory', 'bfloat16'), ('gpu', 'float32')],
)
def test_unbroken_kernels_pass(run, dtype):
  _attempt(run, dtype)


def _no_wait(writing):
  real = stream_tpu.Stream.wait

  def wait(self, tile, slot, **options):
    if options['writing'] != writing:
      real(self, tile, slot, **options)

  return wait


def _lanes_not_scaled(top, total, mean, taken):
  sums = (jnp.sum(x.T, axis=0, keepdims=True) for x in (total, mean, taken))
  return jnp.concatenate([jnp.max(top.T, axis=0, keepdims=True), *sums])


def _accumulators_not_scaled(*args):
  real = _accumulate(*args)
  top, total, mean, _ = args[-1]
  scale = jnp.exp(top - real[0])
  return (
    real[0],
    real[1] + total * (1 - scale),
    real[2] + mean * (1 - scale),
    real[3],
  )


_accumulate = pallas_tpu._accumulate
_d_logits = pallas_common.d_logits
_local_limit = pallas_common.local_limit
_combine = op._combine
Stream, Position = stream_tpu.Stream, stream_tpu.Position

TPU = functools.partial(_attempt, 'tpu_memory')
# A copy that never comes would be waited for for ever.
HANGS = functools.partial(_attempt, 'tpu')
GPU = functools.partial(_attempt, 'gpu')
SPLIT = functools.partial(
  over_devices.check_kernels, 'columns', 'float32', 'tpu'
)

MUTANTS = {
  'a write is not waited for': (TPU, Stream, 'wait', _no_wait(True)),
  'a read is not waited for': (TPU, Stream, 'wait', _no_wait(False)),
  'one slot for all steps': (HANGS, Position, 'slot', property(lambda at: 0)),
  'the next tile does not wrap': (
    HANGS,
    Position,
    'tile_after',
    property(lambda at: at.first_tile + at.j),
  ),
  'the next block is this one': (
    HANGS,
    Position,
    'block_after',
    property(lambda at: at.block),
  ),
  'the gradient of the next column': (
    TPU,
    pallas_tpu_backward,
    '_make_d_logits',
    lambda plan, head, scratch, first, limit, real=(
      pallas_tpu_backward._make_d_logits
    ): real(plan, head, scratch, first + 1, limit),
  ),
  'the last tile of the head is not cleaned': (
    TPU,
    pallas_tpu_backward,
    '_clean_head',
    lambda plan, head_ref, scratch, tile: head_ref,
  ),
  'lanes are added up unscaled': (
    TPU,
    pallas_tpu,
    '_combine_lanes',
    _lanes_not_scaled,
  ),
  'sums keep the scale of an old maximum': (
    TPU,
    pallas_tpu,
    '_accumulate',
    _accumulators_not_scaled,
  ),
  'padding of the vocabulary is not masked': (
    TPU,
    pallas_tpu,
    'local_limit',
    lambda first, columns, vocab_size: _local_limit(first, columns, None),
  ),
  'the target is nowhere': (
    TPU,
    pallas_common,
    'd_logits',
    lambda logits, is_target, *rest: _d_logits(logits, False, *rest),
  ),
  'the next device\'s target is in the padding': (
    SPLIT,
    pallas_tpu,
    'local_target',
    lambda target, first, columns: target - first,
  ),
  'columns count from 0 on every device': (
    SPLIT,
    pallas_tpu_backward,
    'local_target',
    lambda target, first, columns: target,
  ),
  'devices are added up unscaled': (
    SPLIT,
    op,
    '_combine',
    lambda top, *rest: _combine(jax.lax.pmax(top, rest[-1]), *rest),
  ),
  'gpu: padding of the vocabulary is not masked': (
    GPU,
    pallas_gpu,
    'local_limit',
    lambda first, columns, vocab_size: _local_limit(first, columns, None),
  ),
  'gpu: the next column': (
    GPU,
    pallas_gpu,
    '_columns_of',
    lambda start: start + 1 + jnp.arange(pallas_gpu._COLUMNS),
  ),
  'gpu: shares are added up unscaled': (
    GPU,
    pallas_gpu,
    '_merge',
    lambda a, b: (jnp.maximum(a[0], b[0]), *(
      x + y for x, y in zip(a[1:], b[1:], strict=True)
    )),
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', MUTANTS)
def test_mutants_are_noticed(name):
  attempt, owner, attribute, broken = MUTANTS[name]
  try:
    with mock.patch.object(owner, attribute, broken):
      jax.clear_caches()  # Newer JAX keeps what a kernel's helpers traced to.
      with pytest.raises(AssertionError, match='ot equal'):
        attempt()
  finally:
    jax.clear_caches()
