"""Samples on disk and the numbers made from them."""

import dataclasses
import json

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.evaluation import auc, estimators, summary, tables
from metastone_jax.evaluation.samples import EvaluationSamples
from tests.evaluation import synthetic


@pytest.fixture(scope='module')
def samples():
  return synthetic.make_samples(P=60, N=10)


@pytest.fixture(scope='module')
def result(samples):
  return summary.summarise(samples, ks=(1, 2, 8, 32), resamples=500)


def test_numbers_equal_their_estimators(samples, result):
  s = samples
  assert [row['k'] for row in result['rows']] == [1, 2, 8]
  for row in result['rows']:
    k = row['k']
    np.testing.assert_allclose(
      [row[rule]['mean'] for rule in summary.RULES],
      [
        estimators.best_of_k(
          s.scores_PN, s.correct_PN, k, finished_PN=s.eligible_PN
        ),
        estimators.weighted_vote_at_k(
          s.answers_PN, s.scores_PN, s.correct_PN, k
        ),
        estimators.majority_at_k(s.answers_PN, s.correct_PN, k),
        estimators.pass_at_k(s.correct_PN, k),
      ],
      rtol=1e-12,
    )
    for rule in summary.RULES:
      assert row[rule]['low'] <= row[rule]['mean'] <= row[rule]['high']
  np.testing.assert_allclose(
    [result[n]['mean'] for n in ('pass_at_1', 'response_tokens')],
    [s.correct_PN.mean(), s.tokens_PN.mean()],
    rtol=1e-12,
  )
  np.testing.assert_allclose(
    [result[n]['mean'] for n in ('truncated_share', 'unparsed_share')],
    [(~s.finished_PN).mean(), (s.answers_PN == -1).mean()],
    rtol=1e-12,
  )


def test_differences_are_differences_of_the_table(result):
  rows = {row['k']: row for row in result['rows']}
  found = {d['name']: d for d in result['differences']}
  best8 = rows[8]['best_of_k']['mean']
  np.testing.assert_allclose(
    [
      found['best-of-8 minus majority@8']['mean'],
      found['best-of-8 minus pass@1']['mean'],
      found['best-of-8 minus weighted vote@8']['mean'],
      found['best-of-8 minus best-of-2']['mean'],
    ],
    [
      best8 - rows[8]['majority']['mean'],
      best8 - result['pass_at_1']['mean'],
      best8 - rows[8]['weighted_vote']['mean'],
      best8 - rows[2]['best_of_k']['mean'],
    ],
    rtol=1e-10,
  )
  # Pairing: far narrower than the two intervals apart.
  gain = found['best-of-8 minus majority@8']
  alone = rows[8]['best_of_k']
  assert gain['high'] - gain['low'] < alone['high'] - alone['low']


def test_summary_is_json_and_deterministic(samples, result):
  again = summary.summarise(samples, ks=(1, 2, 8), resamples=500)
  assert json.loads(json.dumps(result, allow_nan=False)) == again


def test_auc_resamples_equal_recomputed_ones(monkeypatch):
  # Oracle: the AUC of the resampled problems themselves, problem by problem.
  s = synthetic.make_samples(P=12, N=6)
  seen = {}
  real = auc.intervals.bca_interval
  monkeypatch.setattr(auc.intervals, 'SMALL', 0)

  def spy(estimate, boot_R, jack_P, *, level):
    seen[len(seen)] = (estimate, boot_R, jack_P)
    return real(estimate, boot_R, jack_P, level=level)

  monkeypatch.setattr(auc.intervals, 'bca_interval', spy)
  auc.auc_intervals(s, resamples=20, seed=3)
  weights = np.concatenate(list(auc.intervals.problem_weights(12, 20, 3)))

  def both(problems):
    wins = np.array([[0.0, 0.0], [0.0, 0.0]])
    for i, p in enumerate(problems):
      for j, q in enumerate(problems):
        right = s.scores_PN[p][s.correct_PN[p]][:, None]
        wrong = s.scores_PN[q][~s.correct_PN[q]][None]
        won = (right > wrong).sum() + 0.5 * (right == wrong).sum()
        wins[1] += won, right.size * wrong.size
        if i == j:
          wins[0] += won, right.size * wrong.size
    return wins[:, 0] / wins[:, 1]

  everyone = np.arange(12)
  for side in (0, 1):
    estimate, boot_R, jack_P = seen[side]
    np.testing.assert_allclose(estimate, both(everyone)[side], rtol=1e-12)
    np.testing.assert_allclose(
      jack_P,
      [both(np.delete(everyone, p))[side] for p in range(12)],
      rtol=1e-12,
    )
  # Twins of one problem are two problems ACROSS; within, each is its own.
  for r in range(20):
    chosen = np.repeat(everyone, weights[r].astype(int))
    np.testing.assert_allclose(
      [seen[0][1][r], seen[1][1][r]], both(chosen), rtol=1e-12
    )


def test_one_class_leaves_auc_undefined():
  s = synthetic.make_samples(P=4, N=3)
  everything = np.ones((4, 3), bool)
  s = EvaluationSamples(
    's',
    s.scores_PN,
    everything,
    np.zeros((4, 3), int),
    everything,
    s.tokens_PN,
    s.problem_ids,
  )
  result = summary.summarise(s, ks=(1, 2), resamples=50)
  assert result['auc']['within']['mean'] is None
  assert result['mean_score']['wrong'] is None
  assert 'eval/auc_within' not in summary.summary_metrics(result)
  assert 'undefined' in tables.summary_markdown(result)


def test_metrics_and_markdown(result):
  flat = summary.summary_metrics(result)
  np.testing.assert_allclose(
    flat['eval/best_of_8'], result['rows'][2]['best_of_k']['mean']
  )
  assert flat['eval/pass_at_1'] == result['pass_at_1']['mean']
  assert all(isinstance(v, float) for v in flat.values())
  text = tables.summary_markdown(result)
  assert '| SPRM best-of-k | weighted vote | majority | oracle' in text
  assert 'best-of-8 minus majority@8' in text
  assert result['pass_at_1']['method'] == 'Wilson'
  assert tables.methods(result) == (
    'shares: Wilson; differences, tokens: t; AUC: jackknife t'
  )


@pytest.mark.parametrize(
  ('ks', 'message'),
  [((0, 2), 'k=0'), ((64,), 'none is at most 10'), ((1.5,), 'integers')],
)
def test_bad_ks(samples, ks, message):
  with pytest.raises(UserError, match=message):
    summary.summarise(samples, ks)


def test_samples_survive_the_disk(tmp_path, samples):
  shape = samples.shape
  samples = dataclasses.replace(
    samples,
    traces=4,
    split='train',
    thinking_PN=samples.tokens_PN // 2,
    read_flops_P=np.arange(shape[0]) / 7,
    subjects=['a', 'b'] * (shape[0] // 2),
    failed_PN=~samples.correct_PN & (samples.tokens_PN % 7 == 0),
    failures={'timeout': 3},
    reasons={'program/crash': 2},
  )
  assert samples.failed_PN.any()
  path = samples.save(tmp_path / 'deep' / 'samples.npz')
  loaded = EvaluationSamples.load(path)
  for name in ('scores', 'correct', 'answers', 'finished', 'tokens'):
    np.testing.assert_array_equal(
      getattr(loaded, f'{name}_PN'), getattr(samples, f'{name}_PN')
    )
  assert loaded.task == samples.task
  assert loaded.problem_ids == samples.problem_ids
  for name in ('traces', 'split', 'subjects', 'failures', 'write_flops_PN'):
    assert getattr(loaded, name) == getattr(samples, name)
  assert loaded.reasons == samples.reasons
  np.testing.assert_array_equal(loaded.failed_PN, samples.failed_PN)
  np.testing.assert_array_equal(loaded.thinking_PN, samples.thinking_PN)
  np.testing.assert_array_equal(loaded.read_flops_P, samples.read_flops_P)
  assert [p.name for p in path.parent.iterdir()] == ['samples.npz']


def test_what_has_no_verdict_competes_as_if_it_were_wrong():
  """A rule must not gain by a checker that lost its process."""
  P, N = 3, 4
  correct = np.zeros((P, N), bool)
  correct[:, 0] = True
  answers = np.where(correct, 0, -1)
  scores = np.tile([0.5, 0.9, 0.1, 0.2], (P, 1))
  failed = np.zeros((P, N), bool)
  failed[:2, 1] = True
  finished = np.ones((P, N), bool)
  finished[1, 1] = False
  samples = EvaluationSamples(
    task='t',
    scores_PN=scores,
    correct_PN=correct,
    answers_PN=answers,
    finished_PN=finished,
    tokens_PN=np.ones((P, N), int),
    problem_ids=['a', 'b', 'c'],
    failed_PN=failed,
  )
  # Problem a: the lost one has the highest score and wins. In b it was cut, in
  # c it was read and holds no answer: neither competes.
  best = summary.rule_values(samples, N)['best_of_k']
  np.testing.assert_array_equal(best, [0, 1, 1])
  np.testing.assert_array_equal(samples.unparsed_PN, (answers == -1) & ~failed)
  result = summary.summarise(samples, (1, N))
  np.testing.assert_allclose(result['unparsed_share']['mean'], 7 / 12)
  with pytest.raises(UserError, match='no verdict'):
    dataclasses.replace(samples, failed_PN=correct)


def test_broken_files_are_named(tmp_path, samples):
  with pytest.raises(UserError, match='no such evaluation samples'):
    EvaluationSamples.load(tmp_path / 'none.npz')
  path = samples.save(tmp_path / 'half.npz')
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(UserError, match=r'half\.npz: not a whole'):
    EvaluationSamples.load(path)
  np.savez(tmp_path / 'other.npz', x=np.ones(3))
  with pytest.raises(UserError, match=r'other\.npz'):
    EvaluationSamples.load(tmp_path / 'other.npz')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'scores_PN': np.full((4, 3), np.nan)}, 'NaN'),
    ({'scores_PN': np.full((4, 3), 1.5)}, r'in \[0, 1\]'),
    ({'tokens_PN': np.ones((4, 2), int)}, 'tokens_PN has shape'),
    ({'answers_PN': np.ones((4, 3))}, 'needs integers'),
    ({'correct_PN': np.full((4, 3), 2)}, 'needs bool'),
    ({'problem_ids': ['a', 'b', 'c']}, '3 problem ids for 4'),
    ({'subjects': ['a']}, '1 subjects for 4'),
    ({'thinking_PN': np.ones((4, 2))}, 'thinking_PN has shape'),
    ({'read_flops_P': np.ones(3)}, 'read_flops_P has shape'),
    ({'problem_ids': ['a', 'b', 'c', 'a']}, 'repeat'),
    ({'tokens_PN': np.full((4, 3), -1)}, 'negative'),
    (
      {
        'answers_PN': np.full((4, 3), -1),
        'correct_PN': np.ones((4, 3), bool),
      },
      'unparsed',
    ),
  ],
)
def test_bad_samples_are_refused(change, message):
  good = synthetic.make_samples(P=4, N=3)
  fields = {
    name: getattr(good, name) for name in EvaluationSamples.__annotations__
  }
  with pytest.raises(UserError, match=message):
    EvaluationSamples(**{**fields, **change})
