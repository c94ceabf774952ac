"""Unbiased test-time-scaling estimators over all k-subsets of N samples.

Contract: given N sampled answers a problem, every estimator returns the
expected accuracy of a selection rule that sees k of them, averaged over ALL
k-subsets (not over consecutive groups), then over the P problems; or one value
a problem with `per_problem=True`, which is what a paired bootstrap needs.

| rule                          | method                                       |
| ----------------------------- | -------------------------------------------- |
| `pass_at_k`, `best_of_k`      | exact, closed form (integer binomials)       |
| `majority_at_k`               | exact, generating function over the answers  |
| `weighted_vote_at_k`          | exact up to `exact_limit` subsets, above it  |
|                               | a seeded, unbiased Monte-Carlo               |

Everything is float64 and works for any N; no factorial is ever a float. Arrays
may be numpy, jax or nested lists. Bad input raises `UserError`.

Source: SPEC sections 5, 6 and 9; pass@k is Chen et al. 2021 (arXiv 2107.03374).
"""

import itertools
import math
import operator

import numpy as np

from metastone_jax.errors import UserError

UNPARSED = -1
# Above this many k-subsets `weighted_vote_at_k` samples instead of enumerating.
EXACT_LIMIT = 5000
# Random subsets a problem then; with 512 problems the standard error of the
# mean that sampling adds is below 0.0011, far inside a bootstrap interval.
MONTE_CARLO_SUBSETS = 400
# Sums of the same scores in another order must still tie.
_TIE_RELATIVE = 1e-12
# Table cells (problem x subset x answer) handled at once: bounds the memory.
_CHUNK_CELLS = 4_000_000


def pass_at_k(correct_PN, k: int, *, per_problem: bool = False):
  """Oracle: the chance that a k-subset contains at least one right sample.

  Args:
    correct_PN: 0/1 or bool, sample n of problem p is right.
    k: subset size, 1 <= k <= N.
    per_problem: return P values instead of their mean.

  Returns:
    1 - C(N - c, k) / C(N, k), c right samples: a float, or float64 P.
  """
  correct_PN = _check_correct(correct_PN)
  k = _check_k(k, correct_PN.shape[1])
  miss_M = _subset_table(correct_PN.shape[1], k)
  wrong_P = (correct_PN == 0).sum(axis=1)
  return _finish(1.0 - miss_M[wrong_P], per_problem)


def best_of_k(
  scores_PN,
  correct_PN,
  k: int,
  *,
  finished_PN=None,
  per_problem: bool = False,
):
  """SPRM best-of-k: accuracy of the highest score in a k-subset.

  Samples that tie for the highest score count as their mean.

  Args:
    scores_PN: trace scores, any order-preserving scale; no NaN.
    correct_PN: 0/1 or bool.
    k: subset size, 1 <= k <= N.
    finished_PN: optional bool; a sample with False (truncated, unparsed) wins
      only where the subset has no finished one (SPEC 5). None: pure argmax,
      the released code's rule.
    per_problem: return P values instead of their mean.

  Returns:
    A float, or float64 P.
  """
  correct_PN = _check_correct(correct_PN)
  scores_PN = check_scores(scores_PN, correct_PN.shape)
  P, N = correct_PN.shape
  k = _check_k(k, N)
  # Dense integer ranks make ties exact and leave room for the finished flag
  # as the more significant half of a lexicographic key.
  rank = np.unique(scores_PN, return_inverse=True)[1].reshape(P, N)
  if finished_PN is not None:
    finished_PN = np.asarray(finished_PN)
    _check_same_shape('finished_PN', finished_PN.shape, (P, N))
    rank = rank + finished_PN.astype(bool) * (int(rank.max()) + 1)
  order = np.argsort(rank, axis=1, kind='stable')
  rank = np.take_along_axis(rank, order, axis=1)
  right = np.take_along_axis(correct_PN, order, axis=1)
  # [first, last) of the group of tied samples that each sample belongs to.
  index = np.arange(N)
  opens = np.ones((P, N), bool)
  opens[:, 1:] = rank[:, 1:] != rank[:, :-1]
  first = np.maximum.accumulate(np.where(opens, index, 0), axis=1)
  closes = np.ones((P, N), bool)
  closes[:, :-1] = opens[:, 1:]
  last = np.where(closes, index + 1, N)
  last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
  # The group wins a subset that lies inside [0, last) but not in [0, first);
  # by symmetry each of its members then counts with 1 / group size.
  inside_M = _subset_table(N, k)
  weight = (inside_M[last] - inside_M[first]) / (last - first)
  return _finish((weight * right).sum(axis=1), per_problem)


def majority_at_k(answers_PN, correct_PN, k: int, *, per_problem: bool = False):
  """Majority vote (self-consistency): the most frequent answer of k samples.

  Exact although the subsets are exponentially many. For each winning count m
  the votes of the answers are independent factors of a generating function
  sum_j C(n_a, j) x^j, cut at j <= m; its terms also carry how many answers tie
  at m and the sum of their correctness. The factors are binomial(n_a, k/N)
  probabilities instead of plain C(n_a, j): the same up to one constant, and
  nothing overflows.

  Args:
    answers_PN: answer ids or any hashables; -1 or None is unparsed, has no
      vote, and a subset without any parsed answer is wrong.
    correct_PN: 0/1 or bool. Where one answer has right and wrong samples, it
      counts as the mean of its samples in the subset.
    k: subset size, 1 <= k <= N.
    per_problem: return P values instead of their mean.

  Returns:
    A float, or float64 P. Tied answers count as their mean.
  """
  correct_PN = _check_correct(correct_PN)
  P, N = correct_PN.shape
  ids_PN = answer_ids(answers_PN, correct_PN.shape)
  k = _check_k(k, N)
  slot = np.where(ids_PN < 0, N, ids_PN) + np.arange(P)[:, None] * (N + 1)
  shape = (P, N + 1)
  count_PA = np.bincount(slot.ravel(), minlength=P * (N + 1)).reshape(shape)
  right_PA = np.bincount(
    slot.ravel(), correct_PN.ravel(), minlength=P * (N + 1)
  ).reshape(shape)
  unparsed_P, count_PA = count_PA[:, N], count_PA[:, :N]
  order = np.argsort(-count_PA, axis=1, kind='stable')
  count_PA = np.take_along_axis(count_PA, order, axis=1)
  right_PA = np.take_along_axis(right_PA[:, :N], order, axis=1)
  right_PA = right_PA / np.maximum(count_PA, 1)
  binomial_Nk = _binomial_table(N, k)
  value_P = np.zeros(P)
  for votes in range(1, min(k, int(count_PA[:, 0].max())) + 1):
    rows = np.flatnonzero(count_PA[:, 0] >= votes)
    value_P[rows] += _majority_term(
      count_PA[rows], right_PA[rows], unparsed_P[rows], binomial_Nk, votes
    )
  return _finish(value_P / binomial_Nk[N, k], per_problem)


def weighted_vote_at_k(
  answers_PN,
  scores_PN,
  correct_PN,
  k: int,
  *,
  per_problem: bool = False,
  exact_limit: int = EXACT_LIMIT,
  subsets: int = MONTE_CARLO_SUBSETS,
  seed: int = 0,
):
  """Score-weighted vote: the answer with the largest sum of scores of k.

  With at most `exact_limit` k-subsets all are enumerated. Otherwise at least
  `subsets` random ones a problem: each random permutation of the samples is
  cut into floor(N / k) disjoint blocks, every one a uniform k-subset, so the
  estimate stays unbiased; the draw depends on (seed, problem index) only.

  Args:
    answers_PN: as in `majority_at_k`.
    scores_PN: weights >= 0 (trace scores, probabilities).
    correct_PN: as in `majority_at_k`.
    k: subset size, 1 <= k <= N.
    per_problem: return P values instead of their mean.
    exact_limit: most subsets to enumerate.
    subsets: least random subsets a problem beyond that.
    seed: of the random subsets, >= 0.

  Returns:
    A float, or float64 P. Answers whose sums agree to 1e-12 tie and count as
    their mean.
  """
  correct_PN = _check_correct(correct_PN)
  P, N = correct_PN.shape
  scores_PN = check_scores(scores_PN, (P, N))
  if scores_PN.min() < 0 or np.isinf(scores_PN).any():
    raise UserError(
      'weighted_vote_at_k: scores are vote weights and must be finite and '
      '>= 0; pass probabilities, not logits or log-probs'
    )
  ids_PN = answer_ids(answers_PN, (P, N))
  k = _check_k(k, N)
  exact = is_exact(N, k, exact_limit)
  if exact:
    shared_Mk = np.array(list(itertools.combinations(range(N), k)))
    draws = len(shared_Mk)
  else:
    if subsets < 1:
      raise UserError(f'weighted_vote_at_k: subsets={subsets}, needs >= 1')
    blocks = N // k
    permutations = math.ceil(subsets / blocks)
    draws = permutations * blocks
  rows = max(1, _CHUNK_CELLS // (draws * (int(ids_PN.max()) + 2 + k)))
  value_P = np.empty(P)
  for start in range(0, P, rows):
    stop = min(start + rows, P)
    if exact:
      index_PMk = np.broadcast_to(shared_Mk, (stop - start, draws, k))
    else:
      index_PMk = np.stack(
        [
          _random_subsets(N, k, permutations, (seed, p))
          for p in range(start, stop)
        ]
      )
    part = slice(start, stop)
    value_P[part] = _vote_subsets(
      ids_PN[part], scores_PN[part], correct_PN[part], index_PMk
    )
  return _finish(value_P, per_problem)


def is_exact(N: int, k: int, exact_limit: int = EXACT_LIMIT) -> bool:
  """Whether `weighted_vote_at_k` enumerates every subset at this size."""
  return math.comb(N, k) <= exact_limit


def answer_ids(answers_PN, shape: tuple[int, int]) -> np.ndarray:
  """Ids 0, 1, ... a problem for any hashable answers; -1 stays unparsed.

  Args:
    answers_PN: integers or hashables; -1 and None mean unparsed.
    shape: (P, N) that the answers must have.

  Returns:
    int64 PN, dense within each problem in order of first appearance.
  """
  P, N = shape
  rows = answers_PN
  if not isinstance(answers_PN, list | tuple):
    array = np.asarray(answers_PN)
    _check_same_shape('answers_PN', array.shape, shape)
    rows = array.tolist()
  # Nested lists are walked by hand: numpy would turn [3, 'x'] into strings
  # and lists of tuples into a third axis.
  if len(rows) != P or any(len(row) != N for row in rows):
    raise UserError(f'answers_PN: needs {P} rows of {N} answers')
  ids_PN = np.empty(shape, np.int64)
  for p, row in enumerate(rows):
    seen = {}
    for n, answer in enumerate(row):
      if answer is None or answer == UNPARSED:
        ids_PN[p, n] = UNPARSED
        continue
      if answer != answer:
        raise UserError(f'answers_PN: row {p} holds NaN; use -1 for unparsed')
      ids_PN[p, n] = seen.setdefault(answer, len(seen))
  return ids_PN


def check_scores(scores_PN, shape: tuple[int, int]) -> np.ndarray:
  """Scores as float64 PN; `UserError` on another shape or on NaN."""
  scores_PN = np.asarray(scores_PN, np.float64)
  _check_same_shape('scores_PN', scores_PN.shape, shape)
  bad = int(np.isnan(scores_PN).sum())
  if bad:
    raise UserError(f'scores_PN: {bad} of {scores_PN.size} scores are NaN')
  return scores_PN


def _check_correct(correct_PN) -> np.ndarray:
  correct_PN = np.asarray(correct_PN)
  if correct_PN.ndim != 2 or 0 in correct_PN.shape:
    raise UserError(
      'correct_PN: needs shape (problems, samples), both >= 1; got '
      f'{correct_PN.shape}'
    )
  correct_PN = correct_PN.astype(np.float64)
  if not np.isin(correct_PN, (0.0, 1.0)).all():
    raise UserError('correct_PN: every value must be 0 or 1 (wrong or right)')
  return correct_PN


def _check_k(k, N: int) -> int:
  try:
    k = operator.index(k)
  except TypeError:
    raise UserError(f'k={k!r}: must be an integer') from None
  if k < 1:
    raise UserError(f'k={k}: must be at least 1')
  if k > N:
    raise UserError(
      f'k={k}: only {N} samples a problem; draw more samples or lower k'
    )
  return k


def _check_same_shape(name: str, got, want) -> None:
  if tuple(got) != tuple(want):
    raise UserError(f'{name}: shape {tuple(got)}, needs {tuple(want)}')


def _finish(value_P: np.ndarray, per_problem: bool):
  # Rounding may leave 1 + 2e-16; an accuracy is never outside [0, 1].
  value_P = np.clip(value_P, 0.0, 1.0)
  return value_P if per_problem else float(value_P.mean())


def _subset_table(N: int, k: int) -> np.ndarray:
  """C(m, k) / C(N, k) for m = 0..N; the integer ratio rounds only once."""
  whole = math.comb(N, k)
  return np.array([math.comb(m, k) / whole for m in range(N + 1)])


def _binomial_table(N: int, k: int) -> np.ndarray:
  """table[n, j]: probability of j of n at rate k/N; n to N, j to k."""
  rate = k / N
  table = np.zeros((N + 1, k + 1))
  table[0, 0] = 1.0
  for n in range(1, N + 1):
    table[n] = table[n - 1] * (1.0 - rate)
    table[n, 1:] += table[n - 1, :-1] * rate
  return table


def _majority_term(count_PA, right_PA, unparsed_P, binomial_Nk, votes: int):
  """Expected correctness of the winner, over subsets it wins with `votes`.

  Axes of both tables: problem, number of answers tied at `votes`, subset size.
  """
  k = binomial_Nk.shape[1] - 1
  most_tied = k // votes
  chance = np.zeros((len(count_PA), most_tied + 1, k + 1))
  chance[:, 0] = binomial_Nk[unparsed_P]
  right_sum = np.zeros_like(chance)
  for a in range(count_PA.shape[1]):
    count_P = count_PA[:, a]
    top = int(count_P.max())
    if top == 0:
      break
    factor = binomial_Nk[count_P][:, :, None, None]
    new_chance = chance * factor[:, 0]
    new_right = right_sum * factor[:, 0]
    for j in range(1, min(votes - 1, top) + 1):
      new_chance[:, :, j:] += chance[:, :, :-j] * factor[:, j]
      new_right[:, :, j:] += right_sum[:, :, :-j] * factor[:, j]
    if top >= votes:
      taken = chance[:, :-1, :-votes] * factor[:, votes]
      new_chance[:, 1:, votes:] += taken
      new_right[:, 1:, votes:] += taken * right_PA[:, a, None, None]
      new_right[:, 1:, votes:] += right_sum[:, :-1, :-votes] * factor[:, votes]
    chance, right_sum = new_chance, new_right
  return (right_sum[:, 1:, k] / np.arange(1, most_tied + 1)).sum(axis=1)


def _random_subsets(N: int, k: int, permutations: int, seed) -> np.ndarray:
  rng = np.random.default_rng(seed)
  order = rng.permuted(np.tile(np.arange(N), (permutations, 1)), axis=1)
  return order[:, : N // k * k].reshape(-1, k)


def _vote_subsets(ids_PN, scores_PN, correct_PN, index_PMk) -> np.ndarray:
  """Mean correctness of the weighted winner over the given subsets: P."""
  P, M, k = index_PMk.shape
  A = int(ids_PN.max()) + 1
  flat = index_PMk.reshape(P, M * k)
  ids, scores, right = (
    np.take_along_axis(x, flat, axis=1).reshape(P * M, k)
    for x in (ids_PN, scores_PN, correct_PN)
  )
  # Slot A collects the unparsed and is then dropped.
  slot = np.where(ids < 0, A, ids) + np.arange(P * M)[:, None] * (A + 1)

  def per_answer(weight):
    weight = None if weight is None else weight.ravel()
    cells = np.bincount(slot.ravel(), weight, minlength=P * M * (A + 1))
    return cells.reshape(P * M, A + 1)[:, :A]

  count = per_answer(None)
  if A == 0:
    return np.zeros(P)
  present = count > 0
  total = np.where(present, per_answer(scores), -np.inf)
  best = total.max(axis=1, keepdims=True)
  tied = present & (total >= best * (1.0 - _TIE_RELATIVE))
  quality = per_answer(right) / np.maximum(count, 1)
  value = (quality * tied).sum(axis=1) / np.maximum(tied.sum(axis=1), 1)
  return value.reshape(P, M).mean(axis=1)
