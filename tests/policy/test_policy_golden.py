"""Advantage, clipped loss, k3 and gradient of the released code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import policy

TOLERANCE = {'float64': 1e-6, 'float32': 1e-5}


@pytest.fixture(scope='module')
def cases(repo_root):
  path = repo_root / 'tests' / 'golden' / 'reference.json'
  cases = json.loads(path.read_text())['grpo']
  assert len(cases) == 3
  return cases


@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_golden(cases, dtype):
  close = lambda got, want: np.testing.assert_allclose(  # noqa: E731
    got, want, rtol=0, atol=TOLERANCE[dtype]
  )
  with jax.enable_x64(dtype == 'float64'):
    for case in cases:
      log_prob_BT, old_BT, ref_BT = (
        jnp.asarray(case[name], dtype)
        for name in ('log_prob', 'old_log_prob', 'ref_log_prob')
      )
      mask_BT = jnp.asarray(case['mask'])
      reward_B = jnp.asarray(case['outcome_reward'], dtype)
      advantage_B = jax.jit(policy.group_advantage)(
        reward_B, jnp.asarray(case['groups'])
      )
      assert advantage_B.dtype == dtype
      close(advantage_B, case['advantage'])

      # The golden gradient is that of pg_loss + 1e-3 * k3.
      def objective(log_prob_BT, old_BT, ref_BT, advantage_B, mask_BT):
        loss = policy.policy_loss(log_prob_BT, old_BT, advantage_B, mask_BT)
        k3 = policy.k3_kl(log_prob_BT, ref_BT, mask_BT)
        return loss + 1e-3 * k3, (loss, k3)

      grad_BT, (loss, k3) = jax.jit(jax.grad(objective, has_aux=True))(
        log_prob_BT, old_BT, ref_BT, advantage_B, mask_BT
      )
      assert loss.dtype == k3.dtype == dtype
      close(loss, case['pg_loss'])
      close(k3, case['k3'])
      close(grad_BT, case['grad'])
      terms = policy.policy_terms(
        log_prob_BT, old_BT, advantage_B, mask_BT, config=policy.grpo()
      )
      total, denominator = terms['clip_fraction']
      close(total / denominator, case['clip_fraction'])
      total, denominator = terms['policy']
      close(total / denominator, case['pg_loss'])


def test_golden_numpy(cases):
  for case in cases:
    c = {name: np.asarray(value) for name, value in case.items()}
    advantage_B = policy.group_advantage(c['outcome_reward'], c['groups'])
    assert isinstance(advantage_B, np.ndarray)
    np.testing.assert_allclose(advantage_B, c['advantage'], atol=1e-9)
    loss = policy.policy_loss(
      c['log_prob'], c['old_log_prob'], advantage_B, c['mask']
    )
    assert isinstance(loss, np.float64)
    np.testing.assert_allclose(loss, c['pg_loss'], rtol=1e-9)
    np.testing.assert_allclose(
      policy.k3_kl(c['log_prob'], c['ref_log_prob'], c['mask']),
      c['k3'],
      rtol=1e-9,
    )
