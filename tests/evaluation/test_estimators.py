"""Every estimator against brute force over all k-subsets."""

import itertools

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.evaluation import estimators


def _problems(seed, P=6, N=7):
  """Random problems with many ties, unparsed and unfinished samples."""
  rng = np.random.default_rng(seed)
  answers = rng.integers(-1, 3, size=(P, N))
  answers[0] = -1
  answers[1] = np.arange(N)
  scores = rng.integers(0, 4, size=(P, N)) / 4
  correct = (answers == 1) | ((answers == 2) & (rng.random((P, N)) < 0.5))
  finished = rng.random((P, N)) < 0.6
  finished[2] = False
  return scores, correct, answers, finished


def _brute(rule, N, k):
  return np.mean([rule(list(s)) for s in itertools.combinations(range(N), k)])


def _best(scores, correct, finished, subset):
  pool = [n for n in subset if finished[n]] or subset
  top = max(scores[n] for n in pool)
  return np.mean([correct[n] for n in pool if scores[n] == top])


def _vote(answers, weights, correct, subset):
  totals = {}
  for n in subset:
    if answers[n] != -1:
      totals[answers[n]] = totals.get(answers[n], 0.0) + weights[n]
  if not totals:
    return 0.0
  top = max(totals.values())
  return np.mean(
    [
      np.mean([correct[n] for n in subset if answers[n] == a])
      for a, total in totals.items()
      if np.isclose(total, top, rtol=1e-12, atol=0)
    ]
  )


@pytest.mark.parametrize('k', range(1, 8))
@pytest.mark.parametrize('seed', range(3))
def test_all_estimators_equal_brute_force(seed, k):
  scores, correct, answers, finished = _problems(seed)
  P, N = scores.shape
  ones = np.ones(N)
  everyone = np.ones((P, N), bool)

  def each(rule):
    return [_brute(lambda s, p=p: rule(p, s), N, k) for p in range(P)]

  cases = [
    (
      estimators.pass_at_k(correct, k, per_problem=True),
      each(lambda p, s: correct[p, s].any()),
    ),
    (
      estimators.best_of_k(scores, correct, k, per_problem=True),
      each(lambda p, s: _best(scores[p], correct[p], everyone[p], s)),
    ),
    (
      estimators.best_of_k(
        scores, correct, k, finished_PN=finished, per_problem=True
      ),
      each(lambda p, s: _best(scores[p], correct[p], finished[p], s)),
    ),
    (
      estimators.majority_at_k(answers, correct, k, per_problem=True),
      each(lambda p, s: _vote(answers[p], ones, correct[p], s)),
    ),
    (
      estimators.weighted_vote_at_k(
        answers, scores, correct, k, per_problem=True
      ),
      each(lambda p, s: _vote(answers[p], scores[p], correct[p], s)),
    ),
  ]
  for got, want in cases:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_mean_over_problems_is_a_float():
  scores, correct, answers, _ = _problems(0)
  for call in (
    lambda **kw: estimators.pass_at_k(correct, 3, **kw),
    lambda **kw: estimators.best_of_k(scores, correct, 3, **kw),
    lambda **kw: estimators.majority_at_k(answers, correct, 3, **kw),
    lambda **kw: estimators.weighted_vote_at_k(
      answers, scores, correct, 3, **kw
    ),
  ):
    assert type(call()) is float
    np.testing.assert_allclose(
      call(), call(per_problem=True).mean(), rtol=1e-15
    )


def test_identities_at_the_ends():
  scores, correct, answers, _ = _problems(3, P=40, N=9)
  mean = correct.mean()
  parsed_mean = (correct & (answers != -1)).mean()
  np.testing.assert_allclose(estimators.pass_at_k(correct, 1), mean)
  np.testing.assert_allclose(estimators.best_of_k(scores, correct, 1), mean)
  np.testing.assert_allclose(
    estimators.majority_at_k(answers, correct, 1), parsed_mean
  )
  # A constant score carries no information: every k gives pass@1.
  constant = np.full_like(scores, 0.5)
  for k in (1, 2, 5, 9):
    np.testing.assert_allclose(
      estimators.best_of_k(constant, correct, k), mean, rtol=1e-13
    )
  # An oracle as the score reaches the ceiling.
  for k in (1, 2, 5, 9):
    np.testing.assert_allclose(
      estimators.best_of_k(correct.astype(float), correct, k),
      estimators.pass_at_k(correct, k),
      rtol=1e-13,
    )
  # Equal weights turn the weighted vote into the majority.
  for k in (1, 2, 5, 9):
    np.testing.assert_allclose(
      estimators.weighted_vote_at_k(answers, constant, correct, k),
      estimators.majority_at_k(answers, correct, k),
      rtol=1e-12,
    )


@pytest.mark.parametrize(('N', 'k'), [(64, 32), (256, 8), (256, 128)])
def test_large_n_is_stable(N, k):
  rng = np.random.default_rng(0)
  P = 4
  correct = rng.random((P, N)) < 0.3
  answers = np.where(correct, 0, rng.integers(1, 9, size=(P, N)))
  scores = rng.random((P, N)) + 0.1 * correct
  # Oracle: a plain simulation of the definition.
  draws = np.argsort(rng.random((4000, N)), axis=1)[:, :k]
  majority = estimators.majority_at_k(answers, correct, k, per_problem=True)
  best = estimators.best_of_k(scores, correct, k, per_problem=True)
  ceiling = estimators.pass_at_k(correct, k, per_problem=True)
  for p in range(P):
    right = correct[p][draws]
    top = np.argmax(scores[p][draws], axis=1)
    simulated = right[np.arange(len(draws)), top].mean()
    np.testing.assert_allclose(best[p], simulated, atol=0.035)
    np.testing.assert_allclose(ceiling[p], right.any(1).mean(), atol=0.035)
    votes = (answers[p][draws][:, :, None] == np.arange(9)).sum(1)
    tied = votes == votes.max(1, keepdims=True)
    simulated = (tied[:, 0] / tied.sum(1)).mean()
    np.testing.assert_allclose(majority[p], simulated, atol=0.035)


def test_monte_carlo_is_unbiased_and_deterministic():
  scores, correct, answers, _ = _problems(5, P=30, N=10)
  exact = estimators.weighted_vote_at_k(answers, scores, correct, 4)

  def sampled(seed):
    return estimators.weighted_vote_at_k(
      answers, scores, correct, 4, exact_limit=0, subsets=50, seed=seed
    )

  assert sampled(7) == sampled(7)
  runs = np.array([sampled(seed) for seed in range(40)])
  assert runs.std() > 0
  np.testing.assert_allclose(
    runs.mean(), exact, atol=4 * runs.std() / np.sqrt(len(runs))
  )


def test_chunks_do_not_change_the_value(monkeypatch):
  scores, correct, answers, _ = _problems(6, P=30, N=12)
  args = (answers, scores, correct, 5)
  whole = estimators.weighted_vote_at_k(*args, exact_limit=0)
  monkeypatch.setattr(estimators, '_CHUNK_CELLS', 1)
  assert estimators.weighted_vote_at_k(*args, exact_limit=0) == whole


def test_answers_may_be_any_hashables():
  names = [['a', None, ('a',), 'a'], [3, 'x', -1, 2.5]]
  ids = [[0, -1, 1, 0], [0, 1, -1, 2]]
  np.testing.assert_array_equal(estimators.answer_ids(names, (2, 4)), ids)
  correct = [[1, 0, 0, 1], [0, 1, 0, 0]]
  assert estimators.majority_at_k(
    names, correct, 3
  ) == estimators.majority_at_k(ids, correct, 3)


def test_float_sums_tie_in_any_order():
  # 0.1 + 0.2 and 0.3 differ in the last bit; they are one tie.
  value = estimators.weighted_vote_at_k(
    [[0, 0, 1]], [[0.1, 0.2, 0.3]], [[1, 1, 0]], 3
  )
  np.testing.assert_allclose(value, 0.5, rtol=1e-15)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: estimators.pass_at_k([[1, 0]], 0), 'k=0: must be at least 1'),
    (lambda: estimators.pass_at_k([[1, 0]], 3), 'only 2 samples a problem'),
    (lambda: estimators.pass_at_k([[1, 0]], 1.5), 'must be an integer'),
    (lambda: estimators.pass_at_k([1, 0], 1), 'needs shape'),
    (lambda: estimators.pass_at_k([[0.5, 0]], 1), 'must be 0 or 1'),
    (lambda: estimators.best_of_k([[0.1]], [[1, 0]], 1), 'scores_PN: shape'),
    (
      lambda: estimators.best_of_k([[np.nan, 1]], [[1, 0]], 1),
      '1 of 2 scores are NaN',
    ),
    (
      lambda: estimators.best_of_k(
        [[0.2, 1]], [[1, 0]], 1, finished_PN=[[True]]
      ),
      'finished_PN: shape',
    ),
    (lambda: estimators.majority_at_k([[1]], [[1, 0]], 1), 'answers_PN'),
    (
      lambda: estimators.majority_at_k(np.ones((2, 2)), [[1, 0]], 1),
      'answers_PN: shape',
    ),
    (
      lambda: estimators.majority_at_k([[np.nan, 1]], [[1, 0]], 1),
      'holds NaN',
    ),
    (
      lambda: estimators.weighted_vote_at_k([[1, 2]], [[-1, 0]], [[1, 0]], 1),
      '>= 0',
    ),
  ],
)
def test_bad_input_is_one_clear_line(call, message):
  with pytest.raises(UserError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
