"""A summary as text: tables of (header, rows), and how numbers are written.

Contract: no numbers are computed here. Every table is plain text, for a
terminal, Markdown and HTML alike; what a summary does not have gives no rows.
"""

from collections.abc import Mapping, Sequence

from metastone_jax.evaluation.summary import RULES

Table = tuple[list[str], list[list[str]]]


def summary_markdown(summary: Mapping) -> str:
  """The summary as Markdown: all of its tables."""
  parts = [markdown_table(*table) for _, table in tables(summary)]
  return '\n\n'.join(parts) + '\n'


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table; first column left-aligned, the others right."""
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def accuracy_table(summary: Mapping) -> Table:
  """Accuracy of each rule against k, percent."""
  header = ['k', *RULES.values()]
  return header, [
    [str(row['k']), *(percent(row[rule]) for rule in RULES)]
    for row in summary['rows']
  ]


def difference_table(summary: Mapping) -> Table:
  """Paired differences in percentage points."""
  header = ['paired difference', 'points', 'above 0']
  return header, [
    [row['name'], points(row), verdict(row)] for row in summary['differences']
  ]


def other_table(summary: Mapping) -> Table:
  """AUC, calibration, truncation, parsing, lengths, verifier failures."""
  auc, calibrated = summary['auc'], summary['calibration']
  rows = [
    ['AUC within a problem (ties half)', number(auc['within'], 3)],
    ['AUC across problems', number(auc['across'], 3)],
    [
      'expected calibration error (of a calibrated score, by chance)',
      f'{calibrated["ece"]:.3f} ({calibrated["ece_by_chance"]:.3f})',
    ],
    ['Brier score', number(calibrated['brier'], 3)],
    [
      'Brier score of always saying pass@1',
      f'{calibrated["brier_of_mean"]:.3f}',
    ],
    ['truncated (% of samples)', percent(summary['truncated_share'])],
    ['unparsed (% of samples)', percent(summary['unparsed_share'])],
  ]
  if summary['thinking_tokens'] is not None:
    rows.append(
      ['thinking tokens a sample', number(summary['thinking_tokens'], 1)]
    )
  rows.append(['tokens a sample', number(summary['response_tokens'], 1)])
  rows += [
    [f'{what}: {name}', f'{count:,} samples']
    for what, counts in (
      ('verifier failures', summary['failures']),
      ('judged wrong', summary['reasons']),
    )
    for name, count in counts.items()
  ]
  return ['measure', 'value'], rows


def cost_table(summary: Mapping) -> Table:
  """Tokens and FLOPs of an answer by each rule at each k."""
  header = [
    'k, rule',
    'accuracy, %',
    'thinking tokens',
    'answer tokens',
    'FLOPs an answer',
  ]
  rows = []
  for row in summary['rows']:
    for rule, title in RULES.items():
      cost = row['cost'][rule]
      if cost['thinking_tokens'] is None:
        lengths = [count(cost['tokens']), '']
      else:
        lengths = [
          count(cost[name]) for name in ('thinking_tokens', 'answer_tokens')
        ]
      rows.append(
        [
          f'{row["k"]}, {title}',
          f'{100 * row[rule]["mean"]:.1f}',
          *lengths,
          '' if cost['flops'] is None else f'{cost["flops"]:.3g}',
        ]
      )
      if row['k'] == 1:  # All rules are the one sample.
        rows[-1][0] = '1, one sample'
        break
  return header, rows


def calibration_table(summary: Mapping) -> Table:
  """The bins of the reliability plot."""
  header = ['score', 'samples', 'problems', 'mean score', 'right, %']
  return header, [
    [
      f'{b["low"]:.1f} to {b["high"]:.1f}',
      f'{b["count"]:,}',
      f'{b["problems"]:,}',
      f'{b["score"]:.3f}',
      percent(b['right']),
    ]
    for b in summary['calibration']['bins']
  ]


def subject_table(summary: Mapping) -> Table:
  """Accuracy by subject, the macro average first; no rows without subjects."""
  subjects = summary['subjects']
  if subjects is None:
    return [], []
  titles = {
    'pass_at_1': 'pass@1',
    'best_of_k': f'SPRM best-of-{subjects["k"]}',
    'majority': f'majority@{subjects["k"]}',
  }
  measures = [name for name in titles if name in subjects['macro']]
  header = ['subject', 'problems', *(titles[name] for name in measures)]
  macro = ['macro average', str(sum(r['problems'] for r in subjects['rows']))]
  return header, [
    macro + [percent(subjects['macro'][name]) for name in measures],
    *(
      [
        row['subject'],
        str(row['problems']),
        *(percent(row[name]) for name in measures),
      ]
      for row in subjects['rows']
    ),
  ]


def comparison_table(found: Sequence[Mapping], title: str) -> Table:
  """Paired differences of `compare` with their p-values."""
  return [title, 'points', 'p', 'above 0'], [
    [
      f'{d["measure"]}: {d["before"]} → {d["after"]}',
      points(d),
      p_value(d['p']),
      verdict(d),
    ]
    for d in found
  ]


def methods(summary: Mapping) -> str:
  """The methods of a summary's intervals, by what they were used for."""
  used: dict[str, list[str]] = {}
  kinds = {
    'shares': [summary['pass_at_1']]
    + [row[rule] for row in summary['rows'] for rule in RULES],
    'differences': summary['differences'],
    'AUC': list(summary['auc'].values()),
    'tokens': [summary['response_tokens']],
  }
  for kind, some in kinds.items():
    names = sorted({interval['method'] for interval in some} - {''})
    if names:
      used.setdefault(' or '.join(names), []).append(kind)
  return '; '.join(f'{", ".join(k)}: {name}' for name, k in used.items())


def tables(summary: Mapping) -> list[tuple[str, Table]]:
  """(caption, table) of all that has rows."""
  level = f'{100 * summary["level"]:g} %'
  found = [
    (f'accuracy, % ({level} interval)', accuracy_table(summary)),
    ('paired differences, percentage points', difference_table(summary)),
    ('score and samples', other_table(summary)),
    ('what an answer costs', cost_table(summary)),
    ('calibration of the score', calibration_table(summary)),
    ('by subject, %', subject_table(summary)),
  ]
  return [(caption, table) for caption, table in found if table[1]]


def count(value: float) -> str:
  """A number of tokens: `37.2`, `1,234`."""
  return f'{value:,.1f}' if value < 1000 else f'{value:,.0f}'


def p_value(p: float) -> str:
  """`0.034`; below a thousandth by its order."""
  return f'{p:.3f}' if p >= 0.001 else f'{p:.0e}'


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
