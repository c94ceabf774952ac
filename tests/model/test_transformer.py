"""The model against a loop, against itself cut elsewhere, and recomputed."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metastone_jax.model import (
  ModelConfig,
  ReflectiveModel,
  abstract_params,
  init_params,
  param_axes,
)
from metastone_jax.model.layers import ScoreHead
from metastone_jax.parallel import Sharder
from tests import quick
from tests.model import naive

CONFIG = ModelConfig(
  vocab_size=23,
  width=16,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_width=6,
  feed_forward=24,
)
B, T = 2, 9
NAIVE = quick.jit(naive.forward, static_argnums=1)
NAIVE_ROW = quick.jit(naive.row_forward, static_argnums=1)


def _rows():
  rng = np.random.default_rng(1)
  token = rng.integers(0, CONFIG.vocab_size, (B, T)).astype(np.int32)
  # Row 0 is padded, row 1 holds two packed segments.
  segment = np.array([[1] * 6 + [0] * 3, [1] * 4 + [2] * 5], np.int32)
  position = np.array([range(T), [0, 1, 2, 3, 0, 1, 2, 3, 4]], np.int32)
  return token, position, segment


def _forward(config):
  @quick.jit
  def run(params, *rows):
    model = ReflectiveModel.bind(config, params)
    hidden, feature, _ = model(*rows, sharder=Sharder())
    return model.logits(hidden), feature, model.score(feature)

  return run


@pytest.mark.parametrize(
  'options',
  [
    dict(),
    dict(qkv_bias=False, qk_norm=True, tied_embeddings=True, num_kv_heads=4),
  ],
  ids=['qwen2', 'qwen3'],
)
def test_forward_is_the_loop(options):
  config = dataclasses.replace(
    CONFIG, dtype='float64', param_dtype='float64', **options
  )
  rows = _rows()
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, naive.random_params(config))
    logits, feature, score = _forward(config)(params, *rows)
    want, residuals = NAIVE(params, config, *rows)
    want_score = naive.score_head(params, residuals[-2])
  real = rows[2] != 0
  for got, oracle in (
    (logits, want),
    (feature, residuals[-2]),
    (score, want_score),
  ):
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(
      np.asarray(got)[real], np.asarray(oracle)[real], rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize('feature_layer', [1, 2])
def test_the_split_moves_the_feature_and_nothing_else(feature_layer):
  """The same layers cut at f: equal logits, the feature entering block f."""
  config = dataclasses.replace(CONFIG, feature_layer=feature_layer)
  params = naive.random_params(CONFIG)
  stacks = jax.tree.map(
    lambda a, b: np.concatenate([a, b]), params['low'], params['high']
  )
  params['low'] = jax.tree.map(lambda x: x[:feature_layer], stacks)
  params['high'] = jax.tree.map(lambda x: x[feature_layer:], stacks)
  rows = _rows()
  logits, feature, _ = _forward(config)(params, *rows)
  want, residuals = NAIVE(params, config, *rows)
  real = rows[2] != 0
  np.testing.assert_allclose(logits[real], want[real], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    feature[real], residuals[feature_layer][real], rtol=1e-4, atol=1e-4
  )


LONG = dataclasses.replace(CONFIG, num_layers=6, feed_forward=64)


@functools.cache
def _trained(**options):
  """One compiled loss and gradient: its results and its temporary bytes."""
  config = dataclasses.replace(LONG, **options)
  rng = np.random.default_rng(1)
  B, T = 2, 64
  token = rng.integers(0, 23, (B, T)).astype(np.int32)
  position = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  segment = (position < np.array([[T], [40]])).astype(np.int32)

  def loss(params):
    model = ReflectiveModel.bind(config, params)
    hidden, feature, _ = model(token, position, segment, sharder=Sharder())
    logits, score = model.logits(hidden), model.score(feature)
    real = (segment != 0).astype(logits.dtype)
    value = jnp.sum(jnp.sin(logits) * real[..., None])
    value += jnp.sum(jnp.sin(score) * real)
    return value, (logits, feature, score)

  params = naive.random_params(config)
  run = quick.jit(jax.value_and_grad(loss, has_aux=True))
  compiled = run.lower(params).compile()
  (value, (logits, feature, score)), grads = compiled(params)
  return types.SimpleNamespace(
    value=value,
    logits=logits,
    feature=feature,
    score=score,
    grads=grads,
    temporary=compiled.memory_analysis().temp_size_in_bytes,
  )


# 'offload' moves block inputs to the host's memory and back: on a CPU, whose
# memory that is, it saves what 'full' saves.
@pytest.mark.parametrize('remat', ['full', 'dots', 'attention', 'offload'])
def test_recomputation_changes_memory_and_nothing_else(remat):
  want, got = _trained(), _trained(remat=remat)
  np.testing.assert_allclose(got.value, want.value, rtol=1e-6)
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5),
    got.grads,
    want.grads,
  )
  share = {'full': 0.5, 'dots': 0.9, 'attention': 0.6, 'offload': 0.5}[remat]
  assert got.temporary < share * want.temporary


def test_bfloat16_is_close_to_float32():
  want, got = _trained(), _trained(dtype='bfloat16')
  assert got.feature.dtype == jnp.bfloat16  # activations
  assert got.logits.dtype == got.score.dtype == jnp.float32  # for the losses
  for x, wide in ((got.logits, want.logits), (got.score, want.score)):
    x, wide = np.asarray(x)[0], np.asarray(wide)[0]  # row 0 has no padding
    error = np.sqrt(np.mean((x - wide) ** 2) / np.mean(wide**2))
    assert error < 0.05, error
  for leaf in jax.tree.leaves(got.grads):
    assert leaf.dtype == jnp.float32  # of the masters
    assert np.isfinite(np.asarray(leaf)).all()


def test_decoding_token_by_token_is_the_whole_sequence():
  """prefill and decode give the hidden state and feature of `__call__`."""
  config = dataclasses.replace(CONFIG, dtype='float64', param_dtype='float64')
  P, N, S, R = 2, 2, 4, 3
  length_P = np.array([4, 2], np.int32)
  rng = np.random.default_rng(2)
  prompt_PS = rng.integers(0, 23, (P, S)).astype(np.int32)
  token_PNR = rng.integers(0, 23, (P, N, R)).astype(np.int32)

  @quick.jit
  def run(params):
    model = ReflectiveModel.bind(config, params)
    hidden, feature, caches = model.prefill(
      prompt_PS, length_P, slots=P * N, columns=R, sharder=Sharder()
    )
    hiddens, features = [hidden[:, None]], [feature[:, None]]
    in_groups = lambda x: x.reshape(P, N, -1)  # noqa: E731
    layers = model.layers()
    for r in range(R):
      hidden, feature, caches = model.decode(
        token_PNR[:, :, r].reshape(-1),
        jnp.repeat(length_P + r, N),
        caches,
        jnp.int32(r),
        jnp.arange(S)[None] < length_P[:, None],
        jnp.broadcast_to(jnp.arange(R) <= r, (P * N, R)),
        layers=layers,
        sharder=Sharder(),
      )
      hiddens.append(in_groups(hidden))
      features.append(in_groups(feature))
    return [model.logits(x) for x in hiddens], features

  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, naive.random_params(config))
    logits, features = run(params)
    for p in range(P):
      for n in range(N):
        row = np.concatenate([prompt_PS[p, : length_P[p]], token_PNR[p, n]])
        want, residuals = NAIVE_ROW(params, config, row)
        for r in range(R + 1):
          at = length_P[p] - 1 + r
          m = 0 if r == 0 else n
          np.testing.assert_allclose(logits[r][p, m], want[at], rtol=1e-9)
          np.testing.assert_allclose(
            features[r][p, m], residuals[-2][at], rtol=1e-9
          )


def test_every_parameter_has_logical_axes():
  for options in (dict(), dict(qk_norm=True, tied_embeddings=True)):
    config = dataclasses.replace(CONFIG, **options)
    shapes = abstract_params(config)
    axes = param_axes(config)
    ranks = jax.tree.map(lambda x: len(x.shape), shapes)
    assert ranks == jax.tree.map(
      len, axes, is_leaf=lambda x: isinstance(x, tuple)
    )


def test_init_is_what_abstract_params_promises():
  config = dataclasses.replace(CONFIG, param_dtype='bfloat16')
  made = jax.eval_shape(lambda k: init_params(config, k), jax.random.key(0))
  assert made == abstract_params(config)
  zero = dataclasses.replace(CONFIG, score_init='zero')
  head = nnx.to_pure_dict(nnx.state(ScoreHead(zero, rngs=nnx.Rngs(3))))
  assert not np.asarray(head['output_kernel']).any()
  assert not np.asarray(head['output_bias']).any()
  bound = CONFIG.width**-0.5
  for name in ('hidden_kernel', 'hidden_bias'):
    assert 0.5 * bound < np.abs(head[name]).max() <= bound
