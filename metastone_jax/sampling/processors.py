"""Logit processors: small frozen dataclasses, logits in and logits out.

Static under jit, so a strategy is part of the program. They see logits over the
temperature; a token they set to -inf cannot be drawn. Nothing sorts the
vocabulary: thresholds of top-p are found by bisection on the probability.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

# Halvings of [0, max p]: below float32 resolution after 32.
_BISECTIONS = 32


class Processor(Protocol):
  """Anything hashable with this call."""

  def __call__(
    self, logits_BV: jax.Array, seen_BV: jax.Array | None
  ) -> jax.Array:
    """Processes logits.

    Args:
      logits_BV: over the temperature.
      seen_BV: bool, tokens of the prompt and of what is written so far; None
        unless `SamplingConfig.repetition_penalty` is on.
    """


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
  """Divides positive logits of seen tokens, multiplies negative ones.

  Keskar et al. 2019 (CTRL), as transformers and vLLM do it; released default
  1.05. It commutes with the temperature.

  Attributes:
    penalty: above 1 discourages what was seen.
  """

  penalty: float

  def __call__(self, logits_BV, seen_BV):
    """See `Processor`."""
    punished = jnp.where(
      logits_BV > 0, logits_BV / self.penalty, logits_BV * self.penalty
    )
    return jnp.where(seen_BV, punished, logits_BV)


@dataclasses.dataclass(frozen=True)
class BadTokens:
  """Tokens that are never drawn.

  Attributes:
    ids: at least one.
  """

  ids: tuple[int, ...]

  def __call__(self, logits_BV, seen_BV):
    """See `Processor`."""
    del seen_BV
    token_V = jnp.arange(logits_BV.shape[-1])
    bad_V = jnp.any(token_V == jnp.asarray(self.ids)[:, None], axis=0)
    return jnp.where(bad_V, -jnp.inf, logits_BV)


@dataclasses.dataclass(frozen=True)
class TopK:
  """The k most likely tokens, and those tied with the last of them.

  Attributes:
    k: at least 1.
  """

  k: int

  def __call__(self, logits_BV, seen_BV):
    """See `Processor`."""
    del seen_BV
    if self.k >= logits_BV.shape[-1]:
      return logits_BV
    kth = jax.lax.top_k(logits_BV, self.k)[0][..., -1:]
    return jnp.where(logits_BV >= kth, logits_BV, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopP:
  """The smallest set of most likely tokens with this mass, and ties.

  Attributes:
    p: in (0, 1).
  """

  p: float

  def __call__(self, logits_BV, seen_BV):
    """See `Processor`."""
    del seen_BV
    p_BV = jax.nn.softmax(logits_BV, axis=-1)
    return jnp.where(p_BV >= top_p_threshold(p_BV, self.p), logits_BV, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class MinP:
  """Tokens at least `p` times as likely as the most likely one.

  Nguyen et al. 2024.

  Attributes:
    p: in (0, 1].
  """

  p: float

  def __call__(self, logits_BV, seen_BV):
    """See `Processor`."""
    del seen_BV
    floor = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(self.p)
    return jnp.where(logits_BV >= floor, logits_BV, -jnp.inf)


def top_p_threshold(p_V: jax.Array, top_p: float) -> jax.Array:
  """The largest t with sum(p[p >= t]) >= top_p, over the last axis.

  Tokens tied at the threshold are all kept.

  Args:
    p_V: probabilities (..., V).
    top_p: mass to reach, in (0, 1).

  Returns:
    (..., 1) thresholds; keep p >= t.
  """
  high = jnp.max(p_V, axis=-1, keepdims=True)
  # Invariant: mass(low) >= top_p. high starts just above every probability.
  low, high = jnp.zeros_like(high), high * (1 + 1e-6) + 1e-30

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    mass = jnp.sum(jnp.where(p_V >= middle, p_V, 0), axis=-1, keepdims=True)
    enough = mass >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
  return low
