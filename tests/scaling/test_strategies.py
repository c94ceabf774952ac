"""Strategies against brute force over all subsets, written another way."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.scaling import strategies
from tests.evaluation.synthetic import make_samples

P, N = 6, 7
TOKENS_J = np.array([4, 8, 16])


def samples_of(seed=0, **changes):
  rng = np.random.default_rng(seed)
  samples = make_samples(seed, P=P, N=N)
  thinking = rng.integers(1, 24, size=(P, N))
  return dataclasses.replace(
    samples,
    # Few values, so that scores tie.
    scores_PN=np.round(samples.scores_PN, 1),
    tokens_PN=thinking + 3,
    thinking_PN=thinking,
    read_flops_P=rng.random(P) * 50,
    write_flops_PN=rng.random((P, N)) * 100 + 100,
    score_flops_PN=rng.random((P, N)),
    **changes,
  )


def milestones_of(seed=0):
  rng = np.random.default_rng(seed + 100)
  running = rng.random((P, N, 3))
  running[rng.random((P, N, 3)) < 0.15] = np.nan
  return strategies.Milestones(
    TOKENS_J, running, np.cumsum(rng.random((P, N, 3)) * 20, axis=2)
  )


def one_subset(samples, marks, p, subset, keep, least):
  """(correctness, tokens, FLOPs) of one subset, candidate by candidate."""
  alive = list(subset)
  tokens = flops = 0.0
  for j, milestone in enumerate(marks.tokens_J):
    judged = [
      n
      for n in alive
      if samples.thinking_PN[p, n] > milestone
      and not math.isnan(marks.running_PNJ[p, n, j])
    ]
    judged.sort(key=lambda n: -marks.running_PNJ[p, n, j])
    for n in judged[max(least, math.ceil(keep * len(judged))) :]:
      alive.remove(n)
      tokens += milestone
      flops += marks.flops_PNJ[p, n, j]
  for n in alive:
    tokens += samples.thinking_PN[p, n]
    flops += samples.write_flops_PN[p, n] + samples.score_flops_PN[p, n]
  pool = [n for n in alive if samples.eligible_PN[p, n]] or alive
  top = max(samples.scores_PN[p, n] for n in pool)
  best = [n for n in pool if samples.scores_PN[p, n] == top]
  return np.mean([samples.correct_PN[p, n] for n in best]), tokens, flops


@pytest.mark.parametrize('k', [1, 2, 3, 5, 7])
@pytest.mark.parametrize('keep, least', [(0.5, 1), (0.3, 2)])
def test_pruning_is_brute_force(k, keep, least):
  samples, marks = samples_of(k), milestones_of(k)
  found = strategies.pruned_best_of_k(samples, marks, k, keep=keep, least=least)
  for p in range(P):
    every = np.array(
      [
        one_subset(samples, marks, p, subset, keep, least)
        for subset in itertools.combinations(range(N), k)
      ]
    ).mean(axis=0)
    np.testing.assert_allclose(
      [
        found.accuracy_P[p],
        found.thinking_P[p],
        found.flops_P[p] - samples.read_flops_P[p],
      ],
      every,
      rtol=1e-12,
    )


def test_random_subsets_agree_with_all_of_them():
  samples, marks = samples_of(), milestones_of()
  exact = strategies.pruned_best_of_k(samples, marks, 3)
  drawn = [
    strategies.pruned_best_of_k(
      samples, marks, 3, exact_limit=0, subsets=4000, seed=seed
    )
    for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(drawn[0].accuracy_P, drawn[1].accuracy_P)
  assert (drawn[0].thinking_P != drawn[2].thinking_P).any()
  # 4,000 subsets: standard error of a share at most 0.008.
  np.testing.assert_allclose(drawn[0].accuracy_P, exact.accuracy_P, atol=0.035)
  np.testing.assert_allclose(drawn[0].thinking_P, exact.thinking_P, rtol=0.02)


def test_without_milestones_in_reach_nothing_is_pruned():
  samples = samples_of()
  far = strategies.Milestones(
    np.array([100]), np.random.rand(P, N, 1), np.zeros((P, N, 1))
  )
  for k in (1, 3, 7):
    found = strategies.outcomes(samples, k, far)
    np.testing.assert_allclose(
      found['pruned'].accuracy_P, found['best_of_k'].accuracy_P, atol=1e-12
    )
    np.testing.assert_allclose(
      found['pruned'].thinking_P, k * samples.thinking_PN.mean(axis=1)
    )
    np.testing.assert_allclose(
      found['pruned'].flops_P, found['best_of_k'].flops_P
    )


def test_outcomes_have_the_costs_of_what_they_read():
  samples = samples_of()
  at_1 = strategies.outcomes(samples, 1)
  assert list(at_1) == [
    'single',
    'majority',
    'weighted_vote',
    'best_of_k',
    'oracle',
  ]
  for found in at_1.values():
    # A vote of one unparsed answer is wrong, and so is the answer itself.
    np.testing.assert_allclose(
      found.accuracy_P, samples.correct_PN.mean(axis=1), atol=1e-12
    )
  at_4 = strategies.outcomes(samples, 4, milestones_of())
  assert list(at_4) == [x for x in strategies.STRATEGIES if x != 'single']
  scoring_P = 4 * samples.score_flops_PN.mean(axis=1)
  np.testing.assert_allclose(
    at_4['best_of_k'].flops_P - at_4['majority'].flops_P, scoring_P
  )
  np.testing.assert_allclose(
    at_4['oracle'].flops_P,
    samples.read_flops_P + 4 * samples.write_flops_PN.mean(axis=1),
  )
  assert (at_4['pruned'].thinking_P <= at_4['majority'].thinking_P).all()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(keep=1.0), 'keep'),
    (dict(k=8), 'k=8'),
    (dict(k=0), 'k=0'),
    (dict(tokens_J=np.array([8, 8, 16])), 'increase'),
    (dict(running_PNJ=np.zeros((P, N))), 'running_PNJ'),
  ],
)
def test_bad_input_is_named(change, message):
  marks = milestones_of()
  fields = {k: change.pop(k) for k in list(change) if k.endswith('J')}
  marks = dataclasses.replace(marks, **fields)
  with pytest.raises(UserError, match=message):
    strategies.pruned_best_of_k(samples_of(), marks, **{'k': 2, **change})


def test_samples_without_costs_are_refused():
  samples = dataclasses.replace(samples_of(), thinking_PN=None)
  with pytest.raises(UserError, match='thinking_PN'):
    strategies.outcomes(samples, 1)
