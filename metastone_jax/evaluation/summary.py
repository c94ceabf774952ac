"""From samples to the numbers of a report, each with its interval.

Contract: `summarise` is a pure, seeded function of `EvaluationSamples` and
returns plain JSON values. Accuracies are shares in [0, 1]; intervals are BCa
bootstrap intervals over problems (see `intervals`); undefined numbers are
None. All rules are compared on the same samples at equal k, so differences are
paired by problem.

Layout of a summary:

    {'task', 'problems', 'samples_per_problem', 'level', 'resamples', 'seed',
     'pass_at_1': I,
     'rows': [{'k', 'oracle': I, 'best_of_k': I, 'weighted_vote': I,
               'majority': I, 'weighted_vote_subsets': 'all' or a count}, ...],
     'differences': [{'name', 'k', 'mean', 'low', 'high'}, ...],
     'auc': {'within': I, 'across': I},
     'mean_score': {'right': float or None, 'wrong': float or None},
     'truncated_share': I, 'unparsed_share': I, 'thinking_tokens': I}

with I = {'mean', 'low', 'high'}. Source: SPEC sections 5 and 6.
"""

import operator
from collections.abc import Mapping, Sequence

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import auc, estimators, intervals
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
  columns = [('pass_at_1', single_P)]
  columns += [
    ((k, rule), values)
    for k, rules in per_k.items()
    for rule, values in rules.items()
  ]
  differences = _differences(per_k, single_P)
  columns += [(name, values) for name, _, values in differences]
  columns += [
    ('truncated_share', 1.0 - samples.finished_PN.mean(axis=1)),
    (
      'unparsed_share',
      (samples.answers_PN == estimators.UNPARSED).mean(axis=1),
    ),
    ('thinking_tokens', samples.tokens_PN.mean(axis=1)),
  ]
  found = dict(
    zip(
      [name for name, _ in columns],
      intervals.bootstrap_intervals(
        np.stack([values for _, values in columns], axis=1),
        level=level,
        resamples=resamples,
        seed=seed,
      ),
      strict=True,
    )
  )
  within, across = auc.auc_intervals(
    samples, level=level, resamples=resamples, seed=seed
  )
  scores, correct = samples.scores_PN, samples.correct_PN
  return {
    'task': samples.task,
    'problems': P,
    'samples_per_problem': N,
    'level': level,
    'resamples': resamples,
    'seed': seed,
    'pass_at_1': found['pass_at_1'].as_dict(),
    'rows': [
      {
        'k': k,
        **{rule: found[k, rule].as_dict() for rule in RULES},
        'weighted_vote_subsets': 'all'
        if estimators.is_exact(N, k)
        else estimators.MONTE_CARLO_SUBSETS,
      }
      for k in ks
    ],
    'differences': [
      {'name': name, 'k': k, **found[name].as_dict()}
      for name, k, _ in differences
    ],
    'auc': {'within': within.as_dict(), 'across': across.as_dict()},
    'mean_score': {
      'right': float(scores[correct].mean()) if correct.any() else None,
      'wrong': float(scores[~correct].mean()) if (~correct).any() else None,
    },
    **{
      name: found[name].as_dict()
      for name in ('truncated_share', 'unparsed_share', 'thinking_tokens')
    },
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


def stage_differences(
  stages: Mapping[str, EvaluationSamples],
  ks: Sequence[int] = DEFAULT_KS,
  *,
  level: float = 0.95,
  resamples: int = 10000,
  seed: int = 0,
) -> list[dict]:
  """Paired differences between consecutive stages of one run.

  Args:
    stages: stage name -> samples, in order of training; all on the same
      problems.
    ks: subset sizes for best-of-k; those above N are left out.
    level: coverage.
    resamples: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    [{'before', 'after', 'measure', 'mean', 'low', 'high'}, ...], empty for
    fewer than two stages.

  Raises:
    UserError: two stages hold different problems.
  """
  found = []
  names = list(stages)
  for before, after in zip(names, names[1:], strict=False):
    a, b = stages[before], stages[after]
    if a.problem_ids != b.problem_ids:
      raise UserError(
        f'stages {before!r} and {after!r} hold different problems; a paired '
        'difference needs the same held-out set'
      )
    pairs = [('pass@1', a.correct_PN.mean(axis=1), b.correct_PN.mean(axis=1))]
    for k in usable_ks(ks, min(a.shape[1], b.shape[1])):
      if k > 1:
        pairs.append((f'SPRM best-of-{k}', _best_of_k(a, k), _best_of_k(b, k)))
    for measure, before_P, after_P in pairs:
      interval = intervals.paired_interval(
        after_P, before_P, level=level, resamples=resamples, seed=seed
      )
      found.append(
        {
          'before': before,
          'after': after,
          'measure': measure,
          **interval.as_dict(),
        }
      )
  return found


def summary_metrics(summary: Mapping, prefix: str = 'eval') -> dict[str, float]:
  """Flat metrics for a training log; undefined numbers are left out.

  Names: `eval/pass_at_1`, `eval/best_of_8`, `eval/majority_at_8`,
  `eval/weighted_vote_at_8`, `eval/pass_at_8`, `eval/auc_within`,
  `eval/auc_across`, `eval/truncated_share`, `eval/unparsed_share`,
  `eval/thinking_tokens`.
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
  for name in ('truncated_share', 'unparsed_share', 'thinking_tokens'):
    found[name] = summary[name]['mean']
  return {
    f'{prefix}/{name}': value
    for name, value in found.items()
    if value is not None
  }


def summary_markdown(summary: Mapping) -> str:
  """The summary as Markdown: accuracy against k, differences, the rest."""
  parts = [
    markdown_table(*table)
    for table in (
      accuracy_table(summary),
      difference_table(summary),
      other_table(summary),
    )
    if table[1]
  ]
  return '\n\n'.join(parts) + '\n'


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table; first column left-aligned, the others right."""
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def accuracy_table(summary: Mapping) -> tuple[list[str], list[list[str]]]:
  """(header, rows) of text: accuracy of each rule against k, percent."""
  header = ['k', *RULES.values()]
  return header, [
    [str(row['k']), *(percent(row[rule]) for rule in RULES)]
    for row in summary['rows']
  ]


def difference_table(summary: Mapping) -> tuple[list[str], list[list[str]]]:
  """(header, rows) of text: paired differences in percentage points."""
  header = ['paired difference', 'points', 'above 0']
  return header, [
    [row['name'], points(row), verdict(row)] for row in summary['differences']
  ]


def other_table(summary: Mapping) -> tuple[list[str], list[list[str]]]:
  """(header, rows) of text: AUC, truncation, parsing, length."""
  auc_ = summary['auc']
  return ['measure', 'value'], [
    ['AUC within a problem (ties half)', number(auc_['within'], 3)],
    ['AUC across problems', number(auc_['across'], 3)],
    ['truncated (% of samples)', percent(summary['truncated_share'])],
    ['unparsed (% of samples)', percent(summary['unparsed_share'])],
    ['thinking tokens a sample', number(summary['thinking_tokens'], 1)],
  ]


def number(interval: Mapping, digits: int, scale: float = 1.0) -> str:
  """`0.812 (0.780 to 0.841)`; bounds or value left out where undefined."""
  mean, low, high = (interval[key] for key in ('mean', 'low', 'high'))
  if mean is None:
    return 'undefined'
  text = f'{scale * mean:.{digits}f}'
  if low is None:
    return text
  return f'{text} ({scale * low:.{digits}f} to {scale * high:.{digits}f})'


def percent(interval: Mapping) -> str:
  """An interval of shares in percent, without the sign."""
  return number(interval, 1, 100.0)


_ROUNDING = 1e-9


def points(interval: Mapping) -> str:
  """An interval of differences in percentage points, always signed."""
  text = number(interval, 1, 100.0).replace('-0.0', '0.0')
  return text if text.startswith(('-', 'undefined')) else '+' + text


def verdict(interval: Mapping) -> str:
  """yes: whole interval above 0; below: all of it; else not shown."""
  low, high = interval['low'], interval['high']
  if low is None:
    return 'undefined'
  # Equal by construction (a vote of two is a best of two): rounding is no sign.
  if low > _ROUNDING:
    return 'yes'
  return 'below' if high < -_ROUNDING else 'not shown'


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
