"""The score head, and dropout that no batch make-up can change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.scoring_head import dropout, op, reference
from tests import quick

B, T, D = 3, 11, 6
E = 2 * D


def _inputs(seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(B, T, D)),
    rng.normal(size=(D, E)),
    rng.normal(size=E),
    rng.normal(size=(E, 1)),
    rng.normal(size=1),
  )


def _numpy(feature, w1, b1, w2, b2, keep=None, rate=0.0):
  hidden = np.maximum(feature @ w1 + b1, 0)
  if keep is not None:
    hidden = np.where(keep, hidden / (1 - rate), 0)
  return (hidden @ w2 + b2)[..., 0]


@pytest.mark.parametrize('seed', [None, 7])
def test_reference_is_the_formula(seed):
  """Values, and gradients against central differences of numpy's form."""
  args, rate = _inputs(), 0.4
  row = np.array([5, 0, 9], np.uint32)
  with jax.enable_x64(True):
    options, keep = {}, None
    if seed is not None:
      options = dict(
        dropout_rate=rate, seed=jnp.uint32(seed), row=jnp.asarray(row)
      )
      keep = np.asarray(
        dropout.keep_mask(
          jnp.uint32(seed),
          jnp.asarray(row),
          jnp.arange(T, dtype=jnp.uint32),
          E,
          rate,
        )
      )

    @quick.jit
    def gradients(args):
      def loss(args):
        logit = reference.scoring_head(*args, **options)
        return jnp.sum(jnp.sin(logit)), logit

      return jax.grad(loss, has_aux=True)(args)

    grads, logit = gradients(tuple(map(jnp.asarray, args)))
    np.testing.assert_allclose(logit, _numpy(*args, keep, rate), rtol=1e-12)
  rng = np.random.default_rng(3)
  for i, grad in enumerate(grads):
    step = rng.normal(size=args[i].shape)
    moved = [
      list(args[:i]) + [args[i] + s * 1e-6 * step] + list(args[i + 1 :])
      for s in (1, -1)
    ]
    up, down = (np.sin(_numpy(*m, keep, rate)).sum() for m in moved)
    np.testing.assert_allclose(
      np.sum(np.asarray(grad) * step), (up - down) / 2e-6, rtol=1e-6
    )


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_keep_rate(rate):
  rows, positions, width = 8, 64, 128
  keep = np.asarray(
    dropout.keep_mask(
      jnp.uint32(1),
      jnp.arange(rows, dtype=jnp.uint32),
      jnp.arange(positions, dtype=jnp.uint32),
      width,
      rate,
    )
  )
  n = keep.size
  five_sigma = 5 * (rate * (1 - rate) / n) ** 0.5
  assert abs(keep.mean() - (1 - rate)) < five_sigma
  # No row, position or unit is special, and neighbours are not correlated.
  for axes, count in (((1, 2), rows), ((0, 2), positions), ((0, 1), width)):
    sigma = (rate * (1 - rate) * count / n) ** 0.5
    assert np.abs(keep.mean(axes) - (1 - rate)).max() < 5 * sigma
  centred = keep - (1 - rate)
  for a, b in (
    (centred[1:], centred[:-1]),
    (centred[:, 1:], centred[:, :-1]),
    (centred[..., 1:], centred[..., :-1]),
  ):
    correlation = (a * b).mean() / (rate * (1 - rate))
    assert abs(correlation) < 5 / n**0.5


def test_a_new_seed_gives_a_new_mask():
  position = jnp.arange(16, dtype=jnp.uint32)
  row = jnp.arange(4, dtype=jnp.uint32)
  one, two = (
    np.asarray(dropout.keep_mask(jnp.uint32(s), row, position, 64, 0.5))
    for s in (0, 1)
  )
  assert 0.45 < (one == two).mean() < 0.55


def test_a_row_is_the_same_in_any_batch():
  feature, *weights = map(jnp.asarray, _inputs())

  @quick.jit
  def score(feature, row_B):
    return op.step_scores(
      feature,
      *weights,
      jnp.ones(feature.shape[:2], bool),
      dropout_rate=0.5,
      seed=jnp.uint32(3),
      row_B=row_B,
    )[0]

  row_B = np.array([4, 1, 7], np.uint32)
  all_rows = np.asarray(score(feature, row_B))
  some_rows = score(feature[1:], row_B[1:])
  np.testing.assert_allclose(some_rows, all_rows[1:], rtol=1e-6)
  assert not np.allclose(score(feature, row_B + 1), all_rows)


def test_marks_without_a_seed_are_every_place():
  args = tuple(map(jnp.asarray, _inputs()))
  mark = jnp.arange(B * T).reshape(B, T) % 3 > 0
  logit, score = op.step_scores(*args, mark, dropout_rate=0.5)
  want = np.where(mark, op.scoring_head(*args), 0)
  np.testing.assert_allclose(logit, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    score, np.where(mark, -np.logaddexp(0, -want), 0), rtol=1e-5, atol=1e-5
  )


def test_bfloat16_gives_float32_logits():
  args = tuple(jnp.asarray(x, jnp.bfloat16) for x in _inputs())
  got = op.scoring_head(*args)
  assert got.dtype == jnp.float32
  want = _numpy(*(np.asarray(x, np.float64) for x in args))
  np.testing.assert_allclose(got, want, atol=0.2)
