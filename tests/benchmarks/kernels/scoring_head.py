"""Cases of the score head: 4,096 marks among 65,536 positions of a device.

`naive` scores every position at once, the other forms the marks alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.scoring_head import op, reference
from metastone_jax.model import preset
from tests.benchmarks.kernels.case import Case

BATCH, LENGTH, MARKS = 8, 8192, 4096
FORMS = ('naive', 'xla', 'pallas_tpu', 'pallas_gpu')
DIRECTIONS = ('forward', 'gradient')
_DROPOUT = 0.5


def cases(model: str) -> list[Case]:
  """All forms and directions of '1p5b', '7b' or '32b'."""
  width = preset(model.replace('p', '.')).width
  functions = {
    form: functools.partial(op.step_scores, kind=form) for form in FORMS[1:]
  }
  functions['naive'] = _naive
  return [
    _case(f'{model}, {MARKS:,} marks', form, direction, functions[form], width)
    for form in FORMS
    for direction in DIRECTIONS
  ]


def _naive(*args, row_B, **dropout):
  return reference.step_scores(*args, row=row_B, **dropout)


def _case(shape, form, direction, function, width: int) -> Case:
  D, E = width, 2 * width
  weights = D * E + 2 * E + 1
  # Features of the marks, weights; masks and two results.
  traffic = 2 * (MARKS * D + weights) + (1 + 4 + 4) * BATCH * LENGTH
  if direction == 'gradient':
    traffic += 2 * (BATCH * LENGTH * D + weights)
  return Case(
    operator='scoring_head',
    shape=shape,
    form=form,
    direction=direction,
    function=functools.partial(_program, function, direction),
    arguments=_arguments(D, E),
    flops=2.0 * MARKS * (D + 1) * E * (3 if direction == 'gradient' else 1),
    bytes=float(traffic),
    make=functools.partial(_make, D, E),
  )


def _program(function, direction, *args):
  """Logits and log-scores, or the gradient of a loss of both."""
  *head, mark_BT, row_B, seed = args

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


def _arguments(D: int, E: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  low = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  return (
    low((BATCH, LENGTH, D)),
    low((D, E)),
    low((E,)),
    low((E, 1)),
    low((1,)),
    jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.bool_),
    jax.ShapeDtypeStruct((BATCH,), jnp.uint32),
    jax.ShapeDtypeStruct((), jnp.uint32),
  )


def _make(D: int, E: int, seed: int) -> tuple:
  rng = np.random.default_rng(seed)
  *head, _, _, _ = _arguments(D, E)
  normal = [
    jnp.asarray(rng.normal(size=x.shape, scale=s), x.dtype)
    for x, s in zip(head, (1, D**-0.5, D**-0.5, E**-0.5, 1), strict=True)
  ]
  mark = np.zeros(BATCH * LENGTH, bool)
  mark[rng.choice(mark.size, MARKS, replace=False)] = True
  return (
    *normal,
    jnp.asarray(mark.reshape(BATCH, LENGTH)),
    jnp.arange(BATCH, dtype=jnp.uint32),
    jnp.uint32(seed),
  )
