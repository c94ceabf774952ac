"""Attention against a loop, and decoding against attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import op
from kernels.decode_attention import decode_attention
from tests import quick

B, T, H, K, h = 2, 7, 4, 2, 6


def _qkv(seed=0, shape=(B, T)):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(*shape, H, h)),
    rng.normal(size=(*shape, K, h)),
    rng.normal(size=(*shape, K, h)),
  )


def _loop(q, k, v, segment):
  """Query by query and head by head; NaN where the query is padding."""
  out = np.full(q.shape, np.nan)
  for b in range(B):
    for t in range(T):
      if segment[b, t] == 0:
        continue
      read = [s for s in range(t + 1) if segment[b, s] == segment[b, t]]
      for i in range(H):
        kv = i // (H // K)
        score = np.array([q[b, t, i] @ k[b, s, kv] for s in read]) / h**0.5
        p = np.exp(score - score.max())
        p /= p.sum()
        out[b, t, i] = sum(
          p_s * v[b, s, kv] for p_s, s in zip(p, read, strict=True)
        )
  return out


SEGMENTS = {
  'full': [[1] * 7, [1] * 7],
  'padded': [[1] * 5 + [0] * 2, [1] * 1 + [0] * 6],
  'packed': [[1, 1, 2, 2, 2, 3, 0], [4, 4, 4, 1, 1, 1, 1]],
}


@pytest.mark.parametrize('name', SEGMENTS)
def test_attention_is_the_loop(name):
  segment = np.array(SEGMENTS[name], np.int32)
  q, k, v = _qkv()
  with jax.enable_x64(True):
    got = quick.jit(op.attention)(*map(jnp.asarray, (q, k, v, segment)))
    assert got.dtype == jnp.float64
  want = _loop(q, k, v, segment)
  real = segment != 0
  np.testing.assert_allclose(np.asarray(got)[real], want[real], rtol=1e-12)
  assert np.isfinite(np.asarray(got)).all()  # padding poisons nothing


def test_attention_gradient_is_the_loops():
  segment = np.array(SEGMENTS['padded'], np.int32)
  args = _qkv()
  rng = np.random.default_rng(5)
  weight = rng.normal(size=(B, T, H, h)) * (segment != 0)[..., None, None]

  def numpy_loss(q, k, v):
    return np.nansum(weight * _loop(q, k, v, segment))

  with jax.enable_x64(True):
    grads = quick.jit(
      jax.grad(
        lambda *x: jnp.sum(weight * op.attention(*x, jnp.asarray(segment))),
        (0, 1, 2),
      )
    )(*map(jnp.asarray, args))
  for i, grad in enumerate(grads):
    step = rng.normal(size=args[i].shape)
    up, down = (
      numpy_loss(*args[:i], args[i] + s * 1e-6 * step, *args[i + 1 :])
      for s in (1, -1)
    )
    np.testing.assert_allclose(
      np.sum(np.asarray(grad) * step), (up - down) / 2e-6, rtol=1e-6
    )


@pytest.mark.parametrize('dtype', ['float64', 'bfloat16'])
def test_decode_is_attention_over_the_concatenation(dtype):
  """Own slots may have holes (rows end at different turns): a mask says so."""
  tolerance = {'float64': 1e-12, 'bfloat16': 3e-2}[dtype]
  P, N, S, R = 2, 3, 5, 4
  rng = np.random.default_rng(1)
  prompt_length = [5, 2]
  own_valid = rng.random((P, N, R)) < 0.6
  own_valid[..., -1] = True  # the token that asks
  own_valid[0, 0] = [False, False, False, True]
  with jax.enable_x64(dtype == 'float64'):
    q = jnp.asarray(rng.normal(size=(P, N, H, h)), dtype)
    prompt_k, prompt_v = (
      jnp.asarray(rng.normal(size=(P, S, K, h)), dtype) for _ in range(2)
    )
    own_k, own_v = (
      jnp.asarray(rng.normal(size=(P, N, R, K, h)), dtype) for _ in range(2)
    )
    prompt_valid = np.arange(S)[None] < np.array(prompt_length)[:, None]
    got = quick.jit(decode_attention)(
      q.reshape(P * N, H, h),
      jnp.transpose(prompt_k, (0, 2, 3, 1)),
      jnp.transpose(prompt_v, (0, 2, 1, 3)),
      jnp.transpose(own_k, (0, 1, 3, 4, 2)).reshape(P * N, K, h, R),
      jnp.transpose(own_v, (0, 1, 3, 2, 4)).reshape(P * N, K, R, h),
      jnp.asarray(prompt_valid),
      jnp.asarray(own_valid).reshape(P * N, R),
    ).reshape(P, N, H, h)
    assert got.dtype == jnp.dtype(dtype)
    # One row a candidate: the prompt, then the own slots; what may not be read
    # is padding, and the query that counts is the last (causal: it reads all).
    rows = P * N
    keys, values = (
      jnp.concatenate(
        [
          jnp.broadcast_to(prompt[:, None], (P, N, S, K, h)).reshape(
            rows, S, K, h
          ),
          own.reshape(rows, R, K, h),
        ],
        axis=1,
      )
      for prompt, own in ((prompt_k, own_k), (prompt_v, own_v))
    )
    valid = np.concatenate(
      [
        np.broadcast_to(prompt_valid[:, None], (P, N, S)),
        own_valid,
      ],
      axis=-1,
    ).reshape(rows, S + R)
    query = jnp.tile(q.reshape(rows, 1, H, h), (1, S + R, 1, 1))
    want = quick.jit(op.attention)(
      query, keys, values, jnp.asarray(valid, jnp.int32)
    )[:, -1]
    np.testing.assert_allclose(
      np.asarray(got.astype(jnp.float64 if dtype == 'float64' else 'float32')),
      np.asarray(want.reshape(P, N, H, h), np.float64),
      rtol=tolerance,
      atol=tolerance,
    )
