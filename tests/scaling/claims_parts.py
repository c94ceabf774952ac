"""Synthetic arms of known answers, for the tests of claims."""

import numpy as np

from metastone_jax.scaling.claims import Arm
from metastone_jax.scaling.judged import About, Judged


def judged(
  correct_PN, step_logit_PNS=None, *, value_PN=None, **changes
) -> Judged:
  """Samples whose answer is 1 where they are right and 0 where wrong."""
  correct_PN = np.asarray(correct_PN, bool)
  P, _ = correct_PN.shape
  fields = dict(
    problem_ids=[f'p{p}' for p in range(P)],
    correct_PN=correct_PN,
    answers_PN=correct_PN.astype(int),
    finished_PN=np.ones_like(correct_PN),
    tokens_PN=np.full(correct_PN.shape, 20),
    num_steps_PN=np.zeros(correct_PN.shape, int),
    value_PN=value_PN,
  )
  if step_logit_PNS is not None:
    fields['step_logit_PNS'] = np.asarray(step_logit_PNS, np.float32)
    fields['num_steps_PN'] = (~np.isnan(step_logit_PNS)).sum(-1)
    fields['last_logit_PN'] = np.zeros(correct_PN.shape)
  return Judged(**{**fields, **changes})


def about(arm: str, seed: int, set_name: str = 'tiny', **changes) -> About:
  """What an arm says of itself."""
  fields = dict(
    arm=arm,
    seed=seed,
    task='signs',
    set=set_name,
    seconds=61.0,
    train_seconds=40.0,
    parameters_extra=440_000 if arm == 'prm' else 18_000,
    parameters_trained=440_000,
    flops_policy_per_problem=2e8,
    flops_judge_per_problem=1e8 if arm == 'prm' else 2e6,
    kl_policy=None if arm == 'prm' else 0.01,
    lm_loss_before=0.5,
    lm_loss_after=None if arm == 'prm' else 0.51,
    options=dict(loss='bce', gradient_scale=1.0, aggregator='geometric'),
  )
  return About(**{**fields, **changes})


def arm(
  name: str,
  seed: int,
  skill: float,
  *,
  set_name: str = 'tiny',
  problems: int = 40,
  samples: int = 8,
) -> Arm:
  """An arm whose step logits are `skill` higher at right samples, plus noise.

  Correctness depends on the seed alone, so arms of a seed share their samples.
  """
  rng = np.random.default_rng((seed, 0))
  chance_P1 = rng.uniform(0.1, 0.7, (problems, 1))
  correct_PN = rng.random((problems, samples)) < chance_P1
  noise = np.random.default_rng((seed, sum(name.encode())))
  if name in ('self-certainty', 'log-prob'):
    value_PN = skill * correct_PN + noise.normal(size=correct_PN.shape)
    return Arm(judged(correct_PN, value_PN=value_PN), about(name, seed))
  logit_PNS = skill * correct_PN[..., None] + noise.normal(
    size=(*correct_PN.shape, 3)
  )
  return Arm(judged(correct_PN, logit_PNS), about(name, seed, set_name))
