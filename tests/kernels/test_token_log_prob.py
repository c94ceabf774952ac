"""Chunked log-prob and entropy against all logits at once, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.token_log_prob import op, reference
from tests import quick

B, T, D, V = 3, 13, 8, 11


def _inputs(dtype=np.float64):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(B, T, D)).astype(dtype),
    rng.normal(size=(D, V)).astype(dtype),
    rng.integers(0, V, size=(B, T)).astype(np.int32),
  )


def _numpy(hidden, kernel, target, temperature_B):
  log_prob, entropy = np.zeros((B, T)), np.zeros((B, T))
  for b in range(B):
    for t in range(T):
      logits = hidden[b, t] @ kernel / temperature_B[b]
      p = np.exp(logits - logits.max())
      p /= p.sum()
      log_prob[b, t] = np.log(p[target[b, t]])
      entropy[b, t] = -(p * np.log(p)).sum()
  return log_prob, entropy


def _gradients(function, hidden, kernel, target):
  """Values, and gradients in both inputs through both outputs at once."""
  rng = np.random.default_rng(1)
  a_BT, b_BT = rng.normal(size=(2, B, T)).astype(np.float32)

  def loss(hidden, kernel):
    log_prob, entropy = function(hidden, kernel, target)
    return jnp.sum(a_BT * log_prob + b_BT * entropy), (log_prob, entropy)

  grad = quick.jit(jax.grad(loss, (0, 1), has_aux=True))
  grads, values = grad(hidden, kernel)
  return *values, *grads


TEMPERATURES = {
  'one': 1.0,
  'scalar': 0.6,
  'per row': np.array([0.6, 1.0, 1.7]),
}


@pytest.mark.parametrize('name', TEMPERATURES)
def test_reference_is_the_formula(name):
  temperature = TEMPERATURES[name]
  temperature_B = np.broadcast_to(temperature, (B,))
  inputs = _inputs()
  with jax.enable_x64(True):
    got = reference.token_log_prob(
      *map(jnp.asarray, inputs),
      temperature=np.reshape(temperature_B, (B, 1, 1)),
    )
  want = _numpy(*inputs, temperature_B)
  np.testing.assert_allclose(got[0], want[0], atol=1e-12)
  np.testing.assert_allclose(got[1], want[1], atol=1e-12)


@pytest.mark.parametrize('name', ['scalar', 'per row'])
def test_chunked_equals_reference(name):
  """4 and 12 do not divide 13; 13, 64 and None are the unscanned path."""
  temperature = TEMPERATURES[name]
  naive_temperature = (
    np.reshape(temperature, (B, 1, 1)) if np.ndim(temperature) else temperature
  )
  with jax.enable_x64(True):
    inputs = tuple(map(jnp.asarray, _inputs()))
    want = _gradients(
      functools.partial(
        reference.token_log_prob, temperature=naive_temperature
      ),
      *inputs,
    )
    for chunk in (1, 4, 12, 13, 64, None):
      got = _gradients(
        functools.partial(
          op.token_log_prob, temperature=temperature, chunk=chunk
        ),
        *inputs,
      )
      for g, w in zip(got, want, strict=True):
        assert g.dtype == jnp.float64
        np.testing.assert_allclose(
          g, w, rtol=1e-11, atol=1e-12, err_msg=f'chunk={chunk}'
        )


@pytest.mark.parametrize('chunk', [4, None])
def test_padding_of_the_vocabulary_is_no_token(chunk):
  """Values and gradients are those without the padding, whose own are 0."""
  with jax.enable_x64(True):
    hidden, kernel, target = map(jnp.asarray, _inputs())
    want = _gradients(
      functools.partial(reference.token_log_prob, temperature=0.6),
      hidden,
      kernel,
      target,
    )
    noise = np.random.default_rng(2).normal(size=(D, 5)) * 10
    got = _gradients(
      functools.partial(
        op.token_log_prob, temperature=0.6, chunk=chunk, vocab_size=V
      ),
      hidden,
      jnp.concatenate([kernel, noise], axis=1),
      target,
    )
    for g, w in zip(got[:3], want[:3], strict=True):
      np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got[3][:, :V], want[3], rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(got[3][:, V:], 0)


def test_automatic_chunk_keeps_the_budget(monkeypatch):
  """The default chunk is the largest one within the budget of logits."""
  seen, forward = [], op.xla.forward

  def spy(*args, chunk, **options):
    seen.append(chunk)
    return forward(*args, chunk=chunk, **options)

  monkeypatch.setitem(op._PASSES, 'xla', (spy, op.xla.backward))
  for budget, chunk in ((V * 5 + 1, 5), (1, 1)):
    monkeypatch.setattr(op, '_LOGITS_BUDGET', {'cpu': budget})
    op.token_log_prob(*map(jnp.asarray, _inputs(np.float32)))
    assert seen[-1] == chunk


def test_bfloat16_inputs_give_float32_outputs():
  hidden, kernel, target = map(jnp.asarray, _inputs(np.float32))
  hidden, kernel = hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  got = _gradients(
    functools.partial(op.token_log_prob, chunk=4), hidden, kernel, target
  )
  want = _gradients(
    reference.token_log_prob,
    hidden.astype(jnp.float32),
    kernel.astype(jnp.float32),
    target,
  )
  assert [x.dtype for x in got] == ['float32'] * 2 + ['bfloat16'] * 2
  for g, w in zip(got[:2], want[:2], strict=True):
    np.testing.assert_allclose(g, w, atol=1e-4)
  for g, w in zip(got[2:], want[2:], strict=True):
    np.testing.assert_allclose(
      np.asarray(g, np.float32), w, rtol=0.02, atol=0.05
    )


def test_extreme_logits_stay_finite():
  hidden = jnp.full((1, 2, 1), 1e4)
  kernel = jnp.array([[1.0, -1.0, 0.0]])
  target = jnp.array([[0, 1]])

  def loss(hidden, kernel):
    log_prob, entropy = op.token_log_prob(hidden, kernel, target, chunk=1)
    return jnp.sum(log_prob + entropy), (log_prob, entropy)

  grad = quick.jit(jax.grad(loss, (0, 1), has_aux=True))
  grads, (log_prob, entropy) = grad(hidden, kernel)
  np.testing.assert_allclose(log_prob, [[0, -2e4]])
  np.testing.assert_allclose(entropy, [[0, 0]], atol=1e-3)
  for grad in grads:
    assert np.isfinite(np.asarray(grad)).all()
