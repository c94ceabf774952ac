"""Cases of the score head: 4,096 marks among 65,536 positions of a device.

`naive` scores every position at once, the other forms the marks alone. The
cases of a slice have as many positions and marks on each of 2 x 2 devices, rows
over fsdp and positions over sequence.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kernels.scoring_head import (
  op,
  pallas_gpu,
  pallas_tpu_backward,
  reference,
  steps,
)
from metastone_jax.model import preset
from tests.benchmarks.kernels.case import Case

BATCH, LENGTH, MARKS = 8, 8192, 4096
FORMS = ('xla', 'naive', 'pallas_tpu', 'pallas_gpu')
DIRECTIONS = ('forward', 'gradient')
_DROPOUT = 0.5


# Marks of one turn of the loops over marks.
_AT_A_TIME = {
  'naive': MARKS,
  'xla': steps.CHUNK,
  'pallas_tpu': pallas_tpu_backward.ROUND_SLOTS,
  'pallas_gpu': pallas_gpu.BLOCKS.round,
}
_ONE, _SLICE = {'fsdp': 1, 'sequence': 1}, {'fsdp': 2, 'sequence': 2}


def cases(model: str) -> list[Case]:
  """All forms and directions, on one device and as a part of 2 x 2.

  Args:
    model: '1p5b', '7b' or '32b'.
  """
  width = preset(model.replace('p', '.')).width
  return [
    _case(model, form, direction, width, mesh)
    for mesh in (_ONE, _SLICE)
    for form in FORMS
    for direction in DIRECTIONS
    if mesh is _ONE or form != 'naive'
  ]


def _naive(*args, row_B, **dropout):
  return reference.step_scores(*args, row=row_B, **dropout)


def _case(model, form, direction, width: int, mesh) -> Case:
  D, E = width, 2 * width
  weights = D * E + 2 * E + 1
  # Features of the marks, weights; masks and two results.
  traffic = 2 * (MARKS * D + weights) + (1 + 4 + 4) * BATCH * LENGTH
  if direction == 'gradient':
    traffic += 2 * (BATCH * LENGTH * D + weights)
  where = 'one device' if mesh is _ONE else '1 of 2 x 2 devices'
  rows, place = PartitionSpec('fsdp'), PartitionSpec('fsdp', 'sequence')
  return Case(
    operator='scoring_head',
    shape=f'{model}, {MARKS:,} marks, {where}',
    form=form,
    direction=direction,
    function=functools.partial(_program, form, direction),
    arguments=_arguments(D, E, mesh),
    flops=2.0 * MARKS * (D + 1) * E * (3 if direction == 'gradient' else 1),
    bytes=float(traffic),
    make=functools.partial(_make, D, E, mesh),
    turns=-(-MARKS // _AT_A_TIME[form]),
    mesh=mesh,
    specs=(place, *(PartitionSpec(),) * 4, place, rows, PartitionSpec()),
  )


def _program(form, direction, *args, mesh):
  """Logits and log-scores, or the gradient of a loss of both."""
  *head, mark_BT, row_B, seed = args
  if form == 'naive':
    function = _naive
  else:
    split = op.Split(mesh, ('fsdp',), ('sequence',))
    function = functools.partial(op.step_scores, kind=form, split=split)

  def scores(head):
    return function(
      *head, mark_BT, dropout_rate=_DROPOUT, seed=seed, row_B=row_B
    )

  if direction == 'forward':
    return scores(head)

  def loss(head):
    logit_BT, log_score_BT = scores(head)
    return jnp.sum(jnp.square(logit_BT) - log_score_BT)

  return jax.value_and_grad(loss)(head)


def _arguments(D: int, E: int, mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
  low = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  B, T = BATCH * mesh['fsdp'], LENGTH * mesh['sequence']
  return (
    low((B, T, D)),
    low((D, E)),
    low((E,)),
    low((E, 1)),
    low((1,)),
    jax.ShapeDtypeStruct((B, T), jnp.bool_),
    jax.ShapeDtypeStruct((B,), jnp.uint32),
    jax.ShapeDtypeStruct((), jnp.uint32),
  )


def _make(D: int, E: int, mesh, seed: int) -> tuple:
  rng = np.random.default_rng(seed)
  *head, mark, row, _ = _arguments(D, E, mesh)
  normal = [
    jnp.asarray(rng.normal(size=x.shape, scale=s), x.dtype)
    for x, s in zip(head, (1, D**-0.5, D**-0.5, E**-0.5, 1), strict=True)
  ]
  return (
    *normal,
    jnp.asarray(rng.random(mark.shape) < MARKS / (BATCH * LENGTH)),
    jnp.arange(row.size, dtype=jnp.uint32),
    jnp.uint32(seed),
  )
