"""Inputs of the token log-prob and, in float64, what must come out.

The gradients are written out by hand, so that no kernel is compared with the
differentiation that it replaces.
"""

import contextlib
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from kernels.token_log_prob import (
  blocks_tpu,
  op,
  pallas_gpu,
  pallas_tpu,
  pallas_tpu_backward,
)
from tests import quick


@dataclasses.dataclass(frozen=True)
class Case:
  """One shape.

  Attributes:
    shape: (B, T), D, V.
    vocab_size: columns from here on are padding; None = none are.
    hidden: dtype of the hidden states.
    head: dtype of the head.
    sharpness: the logits are that many times a normal number.
  """

  shape: tuple[tuple[int, int], int, int]
  vocab_size: int | None = None
  hidden: str = 'float32'
  head: str = 'float32'
  sharpness: float = 1


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Arrays as a kernel gets them, and the loss's weights of its results."""

  hidden_BTD: jax.Array
  kernel_DV: jax.Array
  target_BT: np.ndarray
  temperature_BT: np.ndarray
  weight_BT: np.ndarray
  entropy_weight_BT: np.ndarray


def make(case: Case, seed: int = 0) -> Inputs:
  """Inputs with targets anywhere, temperatures from 0.5 to 1.5."""
  rng = np.random.default_rng(seed)
  (B, T), D, V = case.shape
  kernel = rng.normal(size=(D, V)) * case.sharpness * D**-0.5
  return Inputs(
    jnp.asarray(rng.normal(size=(B, T, D)), case.hidden),
    jnp.asarray(kernel, case.head),
    rng.integers(0, case.vocab_size or V, size=(B, T)).astype(np.int32),
    rng.uniform(0.5, 1.5, size=(B, T)).astype(np.float32),
    *rng.normal(size=(2, B, T)).astype(np.float32),
  )


def _float64(x):
  return np.asarray(x).astype(np.float64)


def want(inputs: Inputs, vocab_size: int | None = None):
  """float64 (log_prob_BT, entropy_BT, d_hidden_BTD, d_kernel_DV)."""
  hidden = _float64(inputs.hidden_BTD)
  B, T, D = hidden.shape
  # The head is cast to the dtype of the hidden states.
  kernel = np.asarray(inputs.kernel_DV).astype(inputs.hidden_BTD.dtype)
  kernel = _float64(kernel)
  V = vocab_size or kernel.shape[1]
  log_prob, entropy = np.zeros((2, B, T))
  d_hidden, d_kernel = np.zeros_like(hidden), np.zeros_like(kernel)
  for b in range(B):
    for t in range(T):
      temperature = float(inputs.temperature_BT[b, t])
      target = inputs.target_BT[b, t]
      logits = hidden[b, t] @ kernel[:, :V] / temperature
      shifted = logits - logits.max()
      log_p = shifted - np.log(np.exp(shifted).sum())
      p = np.exp(log_p)
      log_prob[b, t] = log_p[target]
      entropy[b, t] = -(p * log_p).sum()
      d_log_prob = -p
      d_log_prob[target] += 1
      d_entropy = -p * (log_p + entropy[b, t])
      d_logits = (
        float(inputs.weight_BT[b, t]) * d_log_prob
        + float(inputs.entropy_weight_BT[b, t]) * d_entropy
      ) / temperature
      d_hidden[b, t] = kernel[:, :V] @ d_logits
      d_kernel[:, :V] += np.outer(hidden[b, t], d_logits)
  return log_prob, entropy, d_hidden, d_kernel


def run(inputs: Inputs, **options):
  """What the operator computes, in the order of `want`."""

  def loss(hidden_BTD, kernel_DV):
    log_prob, entropy = op.token_log_prob(
      hidden_BTD,
      kernel_DV,
      inputs.target_BT,
      temperature=inputs.temperature_BT,
      **options,
    )
    value = jnp.sum(
      inputs.weight_BT * log_prob + inputs.entropy_weight_BT * entropy
    )
    return value, (log_prob, entropy)

  program = quick.jit(jax.grad(loss, (0, 1), has_aux=True))
  grads, values = program(inputs.hidden_BTD, inputs.kernel_DV)
  return *values, *grads


# Of the largest number of an array. A logit's gradient is rounded to the dtype
# of the hidden states before it is summed up, and a gradient to its own.
TOLERANCE = {'float32': 5e-6, 'bfloat16': 8e-3}


def check(got, expected, dtype: str = 'float32', sharpness: float = 1):
  """Raises AssertionError unless values and gradients are as expected.

  Args:
    got: of `run`.
    expected: of `want`.
    dtype: of the hidden states.
    sharpness: of the case. Log p is a difference of numbers as large as the
      largest logit, and its absolute error is p's relative one.
  """
  for i, (g, w) in enumerate(zip(got, expected, strict=True)):
    g = _float64(g)
    np.testing.assert_array_equal(np.isfinite(g), True)
    # Values are float32 sums of products of what the inputs are.
    relative = TOLERANCE['float32' if i < 2 else dtype]
    # A logit's gradient is a difference of numbers up to 1: of one column, 0.
    scale = sharpness * max(np.max(np.abs(w), initial=0), 0.05)
    np.testing.assert_allclose(g, w, rtol=0, atol=relative * scale)


@contextlib.contextmanager
def small_blocks(tokens: int = 128, columns: int = 256, partial: int = 2**26):
  """Several blocks, tiles, slabs and rounds of the inner loops in small shapes.

  Args:
    tokens: of a TPU's block.
    columns: of a TPU's tile.
    partial: bytes that a call of the TPU's backward kernel may leave behind.
  """
  patches = [
    (blocks_tpu, {'_TOKENS': tokens, '_COLUMNS': (columns,)}),
    (blocks_tpu, {'_ROWS': 128}),
    (pallas_tpu, {'_WIDTH': 128}),
    (pallas_tpu_backward, {'_PARTIAL': partial}),
    (pallas_gpu, {'_TOKENS': 32, '_COLUMNS': 64, '_SLAB': 256, '_GROUP': 2}),
  ]
  with contextlib.ExitStack() as stack:
    for module, values in patches:
      stack.enter_context(mock.patch.multiple(module, **values))
    yield
