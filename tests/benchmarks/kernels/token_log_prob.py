"""Cases of the token log-prob: 32,768 tokens a device, 152,064 columns.

The head is the float32 master, the hidden states are bfloat16. `naive` has all
logits at once. The cases of a slice are what one of 2 x 2 devices does: rows
over fsdp, the head's rows over fsdp and its columns over tensor; the head
travels in bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kernels.token_log_prob import Split, reference, token_log_prob
from metastone_jax.model import preset
from tests.benchmarks.kernels.case import Case

BATCH, LENGTH, COLUMNS = 8, 4096, 152_064  # of a device
FORMS = ('xla', 'naive', 'pallas_tpu', 'pallas_gpu')
DIRECTIONS = ('forward', 'gradient')
_ENTROPY_WEIGHT = 1e-3
_ONE, _SLICE = {'fsdp': 1, 'tensor': 1}, {'fsdp': 2, 'tensor': 2}


def cases(model: str) -> list[Case]:
  """All forms and directions, on one device and as a part of 2 x 2.

  Args:
    model: '1p5b', '7b' or '32b'.
  """
  config = preset(model.replace('p', '.'))
  return [
    _case(model, config.width, config.vocab_size, mesh, form, direction)
    for mesh in (_ONE, _SLICE)
    for form in FORMS
    for direction in DIRECTIONS
    if mesh is _ONE or form != 'naive'
  ]


def _case(model, D, vocab_size, mesh, form, direction) -> Case:
  fsdp, tensor = mesh.values()
  B, V = BATCH * fsdp, COLUMNS // tensor
  arguments = (
    jax.ShapeDtypeStruct((B, LENGTH, D), jnp.bfloat16),
    jax.ShapeDtypeStruct((D, COLUMNS), jnp.float32),
    jax.ShapeDtypeStruct((B, LENGTH), jnp.int32),
  )
  tokens = BATCH * LENGTH
  # The numbers of a token are nothing beside its hidden state.
  traffic = 2.0 * tokens * D + 4.0 * D // fsdp * V
  passes = {'forward': 1, 'gradient': 2}[direction]
  where = 'one device' if mesh is _ONE else '1 of 2 x 2 devices'
  return Case(
    operator='token_log_prob',
    shape=f'{model}, {where}',
    form=form,
    direction=direction,
    function=functools.partial(_program, form, direction, vocab_size),
    arguments=arguments,
    flops=2.0 * tokens * D * V * (2 * passes - 1),
    bytes=passes * traffic,
    make=functools.partial(_make, arguments, vocab_size),
    mesh=mesh,
    specs=(
      PartitionSpec('fsdp'),
      PartitionSpec('fsdp', 'tensor'),
      PartitionSpec('fsdp'),
    ),
  )


def _program(form, direction, vocab_size, *arrays, mesh):
  hidden_BTD, kernel_DV, target_BT = arrays

  def loss(hidden_BTD, kernel_DV):
    if form == 'naive':
      found = reference.token_log_prob(
        hidden_BTD, kernel_DV.astype(hidden_BTD.dtype), target_BT
      )
    else:
      found = token_log_prob(
        hidden_BTD,
        kernel_DV,
        target_BT,
        vocab_size=vocab_size,
        split=Split(mesh, ('fsdp',), (), ('fsdp',), ('tensor',)),
        kind=form,
      )
    if direction == 'forward':
      return found
    log_prob_BT, entropy_BT = found
    return -jnp.sum(log_prob_BT + _ENTROPY_WEIGHT * entropy_BT)

  if direction == 'forward':
    return loss(hidden_BTD, kernel_DV)
  return jax.value_and_grad(loss, (0, 1))(hidden_BTD, kernel_DV)


def _make(arguments, vocab_size, seed: int) -> tuple:
  rng = np.random.default_rng(seed)
  hidden, kernel, target = arguments
  keys = jax.random.split(jax.random.key(seed))
  return (
    jax.random.normal(keys[0], hidden.shape, hidden.dtype),
    jax.random.normal(keys[1], kernel.shape, kernel.dtype)
    * kernel.shape[0] ** -0.5,
    jnp.asarray(rng.integers(0, vocab_size, size=target.shape), jnp.int32),
  )
