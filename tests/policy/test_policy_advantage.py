"""Advantages, zero-variance groups and the overlong penalty against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import policy
from metastone_jax.errors import UserError


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize('normalise_std', [True, False])
def test_group_advantage_equals_the_loop(normalise_std, library):
  rng = np.random.default_rng(0)
  reward_B = rng.choice([0.0, 0.1, 1.0], 40)
  group_B = rng.choice([-7, 3, 12, 1_000_003, 44], 40)  # any ids, any order
  group_B[5] = 99  # a group of one
  group_B[6], reward_B[6] = 98, 1.0
  expected_B = np.empty(40)
  for i in range(40):
    own = reward_B[group_B == group_B[i]]
    mean, std = (0.0, 1.0) if len(own) == 1 else (own.mean(), own.std(ddof=1))
    expected_B[i] = reward_B[i] - mean
    if normalise_std:
      expected_B[i] /= std + 1e-6
  with jax.enable_x64(True):
    advantage_B = policy.group_advantage(
      library.asarray(reward_B),
      library.asarray(group_B),
      normalise_std=normalise_std,
    )
  # atol: the oracle's mean of equal 0.1s rounds, and is divided by 1e-6.
  np.testing.assert_allclose(advantage_B, expected_B, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(expected_B[6], 1.0, rtol=1e-5)


def test_equal_rewards_give_exactly_no_advantage_in_float32():
  # 0.1 is not exact in binary: a rounded mean over 1e-6 would not be 0.
  advantage = jax.jit(policy.group_advantage)
  for reward in (1.0, 0.1, 0.7):
    reward_B = np.full(8, reward, np.float32)
    for n in (3, 5, 8):
      advantage_B = advantage(reward_B, np.arange(8) // n * 10)
      grouped_B = np.arange(8) < 8 // n * n
      np.testing.assert_array_equal(advantage_B[grouped_B], 0.0)


def test_no_gradient_through_the_advantage():
  grad_B = jax.grad(
    lambda r: (policy.group_advantage(r, jnp.array([0, 0, 1, 1])) ** 2).sum()
  )(jnp.array([1.0, 0.0, 0.0, 0.0]))
  np.testing.assert_array_equal(grad_B, np.zeros(4))


@pytest.mark.parametrize('library', [np, jnp])
def test_zero_variance_groups(library):
  group_B = np.array([4, 9, 4, 9, 4, 7, 2, 2])
  reward_B = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
  found = policy.zero_variance_groups(
    library.asarray(reward_B), library.asarray(group_B)
  )
  np.testing.assert_array_equal(found.mask_B, np.isin(group_B, [4, 2]))
  np.testing.assert_allclose(found.fraction, 2 / 4, rtol=1e-6)
  advantage_B = policy.group_advantage(reward_B, group_B)
  np.testing.assert_array_equal(advantage_B == 0, found.mask_B)


def test_overlong_penalty():
  length_B = np.array([0, 80, 81, 90, 99, 100, 140])
  expected_B = [0, 0, -0.05, -0.5, -0.95, -1, -1]
  for library in (np, jnp):
    penalty_B = policy.overlong_penalty_B(library.asarray(length_B), 100, 20)
    np.testing.assert_allclose(penalty_B, expected_B, atol=1e-6)
  for buffer in (0, 101):
    with pytest.raises(UserError, match='buffer'):
      policy.overlong_penalty_B(length_B, 100, buffer)
