"""Whether samples support a claim: paired differences, intervals, verdicts.

Contract: pure functions. A problem's value is the expected correctness of the
answer from k of its N samples, averaged over ALL k-subsets (`evaluation`; a
truncated or unparsed sample wins only where there is no other). Both sides of a
claim are taken on the same problems and seeds, a difference a problem and seed.

Intervals: the same P problems meet all S seeds (of training and drawing), so
the mean difference errs for two reasons: other problems, other seeds.

    d_sp = mean + seed_s + problem_p + rest_sp
    error_problems^2 = MS_problems / (S P)
    error_seeds^2 = max(0, MS_seeds - MS_rest) / (S P)
    half^2 = (t_{P-1} error_problems)^2 + (t_{S-1} error_seeds)^2

with the mean squares of the two-way table. Each part has a t of its own (Zou
and Donner 2008), because Satterthwaite's one t covers as little as 90 % with 3
seeds where these differ a lot; this covers 94 to 97 %. With two seeds MS_rest
is not taken off, else a variance from two numbers vanishes too often; that
covers 97 to 99 %. With one seed only other problems are accounted for, and the
page says so. Values that are all equal (no problem shows a difference) have the
interval of a share that none of P problems shows: equal results do not prove
equality.

AUC within problems is a ratio of sums over problems; its intervals are those of
its linear form, AUC + (wins_p - AUC pairs_p) / mean(pairs).

Verdicts by the 95 % interval, in shares:

| kind     | supported     | not supported                           | else    |
| -------- | ------------- | --------------------------------------- | ------- |
| better   | low > 0       | high < margin: a gain that would matter | unclear |
|          |               | is ruled out (also when it is worse)    |         |
| no worse | low > -margin | high < -margin                          | unclear |

'No worse' than a side that chooses no better than chance is worth little: such
a finding is `hollow`.

Many claims are tested at once: each also has its one-sided p-value after Holm's
correction over the claims of its set; below 0.025 it holds beside all others.
"""

# ruff: noqa: N802, N815 (shapes in names carry capitals)

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from metastone_jax.errors import UserError
from metastone_jax.evaluation import estimators, intervals
from metastone_jax.scaling import claims_list
from metastone_jax.scaling.claims_list import Claim, Side
from metastone_jax.scaling.judged import About, Judged

LEVEL = 0.95
SUPPORTED, NOT_SUPPORTED = 'supported', 'not supported'
UNCLEAR, UNDEFINED = 'unclear', 'undefined'
_STEPS = 60  # of a bisection: to the last digit of a float64
_ROUNDING = 1e-12  # of estimators, no difference


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """One arm of one seed.

  Attributes:
    judged: what it said of the held-out samples.
    about: what it is and cost.
  """

  judged: Judged
  about: About

  @property
  def aggregator(self) -> str:
    """How its step scores become a trace score unless a claim says it."""
    return self.about.options.get('aggregator') or 'geometric'


# (arm, seed) -> it, of one set.
Arms = Mapping[tuple[str, int], Arm]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over seeds and problems, with what it owes to either.

  Attributes:
    mean: over both.
    error_problems: standard error for other problems.
    error_seeds: standard error for other seeds; NaN with one seed.
    seeds: S.
    problems: P.
  """

  mean: float
  error_problems: float
  error_seeds: float
  seeds: int
  problems: int

  def half(self, level: float = LEVEL) -> float:
    """Half the width of the interval."""
    parts = [_quantile(level, self.problems - 1) * self.error_problems]
    if self.seeds > 1:
      parts.append(_quantile(level, self.seeds - 1) * self.error_seeds)
    return math.hypot(*parts)

  @property
  def low(self) -> float:
    """Lower bound at LEVEL."""
    return self.mean - self.half()

  @property
  def high(self) -> float:
    """Upper bound at LEVEL."""
    return self.mean + self.half()

  def p_above(self, null: float) -> float:
    """One-sided p-value of 'the truth is at most null'."""
    distance = self.mean - null
    if math.isnan(distance):
      return math.nan
    # The level at which the interval ends at null.
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
      level = (low + high) / 2
      if self.half(level) < abs(distance):
        low = level
      else:
        high = level
    tail = (1 - low) / 2
    return tail if distance > 0 else 1 - tail


def _quantile(level: float, freedom: int) -> float:
  return float(special.stdtrit(freedom, (1 + level) / 2))


def estimate(value_SP) -> Estimate:
  """The mean of S seeds x P problems and its errors (module docstring).

  Args:
    value_SP: finite values, the same problems in every row.

  Raises:
    UserError: fewer than two problems.
  """
  value_SP = np.asarray(value_SP, np.float64)
  if value_SP.ndim != 2 or value_SP.shape[0] < 1 or value_SP.shape[1] < 2:
    raise UserError(
      f'claims: values of shape {value_SP.shape}; an interval needs (seeds, '
      'problems) with at least 2 problems'
    )
  S, P = value_SP.shape
  mean = float(value_SP.mean())
  if np.ptp(value_SP) <= _ROUNDING:
    most = intervals.interval(np.zeros(P), level=LEVEL).high
    error = most / _quantile(LEVEL, P - 1)
    return Estimate(mean, error, 0.0 if S > 1 else math.nan, S, P)
  problem_P, seed_S = value_SP.mean(axis=0), value_SP.mean(axis=1)
  ms_problems = S * ((problem_P - mean) ** 2).sum() / (P - 1)
  error_problems = math.sqrt(ms_problems / (S * P))
  if S == 1:
    return Estimate(mean, error_problems, math.nan, S, P)
  ms_seeds = P * ((seed_S - mean) ** 2).sum() / (S - 1)
  if S > 2:
    rest_SP = value_SP - problem_P - seed_S[:, None] + mean
    ms_seeds -= (rest_SP**2).sum() / ((S - 1) * (P - 1))
  error_seeds = math.sqrt(max(0.0, ms_seeds) / (S * P))
  return Estimate(mean, error_problems, error_seeds, S, P)


def eligible_PN(judged: Judged) -> np.ndarray:
  """What may win before anything else: finished and not unparsed (SPEC 5)."""
  return judged.finished_PN & (judged.answers_PN != estimators.UNPARSED)


def _scores_PN(arm: Arm, side: Side) -> np.ndarray:
  if not arm.judged.has_head and (side.aggregator or side.rule == 'vote'):
    raise UserError(
      f'arm {arm.about.arm} has no step scores: it can neither be aggregated '
      f'({side.aggregator or "its own"}) nor weight a vote'
    )
  return arm.judged.score_PN(side.aggregator or arm.aggregator)


def accuracy_P(arm: Arm, side: Side, k: int) -> np.ndarray:
  """Expected correctness of the side's answer from k samples, a problem.

  Args:
    arm: of the side.
    side: rule and aggregator.
    k: at most N.

  Raises:
    UserError: k above N, a vote by values that are no scores, or a rule that
      does not exist.
  """
  judged, options = arm.judged, dict(per_problem=True)
  if side.rule == 'single':
    return estimators.pass_at_k(judged.correct_PN, 1, **options)
  if side.rule == 'oracle':
    return estimators.pass_at_k(judged.correct_PN, k, **options)
  if side.rule == 'majority':
    return estimators.majority_at_k(
      judged.answers_PN, judged.correct_PN, k, **options
    )
  scores = _scores_PN(arm, side)
  if side.rule == 'vote':
    return estimators.weighted_vote_at_k(
      judged.answers_PN, scores, judged.correct_PN, k, **options
    )
  if side.rule != 'best':
    raise UserError(
      f'claims: no rule {side.rule!r}; there are '
      f'{", ".join((*claims_list.RULES, "oracle"))}'
    )
  return estimators.best_of_k(
    scores, judged.correct_PN, k, finished_PN=eligible_PN(judged), **options
  )


def auc_P(arm: Arm, side: Side) -> np.ndarray:
  """Linear form of the AUC within problems: its mean over P is the AUC.

  NaN everywhere where no problem has right and wrong samples.
  """
  scores, right_PN = _scores_PN(arm, side), arm.judged.correct_PN
  # Right n against wrong m of the same problem; ties half.
  gap_PNN = scores[:, :, None] - scores[:, None, :]
  pair_PNN = right_PN[:, :, None] & ~right_PN[:, None, :]
  wins_P = (pair_PNN * ((gap_PNN > 0) + 0.5 * (gap_PNN == 0))).sum((1, 2))
  pairs_P = pair_PNN.sum((1, 2)).astype(np.float64)
  if not pairs_P.sum():
    return np.full(len(pairs_P), np.nan)
  auc = wins_P.sum() / pairs_P.sum()
  return auc + (wins_P - auc * pairs_P) / pairs_P.mean()


def side_SP(
  arms: Arms, side: Side, seeds: Sequence[int], k: int, metric: str
) -> np.ndarray:
  """Values of a side, seeds x problems.

  Raises:
    UserError: seeds that judge different problems.
  """
  ids = None
  rows = []
  for seed in seeds:
    arm = arms[side.arm, seed]
    ids = ids or arm.judged.problem_ids
    if arm.judged.problem_ids != ids:
      raise UserError(
        f'arm {side.arm}: seed {seed} judges other problems than seed '
        f'{seeds[0]}; seeds of one set need the same held-out problems'
      )
    if metric == claims_list.AUC:
      rows.append(auc_P(arm, side))
    else:
      rows.append(accuracy_P(arm, side, min(k, arm.judged.shape[1])))
  return np.stack(rows)


def measure(
  arms: Arms, side: Side, k: int, metric: str = claims_list.ACCURACY
) -> Estimate | None:
  """One side over all its seeds; None where it has none."""
  seeds = seeds_of(arms, side.arm)
  if not seeds:
    return None
  return estimate(side_SP(arms, side, seeds, k, metric))


def seeds_of(arms: Arms, *names: str) -> list[int]:
  """Seeds that all of these arms have."""
  several = [{s for a, s in arms if a == name} for name in names]
  return sorted(set.intersection(*several))


@dataclasses.dataclass(frozen=True)
class Finding:
  """What became of a claim in a set.

  Attributes:
    claim: it.
    a: its first side in this set.
    b: its second.
    verdict: SUPPORTED, NOT_SUPPORTED, UNCLEAR; UNDEFINED where the metric is;
      '' where an arm is missing.
    mean_a: of side a, over the seeds that both sides have; NaN without any.
    mean_b: of side b.
    difference: a - b; None where an arm is missing.
    last: likewise, by the last step alone on all sides that aggregate step
      scores and for which the claim names no aggregator; None where it names
      one, or where no side has any.
    seeds: that both sides have.
    p: one-sided, against the claim's border (0, or -margin).
    holm: p after Holm's correction over the claims of the set.
    same: the sides agree on every problem.
    hollow: a supported claim of 'no worse' whose second side is not shown to
      beat chance: one sample, or an AUC of a half.
  """

  claim: Claim
  a: Side
  b: Side
  verdict: str = ''
  mean_a: float = math.nan
  mean_b: float = math.nan
  difference: Estimate | None = None
  last: Estimate | None = None
  seeds: tuple[int, ...] = ()
  p: float = math.nan
  holm: float = math.nan
  same: bool = False
  hollow: bool = False


def findings(arms: Arms, name: str, k: int = 8) -> list[Finding]:
  """Every claim of a set on the arms that are there, in the order of the list.

  Args:
    arms: of this set.
    name: of the set.
    k: samples an answer; all there are where they are fewer.

  Raises:
    UserError: the sides of a claim judge different problems.
  """
  found = [_finding(arms, claim, name, k) for claim in claims_list.of_set(name)]
  adjusted = iter(holm([f.p for f in found if not math.isnan(f.p)]))
  return [
    f if math.isnan(f.p) else dataclasses.replace(f, holm=next(adjusted))
    for f in found
  ]


def _finding(arms: Arms, claim: Claim, name: str, k: int) -> Finding:
  a, b = claim.sides(name)
  seeds = seeds_of(arms, a.arm, b.arm)
  if not seeds:
    return Finding(claim, a, b)
  ids = [arms[side.arm, seeds[0]].judged.problem_ids for side in (a, b)]
  if ids[0] != ids[1]:
    raise UserError(
      f'claim {claim.id}: {a.arm} and {b.arm} judge different problems; a '
      'paired difference needs the same held-out set'
    )
  a_SP, b_SP = (side_SP(arms, s, seeds, k, claim.metric) for s in (a, b))
  difference = estimate(a_SP - b_SP)
  border = 0.0 if claim.kind == claims_list.BETTER else -claim.margin
  said = verdict(claim.kind, claim.margin, difference.low, difference.high)
  return Finding(
    claim,
    a,
    b,
    said,
    float(a_SP.mean()),
    float(b_SP.mean()),
    difference,
    _by_last_step(arms, claim, a, b, seeds, k),
    tuple(seeds),
    difference.p_above(border),
    same=bool(np.abs(a_SP - b_SP).max() <= _ROUNDING),
    hollow=said == SUPPORTED
    and claim.kind == claims_list.NO_WORSE
    and b.rule != 'single'
    and not _beats_chance(arms, b, b_SP, seeds, claim.metric),
  )


def _beats_chance(arms, side: Side, value_SP, seeds, metric: str) -> bool:
  if metric == claims_list.AUC:
    return estimate(value_SP - 0.5).low > 0
  single_SP = side_SP(arms, Side(side.arm, 'single'), seeds, 1, metric)
  return estimate(value_SP - single_SP).low > 0


def _by_last_step(arms, claim, a: Side, b: Side, seeds, k) -> Estimate | None:
  def scored(side: Side) -> bool:
    return (
      side.rule in ('best', 'vote') and arms[side.arm, seeds[0]].judged.has_head
    )

  if a.aggregator or b.aggregator or not (scored(a) or scored(b)):
    return None
  a_SP, b_SP = (
    side_SP(
      arms,
      dataclasses.replace(side, aggregator='last') if scored(side) else side,
      seeds,
      k,
      claim.metric,
    )
    for side in (a, b)
  )
  return estimate(a_SP - b_SP)


def verdict(kind: str, margin: float, low: float, high: float) -> str:
  """What an interval says of a claim; the table of the module docstring."""
  if math.isnan(low) or math.isnan(high):
    return UNDEFINED
  if kind == claims_list.BETTER:
    supported, refuted = low > 0, high < margin
  else:
    supported, refuted = low > -margin, high < -margin
  if supported:
    return SUPPORTED
  return NOT_SUPPORTED if refuted else UNCLEAR


def holm(p_n: Sequence[float]) -> list[float]:
  """Holm's adjusted p-values (1979), in the order given."""
  order = sorted(range(len(p_n)), key=lambda i: p_n[i])
  adjusted, largest = [0.0] * len(p_n), 0.0
  for place, i in enumerate(order):
    largest = max(largest, min(1.0, (len(p_n) - place) * p_n[i]))
    adjusted[i] = largest
  return adjusted
