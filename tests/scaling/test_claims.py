"""Values, intervals and verdicts of claims, against brute force."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals
from metastone_jax.scaling import claims, claims_list, claims_report, judged
from metastone_jax.scaling.claims import Arm
from metastone_jax.scaling.claims_list import Side
from metastone_jax.sprm import diagnostics
from tests.scaling import claims_parts as parts

SUPPORTED, NOT, UNCLEAR = 'supported', 'not supported', 'unclear'


def small_arm(seed=0, **changes) -> Arm:
  """5 problems x 5 samples x up to 2 steps, one not finished, one unread."""
  rng = np.random.default_rng(seed)
  correct_PN = rng.random((5, 5)) < 0.5
  logit_PNS = rng.normal(size=(5, 5, 2))
  logit_PNS[:, ::2, 1] = np.nan
  judged = parts.judged(correct_PN, logit_PNS)
  finished_PN, answers_PN = judged.finished_PN.copy(), judged.answers_PN.copy()
  finished_PN[:, 0] = False
  answers_PN[:, 1] = -1
  correct_PN = judged.correct_PN & (answers_PN >= 0)
  judged = dataclasses.replace(
    judged,
    correct_PN=correct_PN,
    finished_PN=finished_PN,
    answers_PN=answers_PN,
  )
  return Arm(judged, parts.about('full', 0, **changes))


@pytest.mark.parametrize('aggregator', ['geometric', 'min'])
def test_best_of_k_is_that_of_every_subset(aggregator):
  arm = small_arm()
  judged = arm.judged
  score_PN = judged.score_PN(aggregator)
  want_P = []
  for p in range(5):
    found = []
    for subset in itertools.combinations(range(5), 3):
      # Samples 0 (cut) and 1 (unread) win only where there is no other.
      able = [n for n in subset if n > 1] or list(subset)
      best = max(able, key=lambda n: score_PN[p, n])
      found.append(judged.correct_PN[p, best])
    want_P.append(np.mean(found))
  side = Side('full', 'best', aggregator)
  np.testing.assert_allclose(claims.accuracy_P(arm, side, 3), want_P)


def test_aggregator_is_that_of_the_arm_unless_the_claim_says_it():
  judged = parts.arm('full', 0, 0.5).judged

  def ask(own, asked=''):
    arm = Arm(judged, parts.about('full', 0, options=dict(aggregator=own)))
    return claims.accuracy_P(arm, Side('full', 'best', asked), 2).tolist()

  assert ask('last') == ask('geometric', 'last') != ask('geometric')
  assert ask('last', 'geometric') == ask('geometric') == ask('')


def test_auc_is_the_mean_of_its_linear_form():
  arm = small_arm(3)
  score_PN, correct_PN = arm.judged.score_PN(), arm.judged.correct_PN
  assert claims.auc_P(arm, Side('full')).mean() == pytest.approx(
    diagnostics.auc_within(score_PN, correct_PN)
  )
  wrong = dataclasses.replace(arm.judged, correct_PN=np.zeros_like(correct_PN))
  assert np.isnan(claims.auc_P(Arm(wrong, arm.about), Side('full'))).all()


def test_auc_interval_is_that_of_the_jackknife():
  arm = parts.arm('full', 0, 1.0, problems=60)
  found = claims.estimate(claims.auc_P(arm, Side('full'))[None])
  score_PN, correct_PN = arm.judged.score_PN(), arm.judged.correct_PN
  keep = [np.arange(60) != p for p in range(60)]
  jack_P = [diagnostics.auc_within(score_PN[i], correct_PN[i]) for i in keep]
  error = math.sqrt(59 * np.var(jack_P))
  assert found.error_problems == pytest.approx(error, rel=0.05)


def test_values_without_steps_rank_but_neither_vote_nor_aggregate():
  arm = parts.arm('log-prob', 0, 1.0)
  best_P = claims.accuracy_P(arm, Side('log-prob'), 8)
  best_N1 = arm.judged.value_PN.argmax(1)[:, None]
  right_P1 = np.take_along_axis(arm.judged.correct_PN, best_N1, 1)
  np.testing.assert_array_equal(best_P, right_P1[:, 0])
  for side in (Side('log-prob', 'vote'), Side('log-prob', 'best', 'min')):
    with pytest.raises(UserError, match='log-prob has no step scores'):
      claims.accuracy_P(arm, side, 2)
  with pytest.raises(UserError, match='no rule'):
    claims.accuracy_P(arm, Side('log-prob', 'luck'), 2)


def test_one_seed_is_a_t_interval_over_problems():
  value_P = np.random.default_rng(0).normal(0.1, 0.4, 30)
  found = claims.estimate(value_P[None])
  want = intervals.interval(value_P, intervals.VALUE)
  assert (found.mean, found.low, found.high) == pytest.approx(
    (want.mean, want.low, want.high)
  )
  assert math.isnan(found.error_seeds)


def test_errors_are_those_of_the_two_way_table():
  S, P = 3, 4
  value_SP = np.random.default_rng(1).normal(size=(S, P))
  value_SP[0] += 3
  found = claims.estimate(value_SP)
  rest, seeds, problems = 0.0, 0.0, 0.0
  for s in range(S):
    seeds += P * (value_SP[s].mean() - value_SP.mean()) ** 2 / (S - 1)
    for p in range(P):
      fitted = value_SP[s].mean() + value_SP[:, p].mean() - value_SP.mean()
      rest += (value_SP[s, p] - fitted) ** 2 / ((S - 1) * (P - 1))
  for p in range(P):
    problems += S * (value_SP[:, p].mean() - value_SP.mean()) ** 2 / (P - 1)
  assert found.error_seeds**2 == pytest.approx((seeds - rest) / (S * P))
  assert found.error_problems**2 == pytest.approx(problems / (S * P))
  # t of 2 and 3 degrees of freedom, from a table.
  want = math.hypot(
    4.302653 * found.error_seeds, 3.182446 * found.error_problems
  )
  assert found.half() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('seeds', [1, 3])
def test_p_value_says_what_the_interval_says(seeds):
  value_SP = np.random.default_rng(2).normal(0.2, 1.0, (seeds, 20))
  found = claims.estimate(value_SP)
  assert found.p_above(found.low) == pytest.approx(0.025, abs=1e-9)
  assert found.p_above(found.high) == pytest.approx(0.975, abs=1e-9)
  assert found.p_above(found.mean - 1e-12) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize('seeds', [1, 3])
def test_equal_results_do_not_prove_equality(seeds):
  few, many = (claims.estimate(np.zeros((seeds, P))) for P in (16, 512))
  # As evaluation.compare does: a share that none of 16 problems shows.
  most = intervals.interval(np.zeros(16)).high
  assert (few.mean, few.low, few.high) == pytest.approx((0, -most, most))
  assert most > 0.15
  assert few.p_above(0.0) == pytest.approx(0.5)
  assert claims.verdict('no worse', 0.02, few.low, few.high) == UNCLEAR
  assert claims.verdict('no worse', 0.02, many.low, many.high) == SUPPORTED
  assert claims.verdict('better', 0.01, many.low, many.high) == NOT


@pytest.mark.parametrize('bad', [np.zeros((1, 1)), np.zeros(4)])
def test_an_interval_needs_problems(bad):
  with pytest.raises(UserError, match='at least 2 problems'):
    claims.estimate(bad)


@pytest.mark.parametrize(
  ('seeds', 'between'), [(1, 0.0), (2, 0.05), (3, 0.0), (3, 0.02), (3, 0.05)]
)
def test_intervals_hold_the_truth(seeds, between):
  """Differences of best-of-8 as they look: mostly 0, in [-1, 1], skewed."""
  rng, P, repeats, held = np.random.default_rng(7), 64, 1500, 0
  for _ in range(repeats):
    problem_P = 0.15 * rng.standard_exponential(P) * (rng.random(P) < 0.5)
    rest_SP = 0.1 * rng.normal(size=(seeds, P)) * (rng.random((seeds, P)) < 0.5)
    seed_S1 = between * rng.normal(size=(seeds, 1))
    found = claims.estimate(problem_P + rest_SP + seed_S1)
    held += found.low <= 0.075 <= found.high
  assert 0.93 <= held / repeats <= 0.985


@pytest.mark.parametrize(
  ('kind', 'low', 'high', 'want'),
  [
    ('better', 0.001, 0.2, SUPPORTED),
    ('better', 0.001, 0.005, SUPPORTED),  # small, but above 0
    ('better', 0.0, 0.2, UNCLEAR),
    ('better', -0.1, 0.1, UNCLEAR),
    ('better', -0.1, 0.009, NOT),  # a gain of a point is ruled out
    ('better', -0.1, 0.01, UNCLEAR),
    ('better', -0.2, -0.1, NOT),
    ('better', 0.0, 0.0, NOT),  # the same on every problem
    ('no worse', -0.009, 0.1, SUPPORTED),
    ('no worse', -0.01, 0.1, UNCLEAR),
    ('no worse', 0.0, 0.0, SUPPORTED),
    ('no worse', -0.1, -0.001, UNCLEAR),  # worse, but by how much?
    ('no worse', -0.1, -0.011, NOT),
    ('better', math.nan, math.nan, 'undefined'),
  ],
)
def test_verdicts(kind, low, high, want):
  assert claims.verdict(kind, 0.01, low, high) == want


def test_holm_against_its_definition():
  # 4 x 0.01; then 3 x 0.02; 2 x 0.03 is no less; the largest stays.
  found = claims.holm([0.03, 0.01, 0.9, 0.02])
  assert found == pytest.approx([0.06, 0.04, 0.9, 0.06])
  assert claims.holm([0.6, 0.7]) == [1.0, 1.0]


def test_findings_of_known_arms():
  skills = {
    'full': 0.6,
    'prm': 0.6,
    'position-at': 0.6,
    'outcome': -1.0,
    'layer-1': 3.0,
  }
  arms = {
    (name, seed): parts.arm(name, seed, skill, problems=150)
    for name, skill in skills.items()
    for seed in range(3)
  }
  del arms['outcome', 2]
  found = {f.claim.id: f for f in claims.findings(arms, 'tiny')}
  assert list(found) == [c.id for c in claims_list.of_set('tiny')]
  assert found['outcome'].verdict == SUPPORTED
  assert found['outcome'].seeds == (0, 1)
  assert found['majority'].verdict == SUPPORTED
  assert found['layer-1'].verdict == NOT
  assert found['layer-1'].difference.high < 0
  assert found['width-4x'].verdict == ''
  assert found['width-4x'].difference is None
  assert found['product'].same  # all traces have as many steps
  assert not found['last-step'].same
  one = found['outcome']
  assert one.difference.mean == pytest.approx(one.mean_a - one.mean_b)
  assert one.mean_a == pytest.approx(
    np.mean(
      [
        claims.accuracy_P(arms['position-at', s], Side('position-at'), 8)
        for s in (0, 1)
      ]
    )
  )
  # The same by the last step, where both sides are read so.
  a_SP, b_SP = (
    claims.side_SP(arms, Side(n, aggregator='last'), (0, 1), 8, 'accuracy')
    for n in ('position-at', 'outcome')
  )
  assert one.last == claims.estimate(a_SP - b_SP)
  assert one.last.mean != one.difference.mean
  # The majority vote has no steps; a claim on aggregators names its own.
  majority_SP, best_SP = (
    claims.side_SP(arms, side, range(3), 8, 'accuracy')
    for side in (
      Side('full', rule='majority'),
      Side('full', aggregator='last'),
    )
  )
  assert found['majority'].last == claims.estimate(best_SP - majority_SP)
  assert found['product'].last is None
  measured = [f for f in found.values() if f.difference is not None]
  assert all(f.holm >= f.p for f in measured)


@pytest.mark.parametrize(('skill', 'hollow'), [(0.0, True), (0.6, False)])
def test_no_worse_than_chance_is_hollow(skill, hollow):
  skills = {'full': 2.0, 'frozen': 0.6, 'prm': skill, 'own': 0.6}
  arms = {
    (name, seed): parts.arm(name, seed, one, problems=150)
    for name, one in skills.items()
    for seed in range(5)
  }
  found = {f.claim.id: f for f in claims.findings(arms, 'tiny')}
  for name in ('prm', 'prm-full', 'prm-auc'):
    assert found[name].hollow is hollow
  assert found['prm-full'].verdict == SUPPORTED
  words = claims_report.verdict_words(found['prm-full'])
  assert ('‡' in words) is hollow
  # Of one sample against one nothing is chosen; 'better' is never hollow.
  assert found['own-single'].difference is not None
  better = [f for f in found.values() if f.claim.kind == claims_list.BETTER]
  assert not any(f.hollow for f in [*better, found['own-single']])


def test_arms_of_other_problems_are_refused():
  arms = {('full', 0): parts.arm('full', 0, 1.0)}
  other = parts.arm('prm', 0, 1.0)
  moved = dataclasses.replace(
    other.judged, problem_ids=[f'q{p}' for p in range(40)]
  )
  arms['prm', 0] = Arm(moved, other.about)
  with pytest.raises(UserError, match=r'claim prm-full: full and prm judge'):
    claims.findings(arms, 'tiny')
  arms = {('full', 0): arms['full', 0], ('full', 1): arms['prm', 0]}
  with pytest.raises(UserError, match='seed 1 judges other problems'):
    claims.findings(arms, 'tiny')


@pytest.mark.parametrize('name', list(claims_list.SETS))
def test_the_list_of_claims_is_sound(name):
  several = claims_list.of_set(name)
  assert len({c.id for c in several}) == len(several)
  assert claims_list.arms_of(name) <= set(claims_list.ARMS)
  assert 'main' not in claims_list.arms_of(name)
  for claim in several:
    assert claim.kind in ('better', 'no worse')
    assert claim.metric in ('accuracy', 'AUC')
    a, b = claim.sides(name)
    assert a != b
    assert {a.rule, b.rule} <= set(claims_list.RULES)
    assert {a.aggregator, b.aggregator} <= {'', *judged.AGGREGATORS}
