"""What answers cost, and accuracy by subject."""

import dataclasses

import numpy as np

from metastone_jax.evaluation import parts, summary, tables
from tests.evaluation import synthetic


def _samples():
  s = synthetic.make_samples(P=12, N=8)
  rng = np.random.default_rng(0)
  return dataclasses.replace(
    s,
    thinking_PN=s.tokens_PN - rng.integers(0, 9, s.shape),
    read_flops_P=rng.random(12),
    write_flops_PN=rng.random(s.shape),
    score_flops_PN=rng.random(s.shape),
    subjects=['law', 'physics', 'law', 'art'] * 3,
    failures={'timeout': 2},
    reasons={'program/memory': 3},
  )


def test_an_answer_pays_for_its_samples_and_its_rule():
  s = _samples()
  found = parts.costs(s, 4, list(summary.RULES))
  plain = np.mean(
    [s.read_flops_P[p] + 4 * s.write_flops_PN[p].mean() for p in range(12)]
  )
  scoring = 4 * s.score_flops_PN.mean()
  for rule, cost in found.items():
    scored = rule in ('best_of_k', 'weighted_vote')
    np.testing.assert_allclose(cost['flops'], plain + scored * scoring)
    np.testing.assert_allclose(cost['tokens'], 4 * s.tokens_PN.mean())
    np.testing.assert_allclose(
      cost['thinking_tokens'] + cost['answer_tokens'], cost['tokens']
    )
  traced = parts.costs(dataclasses.replace(s, traces=8), 1, ['majority'])
  np.testing.assert_allclose(
    traced['majority']['flops'],
    s.read_flops_P.mean() + s.write_flops_PN.mean() + s.score_flops_PN.mean(),
  )


def test_what_nobody_counted_is_none():
  cost = parts.costs(synthetic.make_samples(), 2, ['oracle'])['oracle']
  assert cost['flops'] is None and cost['thinking_tokens'] is None
  result = summary.summarise(synthetic.make_samples(), (1, 2))
  assert tables.cost_table(result)[1][0][1:] == [
    f'{100 * result["pass_at_1"]["mean"]:.1f}',
    f'{result["response_tokens"]["mean"]:,.1f}',
    '',
    '',
  ]


def test_subjects_and_their_macro_average():
  s = _samples()
  found = summary.summarise(s, (1, 8))['subjects']
  assert [r['subject'] for r in found['rows']] == ['art', 'law', 'physics']
  value = s.correct_PN.mean(axis=1)
  means = [value[3::4].mean(), value[[0, 2, 4, 6, 8, 10]].mean()]
  means.append(value[1::4].mean())
  np.testing.assert_allclose(
    [r['pass_at_1']['mean'] for r in found['rows']], means
  )
  macro = found['macro']['pass_at_1']
  np.testing.assert_allclose(macro['mean'], np.mean(means))
  assert macro['mean'] != value.mean()
  assert macro['low'] < macro['mean'] < macro['high']
  header, rows = tables.subject_table(summary.summarise(s, (1, 8)))
  assert header[-1] == 'majority@8' and rows[0][0] == 'macro average'


def test_macro_interval_covers():
  rng = np.random.default_rng(0)
  subjects = ['a'] * 8 + ['b'] * 60
  held = 0
  for _ in range(800):
    chance = np.concatenate([rng.beta(2, 1, 8), rng.beta(1, 2, 60)])
    value = rng.binomial(8, chance) / 8
    found = parts.by_subject(subjects, {'x': value}, level=0.95)['macro']['x']
    held += found['low'] <= (2 / 3 + 1 / 3) / 2 <= found['high']
  assert 0.93 < held / 800 < 0.985


def test_one_problem_a_subject_has_no_interval():
  found = parts.by_subject(
    ['a', 'b', 'b'], {'x': np.array([1.0, 0.0, 0.5])}, level=0.95
  )
  assert found['macro']['x']['mean'] == 0.625
  assert found['macro']['x']['low'] is None


def test_failures_are_named_everywhere():
  result = summary.summarise(_samples(), (1, 8))
  assert result['failures'] == {'timeout': 2}
  assert summary.summary_metrics(result)['eval/verify/timeout'] == 2
  assert result['reasons'] == {'program/memory': 3}
  assert summary.summary_metrics(result)['eval/verify/program/memory'] == 3
  rows = tables.other_table(result)[1]
  assert ['verifier failures: timeout', '2 samples'] in rows
  assert ['judged wrong: program/memory', '3 samples'] in rows
