"""The score head on marks in plain XLA: chunks of slots, as many as there are.

The loops' trip count is data, so work follows the number of marks and one
program serves any. Each chunk is gathered, and recomputed in the backward pass:
hidden activations of one chunk are all that exists at a time. Letters as in
`marks`; C slots of a chunk.
"""

import jax
import jax.numpy as jnp

from kernels.scoring_head import dropout
from kernels.scoring_head.marks import Slots


def logits(
  feature_ND: jax.Array,
  weights: tuple[jax.Array, ...],
  hash_N: jax.Array | None,
  slots: Slots,
  *,
  rate: float,
  chunk: int,
) -> jax.Array:
  """(N,) logits, float32 or better; 0 where there is no mark.

  Args:
    feature_ND: features.
    weights: the head's four arrays, of the features' dtype.
    hash_N: `dropout.place_hash`; None without dropout.
    slots: `marks.slots`.
    rate: share of hidden units dropped.
    chunk: slots at a time.
  """
  chunks = _Chunks(feature_ND, weights, hash_N, slots, rate, chunk)

  def body(i, logit_N):
    place_C, _, hidden_CE = chunks.hidden(i)
    logit_C = jnp.sum(hidden_CE * chunks.output_E, 1) + chunks.output_bias
    return logit_N.at[place_C].set(logit_C, mode='drop')

  logit_N = jnp.zeros(feature_ND.shape[0], chunks.acc)
  return jax.lax.fori_loop(0, chunks.count, body, logit_N)


def gradients(
  feature_ND: jax.Array,
  weights: tuple[jax.Array, ...],
  hash_N: jax.Array | None,
  slots: Slots,
  grad_N: jax.Array,
  *,
  rate: float,
  chunk: int,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """Gradients of the features, in their dtype, and of the weights, float32.

  Args:
    feature_ND: as for `logits`, and so on.
    weights: as for `logits`.
    hash_N: as for `logits`.
    slots: as for `logits`.
    grad_N: gradient of the logits, 0 where there is no mark.
    rate: as for `logits`.
    chunk: as for `logits`.
  """
  chunks = _Chunks(feature_ND, weights, hash_N, slots, rate, chunk)
  acc, dtype = chunks.acc, feature_ND.dtype
  grad_N = grad_N.astype(acc)
  dot = lambda *args: jnp.einsum(*args, preferred_element_type=acc)  # noqa: E731

  def body(i, grads):
    feature, kernel, bias, output = grads
    place_C, feature_CD, hidden_CE = chunks.hidden(i)
    grad_C = grad_N.at[place_C].get(mode='fill', fill_value=0)
    # A unit that is dropped or not above 0 is 0 and passes nothing back.
    grad_CE = grad_C[:, None] * chunks.output_E / (1 - rate)
    grad_CE = jnp.where(hidden_CE > 0, grad_CE, 0)
    low_CE = grad_CE.astype(dtype)
    grad_CD = dot('CE,DE->CD', low_CE, weights[0]).astype(dtype)
    return (
      feature.at[place_C].set(grad_CD, mode='drop'),
      kernel + dot('CD,CE->DE', feature_CD, low_CE),
      bias + grad_CE.sum(0),
      output + jnp.sum(grad_C[:, None] * hidden_CE, 0),
    )

  zeros = (jnp.zeros_like(w, acc) for w in (*weights[:2], chunks.output_E))
  feature, kernel, bias, output = jax.lax.fori_loop(
    0, chunks.count, body, (jnp.zeros_like(feature_ND), *zeros)
  )
  return feature, (kernel, bias, output[:, None], grad_N.sum()[None])


class _Chunks:
  """What both loops share: slots cut into chunks, and one chunk's hidden."""

  def __init__(self, feature_ND, weights, hash_N, slots, rate, chunk):
    N = feature_ND.shape[0]
    self.acc = jnp.promote_types(feature_ND.dtype, jnp.float32)
    self._size = max(1, min(N, chunk))
    self.count = -(-slots.count // self._size)
    # Slots without a mark read zeros and write nowhere.
    self._place_S = jnp.pad(
      slots.place_S, (0, -N % self._size), constant_values=N
    )
    self._feature_ND, self._hash_N, self._rate = feature_ND, hash_N, rate
    self._kernel_DE, self._bias_E = weights[0], weights[1].astype(self.acc)
    self.output_E = weights[2][:, 0].astype(self.acc)
    self.output_bias = weights[3][0].astype(self.acc)

  def hidden(self, i):
    """Places, features and hidden activations, behind dropout, of chunk i."""
    place_C = jax.lax.dynamic_slice(
      self._place_S, (i * self._size,), (self._size,)
    )
    feature_CD = self._feature_ND.at[place_C].get(mode='fill', fill_value=0)
    hidden_CE = jnp.einsum(
      'CD,DE->CE',
      feature_CD,
      self._kernel_DE,
      preferred_element_type=self.acc,
    )
    hidden_CE = jax.nn.relu(hidden_CE + self._bias_E)
    if self._hash_N is not None:
      hash_C = self._hash_N.at[place_C].get(mode='fill', fill_value=0)
      keep_CE = dropout.keep_units(
        hash_C[:, None],
        jnp.arange(hidden_CE.shape[1], dtype=jnp.uint32),
        self._rate,
      )
      hidden_CE = jnp.where(keep_CE, hidden_CE / (1 - self._rate), 0)
    return place_C, feature_CD, hidden_CE
