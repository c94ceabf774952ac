"""What is compiled: a program of a recipe, and abstract arrays for it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from metastone_jax.compile_check import accounting
from metastone_jax.model import (
  ModelConfig,
  abstract_params,
  param_axes,
  unstack_params,
)
from metastone_jax.parallel import Sharder


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a recipe on a machine.

  Attributes:
    name: 'update', 'log_prob', 'prefill' or 'decode'.
    lower: traces and lowers it.
    devices: of its mesh.
    work: of one run, per device, without the bytes between devices.
    times: runs in one iteration.
    attention: kind of attention in it.
    resident: bytes a device keeps beside it while it runs.
    turns: of its decode loop in one run; None = it has none.
    full_turn_bytes: that a turn has to move when all caches are full: weights
      and caches once.
  """

  name: str
  lower: Callable[[], Any]
  devices: int
  work: accounting.Work
  times: float
  attention: str
  resident: float
  turns: int | None = None
  full_turn_bytes: float = 0.0


def struct(sharder: Sharder, shape, dtype, *axes) -> jax.ShapeDtypeStruct:
  """An abstract array, split by its logical axes."""
  return jax.ShapeDtypeStruct(
    shape, dtype, sharding=sharder.sharding(axes, shape)
  )


def compute_params(config: ModelConfig, sharder: Sharder, *, unstacked: bool):
  """Parameters in the compute dtype, as decoding or training holds them."""
  shapes = abstract_params(config)
  if unstacked:
    shapes = jax.eval_shape(functools.partial(unstack_params, config), shapes)
  return jax.tree.map(
    lambda x, axes: struct(sharder, x.shape, config.dtype, *axes),
    shapes,
    param_axes(config, unstacked=unstacked),
  )
