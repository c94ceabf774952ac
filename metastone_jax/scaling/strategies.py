"""How k samples become one answer, as accuracy and cost of every strategy.

Contract: pure, seeded functions of `EvaluationSamples` (N samples a problem,
drawn once), one value a problem. Every number is an average over k-subsets of
the N samples, so smaller k cost no further draws:

| strategy        | what is answered                          | method         |
| --------------- | ----------------------------------------- | -------------- |
| `single`        | one sample (k = 1 alone)                  | exact          |
| `majority`      | the most frequent answer                  | exact          |
| `weighted_vote` | the answer of the largest sum of scores   | see estimators |
| `best_of_k`     | the sample of the highest trace score     | exact          |
| `pruned`        | that, of those which pruning leaves       | random subsets |
| `oracle`        | a right one if there is any: pass@k       | exact          |

`pruned` is speculative rejection (Sun et al. 2024) as `sampling.engine.pruning`
does it, judged exactly at the milestones: when all candidates that still think
have `tokens` tokens, the better half of them goes on; the next milestone is at
twice as many. What closed its thinking before stays, and everyone who is left
is billed for a whole answer. The engine writes fewer: none for a closed trace
which a better one beats; so FLOPs of `pruned` are overstated.
"""

import dataclasses
import itertools
import math

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import estimators, summary
from metastone_jax.evaluation.samples import EvaluationSamples

# Name -> how tables and legends call it.
STRATEGIES = {
  'single': 'one sample',
  'majority': 'majority vote',
  'weighted_vote': 'score-weighted vote',
  'best_of_k': 'SPRM best-of-k',
  'pruned': 'SPRM best-of-k, pruned',
  'oracle': 'oracle pass@k (ceiling)',
}
# Random k-subsets a problem of `pruned_best_of_k`, as of the weighted vote.
SUBSETS = estimators.MONTE_CARLO_SUBSETS
# They read the score and pay for it.
_SCORED = ('weighted_vote', 'best_of_k')


@dataclasses.dataclass(frozen=True, eq=False)
class Milestones:
  """What pruning sees of P x N samples at its J milestones.

  Attributes:
    tokens_J: thinking tokens at each, increasing.
    running_PNJ: trace score of the marks among a sample's first tokens_J
      tokens; NaN where there is none: such a sample is not judged yet.
    flops_PNJ: of drawing so many tokens of a sample and scoring their marks.
  """

  tokens_J: np.ndarray
  running_PNJ: np.ndarray
  flops_PNJ: np.ndarray

  def check(self, shape: tuple[int, int]) -> None:
    """Raises UserError unless it belongs to samples of this shape (P, N)."""
    tokens_J = np.asarray(self.tokens_J)
    if not (np.diff(tokens_J, prepend=0) > 0).all():
      raise UserError(
        f'milestones at {tokens_J.tolist()} tokens: they must be positive and '
        'increase'
      )
    wanted = (*shape, len(tokens_J))
    for name in ('running_PNJ', 'flops_PNJ'):
      if getattr(self, name).shape != wanted:
        raise UserError(
          f'milestones: {name} has shape {getattr(self, name).shape}, needs '
          f'{wanted}'
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """A strategy at one k, a value a problem.

  Attributes:
    accuracy_P: expected correctness of the answer.
    thinking_P: thinking tokens drawn for it.
    flops_P: of reading the prompt once, drawing and, where the score is read,
      the score head.
  """

  accuracy_P: np.ndarray
  thinking_P: np.ndarray
  flops_P: np.ndarray


def outcomes(
  samples: EvaluationSamples,
  k: int,
  milestones: Milestones | None = None,
  *,
  seed: int = 0,
) -> dict[str, Outcome]:
  """Every strategy at k, in the order of `STRATEGIES`.

  Args:
    samples: with `thinking_PN` and all FLOPs.
    k: samples an answer; `single` is there at 1 alone.
    milestones: without them there is no `pruned`.
    seed: of the random subsets.

  Raises:
    UserError: samples without tokens or FLOPs, k outside [1, N].
  """
  for name in ('thinking_PN', 'read_flops_P', 'write_flops_PN'):
    if getattr(samples, name) is None:
      raise UserError(
        f'samples of {samples.task} have no {name}; draw them again with '
        'launch.sweep, which keeps it'
      )
  values = summary.rule_values(samples, k, seed=seed)
  values['single'] = samples.correct_PN.mean(axis=1)
  thinking_P = k * samples.thinking_PN.mean(axis=1)
  plain_P = samples.read_flops_P + k * samples.write_flops_PN.mean(axis=1)
  scored_P = plain_P
  if samples.score_flops_PN is not None:
    scored_P = plain_P + k * samples.score_flops_PN.mean(axis=1)
  found = {
    name: Outcome(
      values[name],
      thinking_P,
      scored_P if name in _SCORED else plain_P,
    )
    for name in STRATEGIES
    if name in values and (k == 1 or name != 'single')
  }
  if milestones is not None:
    found['pruned'] = pruned_best_of_k(samples, milestones, k, seed=seed)
  return {name: found[name] for name in STRATEGIES if name in found}


def pruned_best_of_k(
  samples: EvaluationSamples,
  milestones: Milestones,
  k: int,
  *,
  keep: float = 0.5,
  least: int = 1,
  subsets: int = SUBSETS,
  exact_limit: int = estimators.EXACT_LIMIT,
  seed: int = 0,
) -> Outcome:
  """Best-of-k of what speculative rejection leaves; see the module docstring.

  Of equal running scores the first of the subset stays, as in the engine. The
  winner is that of `evaluation.best_of_k`: finished ones first, ties count as
  their mean. A candidate that is given up has cost its tokens up to then.

  Args:
    samples: P x N.
    milestones: of these samples.
    k: subset size.
    keep: share of the candidates that still think which survives a milestone.
    least: so many of them always do.
    subsets: random k-subsets a problem, at least; disjoint blocks of random
      permutations, a function of (seed, problem) alone.
    exact_limit: where there are no more subsets than this, all are taken.
    seed: of the random subsets.

  Raises:
    UserError: bad options, k outside [1, N], milestones of other samples.
  """
  P, N = samples.shape
  milestones.check((P, N))
  if not 0 < keep < 1 or least < 1 or subsets < 1:
    raise UserError(
      'pruning needs 0 < keep < 1, least >= 1 and subsets >= 1: got '
      f'keep={keep}, least={least}, subsets={subsets}'
    )
  if not 1 <= k <= N:
    raise UserError(f'k={k}: must be between 1 and the {N} samples a problem')
  every = None
  if math.comb(N, k) <= exact_limit:
    every = np.array(list(itertools.combinations(range(N), k)))
  found = np.empty((3, P))
  for p in range(P):
    index_Mk = every
    if index_Mk is None:
      index_Mk = random_subsets(N, k, subsets, (seed, p))
    found[:, p] = _prune(samples, milestones, p, index_Mk, keep, least)
  return Outcome(found[0], found[1], samples.read_flops_P + found[2])


def random_subsets(N: int, k: int, subsets: int, seed) -> np.ndarray:
  """At least `subsets` uniform k-subsets of N, in random order: int (M, k).

  Disjoint blocks of random permutations, as `weighted_vote_at_k` takes them.
  """
  blocks = N // k
  rng = np.random.default_rng(seed)
  rows = np.tile(np.arange(N), (math.ceil(subsets / blocks), 1))
  return rng.permuted(rows, axis=1)[:, : blocks * k].reshape(-1, k)


def _prune(samples, milestones, p: int, index_Mk, keep, least) -> np.ndarray:
  """(correctness, thinking tokens, FLOPs) of problem p, means over subsets."""

  def taken(values_PN):
    return values_PN[p][index_Mk]

  thinking = taken(samples.thinking_PN)
  tokens = thinking.astype(np.float64)
  flops = taken(samples.write_flops_PN).astype(np.float64)
  if samples.score_flops_PN is not None:
    flops += taken(samples.score_flops_PN)
  alive = np.ones(index_Mk.shape, bool)
  for j, milestone in enumerate(milestones.tokens_J):
    running = taken(milestones.running_PNJ[..., j])
    judged = alive & (thinking > milestone) & ~np.isnan(running)
    count_M1 = judged.sum(axis=1, keepdims=True)
    stay_M1 = np.maximum(least, np.ceil(keep * count_M1))
    # Stable: of equal scores the first stays. What is not judged ranks last.
    order = np.argsort(np.where(judged, -running, np.inf), 1, kind='stable')
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    given_up = judged & (rank >= stay_M1)
    alive &= ~given_up
    tokens[given_up] = milestone
    flops[given_up] = taken(milestones.flops_PNJ[..., j])[given_up]
  # At least one is left: `least` of those that were judged, or all others.
  score = np.where(alive, taken(samples.scores_PN), -1.0)
  eligible = alive & taken(samples.eligible_PN)
  score = np.where(eligible | ~eligible.any(axis=1, keepdims=True), score, -1.0)
  best = alive & (score == score.max(axis=1, keepdims=True))
  right_M = (best * taken(samples.correct_PN)).sum(axis=1) / best.sum(axis=1)
  return np.array([right_M.mean(), tokens.sum(1).mean(), flops.sum(1).mean()])
