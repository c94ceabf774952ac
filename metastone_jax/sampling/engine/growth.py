"""Larger slots and prompt stores, with what the smaller ones hold."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from metastone_jax.sampling.slots import Slots


def _padded(x: jax.Array, axis: int, extra: int) -> jax.Array:
  """Zeros behind an axis."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (0, extra)
  return jnp.pad(x, pads)


def widen(slots: Slots, columns: int) -> Slots:
  """More columns in the own caches; the oldest comes first."""
  R = slots.own_valid_BR.shape[1]

  def wider(x, axis):
    return _padded(jnp.roll(x, -slots.column, axis), axis, columns - R)

  return dataclasses.replace(
    slots,
    column=jnp.asarray(R, jnp.int32),
    caches=tuple(
      dataclasses.replace(
        c,
        own_k_BKhR=wider(c.own_k_BKhR, 3),
        own_v_BKRh=wider(c.own_v_BKRh, 2),
      )
      for c in slots.caches
    ),
    own_valid_BR=wider(slots.own_valid_BR, 1),
  )


def lengthen(slots: Slots, positions: int) -> Slots:
  """More positions in every row of the prompt store."""
  extra = positions - slots.prompt_valid_PS.shape[1]

  return dataclasses.replace(
    slots,
    caches=tuple(
      dataclasses.replace(
        c,
        prompt_k_PKhS=_padded(c.prompt_k_PKhS, 3, extra),
        prompt_v_PKSh=_padded(c.prompt_v_PKSh, 2, extra),
      )
      for c in slots.caches
    ),
    prompt_valid_PS=_padded(slots.prompt_valid_PS, 1, extra),
  )


def add_rows(
  slots: Slots, prompts: Any, num_prompts: int, shards: int
) -> tuple[Slots, Any]:
  """More rows in the prompt store; those that are there stay on their device.

  Args:
    slots: with the prompts' caches.
    prompts: what else a row has, any tree.
    num_prompts: rows wanted.
    shards: devices that hold equally many of them.
  """

  def more(x, fill=0):
    x = x.reshape(shards, -1, *x.shape[1:])
    extra = num_prompts // shards - x.shape[1]
    pads = [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pads, constant_values=fill)
    return x.reshape(num_prompts, *x.shape[2:])

  slots = dataclasses.replace(
    slots,
    caches=tuple(
      dataclasses.replace(
        c,
        prompt_k_PKhS=more(c.prompt_k_PKhS),
        prompt_v_PKSh=more(c.prompt_v_PKSh),
      )
      for c in slots.caches
    ),
    prompt_valid_PS=more(slots.prompt_valid_PS, True),
  )
  return slots, jax.tree.map(more, prompts)
