"""Two groups, each exactly what optax does with it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metastone_jax.errors import UserError
from metastone_jax.training import optimiser
from tests import quick


def _tree(seed, scale=1.0):
  """Leaves of every kind of name, a backbone and a head."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return (scale * rng.normal(size=shape)).astype(np.float32)

  return {
    'embedding': draw(5, 3),
    'low': {'gate_kernel': draw(2, 3, 4), 'q_bias': draw(2, 3)},
    'final_norm': draw(3),
    'score_head': {'hidden_kernel': draw(3, 6), 'hidden_bias': draw(6)},
  }


def _no_decay(group):
  """The weight-decay mask, written out: matrices only."""
  return {
    name: (
      _no_decay(leaf)
      if isinstance(leaf, dict)
      else name in ('embedding', 'gate_kernel', 'hidden_kernel')
    )
    for name, leaf in group.items()
  }


def test_each_group_is_plain_optax():
  """Three updates; only the backbone's gradient is above the clip norm."""
  config = optimiser.OptimiserConfig(
    clip_norm=0.7, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1
  )
  rates = {'backbone': 1e-2, 'head': 3e-2}
  params = _tree(0)
  state = optimiser.init(config, params)
  groups = optimiser.split_groups(params)
  plain = {
    name: optax.chain(
      optax.clip_by_global_norm(0.7),
      optax.adamw(
        rates[name],
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.1,
        mask=_no_decay(group),
      ),
    )
    for name, group in groups.items()
  }
  plain_state = {name: plain[name].init(groups[name]) for name in groups}
  update = quick.jit(optimiser.apply, static_argnums=0)
  for turn in range(3):
    grads = _tree(turn + 1)
    grads['score_head'] = _tree(turn + 9, scale=0.05)['score_head']
    params, state, norms = update(config, grads, state, params, rates)
    for name, group in optimiser.split_groups(grads).items():
      flat = np.concatenate([x.ravel() for x in jax.tree.leaves(group)])
      norm = np.linalg.norm(flat)
      assert (norm > 0.7) == (name == 'backbone')
      np.testing.assert_allclose(norms[f'grad_norm/{name}'], norm, rtol=1e-6)
      updates, plain_state[name] = quick.jit(plain[name].update)(
        group, plain_state[name], groups[name]
      )
      groups[name] = optax.apply_updates(groups[name], updates)
    jax.tree.map(
      lambda got, want: np.testing.assert_allclose(
        got, want, rtol=1e-5, atol=1e-7
      ),
      params,
      optimiser.join_groups(groups),
    )


@pytest.mark.parametrize('still', optimiser.GROUPS)
def test_learning_rate_zero_leaves_a_group_as_it_is(still):
  config = optimiser.OptimiserConfig()
  params = _tree(0)
  rates = {name: 0.0 if name == still else 1e-2 for name in optimiser.GROUPS}
  new, _, _ = quick.jit(optimiser.apply, static_argnums=0)(
    config, _tree(1), optimiser.init(config, params), params, rates
  )
  old, new = optimiser.split_groups(params), optimiser.split_groups(new)
  jax.tree.map(np.testing.assert_array_equal, new[still], old[still])
  (other,) = set(optimiser.GROUPS) - {still}
  for a, b in zip(
    jax.tree.leaves(new[other]), jax.tree.leaves(old[other]), strict=True
  ):
    assert (np.asarray(a) != b).all()


def test_groups_split_and_join():
  params = _tree(0)
  groups = optimiser.split_groups(params)
  assert set(groups) == {'backbone', 'head'}
  assert 'score_head' not in groups['backbone']
  jax.tree.map(
    np.testing.assert_array_equal, optimiser.join_groups(groups), params
  )


def test_moments_are_float32_whatever_the_rate():
  state = optimiser.init(optimiser.OptimiserConfig(), _tree(0))
  floats = [
    x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  assert floats and all(x.dtype == jnp.float32 for x in floats)


def test_bad_clip_norm_is_named():
  with pytest.raises(UserError, match='optimiser.clip_norm=0 must be positive'):
    optimiser.OptimiserConfig(clip_norm=0)
