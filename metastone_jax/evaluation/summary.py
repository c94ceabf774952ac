"""From samples to the numbers of a report, each with its interval.

Contract: `summarise` is a pure, seeded function of `EvaluationSamples` and
returns plain JSON values. Accuracies are shares in [0, 1]; every interval is
over problems and names its method (see `intervals`); undefined numbers are
None. All rules are compared on the same samples at equal k, so differences are
paired by problem.

Layout of a summary:

    {'task', 'problems', 'samples_per_problem', 'split', 'traces',
     'level', 'resamples', 'seed',
     'pass_at_1': I,
     'rows': [{'k', 'oracle': I, 'best_of_k': I, 'weighted_vote': I,
               'majority': I, 'weighted_vote_subsets': 'all' or a count,
               'cost': {rule: {'tokens', 'thinking_tokens', 'answer_tokens',
                               'flops'}}}, ...],
     'differences': [{'name', 'k', ...I}, ...],
     'auc': {'within': I, 'across': I},
     'calibration': see `calibration`,
     'mean_score': {'right': float or None, 'wrong': float or None},
     'truncated_share': I, 'unparsed_share': I,
     'thinking_tokens': I or None, 'response_tokens': I,
     'failures': {name: count}, 'reasons': {name: count},
     'subjects': see `parts`, or None}

with I = {'mean', 'low', 'high', 'method'}. Source: SPEC sections 5 and 6.
"""

import operator
from collections.abc import Mapping, Sequence

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import auc, estimators, intervals, parts
from metastone_jax.evaluation.calibration import calibration
from metastone_jax.evaluation.samples import EvaluationSamples

DEFAULT_KS = (1, 2, 8, 32)
# Row key -> column title, in the order of the tables.
RULES = {
  'best_of_k': 'SPRM best-of-k',
  'weighted_vote': 'weighted vote',
  'majority': 'majority',
  'oracle': 'oracle pass@k',
}


def summarise(
  samples: EvaluationSamples,
  ks: Sequence[int] = DEFAULT_KS,
  *,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> dict:
  """Every number of one evaluation; the layout is in the module docstring.

  Best-of-k follows SPEC 5: a truncated or unparsed sample wins only where the
  subset has no other.

  Args:
    samples: P problems x N samples.
    ks: subset sizes; those above N are left out.
    level: coverage of the intervals.
    resamples: bootstrap resamples.
    seed: of the bootstrap and of the sampled subsets.

  Returns:
    A dict of plain JSON values.

  Raises:
    UserError: k < 1, or every k above N.
  """
  P, N = samples.shape
  ks = usable_ks(ks, N)
  single_P = samples.correct_PN.mean(axis=1)
  per_k = {k: rule_values(samples, k, seed=seed) for k in ks}
  share, difference = intervals.SHARE, intervals.DIFFERENCE
  columns = [('pass_at_1', single_P, share)]
  columns += [
    ((k, rule), values, share)
    for k, rules in per_k.items()
    for rule, values in rules.items()
  ]
  differences = _differences(per_k, single_P)
  columns += [(name, values, difference) for name, _, values in differences]
  columns += [
    ('truncated_share', 1.0 - samples.finished_PN.mean(axis=1), share),
    ('unparsed_share', samples.unparsed_PN.mean(axis=1), share),
    ('response_tokens', samples.tokens_PN.mean(axis=1), intervals.VALUE),
  ]
  if samples.thinking_PN is not None:
    thinking_P = samples.thinking_PN.mean(axis=1)
    columns.append(('thinking_tokens', thinking_P, intervals.VALUE))
  options = dict(level=level, resamples=resamples, seed=seed)
  found = dict(
    zip(
      [name for name, _, _ in columns],
      intervals.column_intervals(
        np.stack([values for _, values, _ in columns], axis=1),
        [kind for _, _, kind in columns],
        **options,
      ),
      strict=True,
    )
  )
  found = {name: interval.as_dict() for name, interval in found.items()}
  within, across = auc.auc_intervals(samples, **options)
  scores, correct = samples.scores_PN, samples.correct_PN
  subjects = None
  if samples.subjects is not None:
    last = ks[-1]
    measures = {'pass_at_1': single_P}
    if last > 1:
      measures |= {
        name: per_k[last][name] for name in ('best_of_k', 'majority')
      }
    subjects = {
      'k': last,
      **parts.by_subject(samples.subjects, measures, level=level),
    }
  return {
    'task': samples.task,
    'problems': P,
    'samples_per_problem': N,
    'split': samples.split,
    'traces': samples.traces,
    **options,
    'pass_at_1': found['pass_at_1'],
    'rows': [
      {
        'k': k,
        **{rule: found[k, rule] for rule in RULES},
        'weighted_vote_subsets': 'all'
        if estimators.is_exact(N, k)
        else estimators.MONTE_CARLO_SUBSETS,
        'cost': parts.costs(samples, k, list(RULES)),
      }
      for k in ks
    ],
    'differences': [
      {'name': name, 'k': k, **found[name]} for name, k, _ in differences
    ],
    'auc': {'within': within.as_dict(), 'across': across.as_dict()},
    'calibration': calibration(samples, **options),
    'mean_score': {
      'right': float(scores[correct].mean()) if correct.any() else None,
      'wrong': float(scores[~correct].mean()) if (~correct).any() else None,
    },
    **{
      name: found.get(name)
      for name in (
        'truncated_share',
        'unparsed_share',
        'thinking_tokens',
        'response_tokens',
      )
    },
    'failures': dict(sorted(samples.failures.items())),
    'reasons': dict(sorted(samples.reasons.items())),
    'subjects': subjects,
  }


def usable_ks(ks: Sequence[int], N: int) -> list[int]:
  """Sorted, without repeats, at most N; `UserError` if k < 1 or none left."""
  try:
    ks = sorted({operator.index(k) for k in ks})
  except TypeError:
    raise UserError(f'ks={ks!r}: needs a list of integers') from None
  if ks and ks[0] < 1:
    raise UserError(f'k={ks[0]}: must be at least 1')
  usable = [k for k in ks if k <= N]
  if not usable:
    raise UserError(
      f'ks={ks}: none is at most {N}, the samples a problem; draw more samples'
    )
  return usable


def rule_values(
  samples: EvaluationSamples, k: int, *, seed: int = 0
) -> dict[str, np.ndarray]:
  """Accuracy of each rule in `RULES` at k, one float64 value a problem."""
  correct, scores = samples.correct_PN, samples.scores_PN
  answers = samples.answers_PN
  return {
    'best_of_k': _best_of_k(samples, k),
    'weighted_vote': estimators.weighted_vote_at_k(
      answers, scores, correct, k, per_problem=True, seed=seed
    ),
    'majority': estimators.majority_at_k(answers, correct, k, per_problem=True),
    'oracle': estimators.pass_at_k(correct, k, per_problem=True),
  }


def summary_metrics(summary: Mapping, prefix: str = 'eval') -> dict[str, float]:
  """Flat metrics for a training log; undefined numbers are left out.

  Names: `eval/pass_at_1`, `eval/best_of_8`, `eval/majority_at_8`,
  `eval/weighted_vote_at_8`, `eval/pass_at_8`, `eval/auc_within`,
  `eval/auc_across`, `eval/truncated_share`, `eval/unparsed_share`,
  `eval/thinking_tokens`, `eval/response_tokens`, `eval/ece`, `eval/brier`, and
  `eval/verify/timeout` and the like, counts of verifier failures and of the
  reasons that verdicts name (`eval/verify/program/timeout`).
  """
  stems = {
    'best_of_k': 'best_of',
    'weighted_vote': 'weighted_vote_at',
    'majority': 'majority_at',
    'oracle': 'pass_at',
  }
  found = {'pass_at_1': summary['pass_at_1']['mean']}
  for row in summary['rows']:
    for rule, stem in stems.items():
      found[f'{stem}_{row["k"]}'] = row[rule]['mean']
  for side, interval in summary['auc'].items():
    found[f'auc_{side}'] = interval['mean']
  for name in (
    'truncated_share',
    'unparsed_share',
    'thinking_tokens',
    'response_tokens',
  ):
    found[name] = summary[name] and summary[name]['mean']
  found['ece'] = summary['calibration']['ece']
  found['brier'] = summary['calibration']['brier']['mean']
  counts = {**summary['failures'], **summary['reasons']}
  found |= {f'verify/{name}': n for name, n in counts.items()}
  return {
    f'{prefix}/{name}': value
    for name, value in found.items()
    if value is not None
  }


def _best_of_k(samples: EvaluationSamples, k: int) -> np.ndarray:
  return estimators.best_of_k(
    samples.scores_PN,
    samples.correct_PN,
    k,
    finished_PN=samples.eligible_PN,
    per_problem=True,
  )


def _differences(per_k, single_P) -> list[tuple[str, int, np.ndarray]]:
  found = []
  several = [k for k in per_k if k > 1]
  for k in several:
    best = per_k[k]['best_of_k']
    name = f'best-of-{k} minus'
    found += [
      (f'{name} majority@{k}', k, best - per_k[k]['majority']),
      (f'{name} pass@1', k, best - single_P),
      (f'{name} weighted vote@{k}', k, best - per_k[k]['weighted_vote']),
    ]
  for small, large in zip(several, several[1:], strict=False):
    gain = per_k[large]['best_of_k'] - per_k[small]['best_of_k']
    found.append((f'best-of-{large} minus best-of-{small}', large, gain))
  return found
