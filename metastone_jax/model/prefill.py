"""Long prompts read piece by piece: what one pass gives, in bounded memory.

A piece attends to the keys of everything before it, so only the caches are as
long as the prompt; activations are as long as a piece. The same numbers as
`ReflectiveModel.prefill` up to rounding.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metastone_jax.model.layers import RESIDUAL, rms_norm
from metastone_jax.model.transformer import ReflectiveModel
from metastone_jax.parallel import Sharder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
  """P prompts of S places, of which the first were read.

  Attributes:
    hidden_PD: final hidden state at the last real token, once it was read.
    feature_PD: score feature there.
    caches: (k, v) of each layer, each (P, S, K, h).
  """

  hidden_PD: jax.Array
  feature_PD: jax.Array
  caches: tuple[tuple[jax.Array, jax.Array], ...]


def open_reading(
  model: ReflectiveModel, prompts: int, places: int, sharder: Sharder
) -> Reading:
  """Nothing was read yet."""
  config = model.config
  dtype = jnp.dtype(config.dtype)
  shape = prompts, places, config.num_kv_heads, config.head_width
  empty = sharder.constrain(
    jnp.zeros(shape, dtype), 'batch', None, 'kv_heads', None
  )
  zero_PD = jnp.zeros((prompts, config.width), dtype)
  return Reading(zero_PD, zero_PD, ((empty, empty),) * config.num_layers)


def read_piece(
  model: ReflectiveModel,
  reading: Reading,
  token_PT: jax.Array,
  start: jax.Array,
  length_P: jax.Array,
  *,
  sharder: Sharder,
) -> Reading:
  """Reads the tokens at places [start, start + T).

  Args:
    model: with parameters in the compute dtype.
    reading: everything before `start`.
    token_PT: the piece of each right-padded prompt.
    start: int32 scalar.
    length_P: tokens of each whole prompt, >= 1.
    sharder: activation shardings.
  """
  config = model.config
  T = token_PT.shape[1]
  S = reading.caches[0][0].shape[1]
  segment_PS = (jnp.arange(S)[None] < length_P[:, None]).astype(jnp.int32)
  position_PT = jnp.broadcast_to(start + jnp.arange(T), token_PT.shape)
  cos, sin = model.rotation(position_PT)
  x = sharder.constrain(model.embed(token_PT), *RESIDUAL)
  feature, caches = None, []
  for index, (layer, cache) in enumerate(
    zip(model.layers(), reading.caches, strict=True)
  ):
    if index == config.split:
      feature = x
    x, cache = layer.extend(x, cos, sin, cache, start, segment_PS, sharder)
    caches.append(cache)
  # Only the last real token's, which lies in one of the pieces.
  last_P = length_P - 1 - start
  here_P1 = ((last_P >= 0) & (last_P < T))[:, None]
  index_P11 = jnp.clip(last_P, 0, T - 1)[:, None, None]

  def at_last(x_PTD, old_PD):
    new_PD = jnp.take_along_axis(x_PTD, index_P11, axis=1)[:, 0]
    return jnp.where(here_P1, new_PD, old_PD)

  hidden = rms_norm(x, model.final_norm[...], config.norm_eps)
  return Reading(
    at_last(hidden, reading.hidden_PD),
    at_last(feature, reading.feature_PD),
    tuple(caches),
  )
