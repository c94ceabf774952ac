"""The text of a report: a section of tables a stage, and one across them."""

from collections.abc import Mapping, Sequence

from metastone_jax.evaluation import summary, tables
from metastone_jax.evaluation.render import Section


def sections(
  summaries: Mapping[str, Mapping],
  differences: Sequence[Mapping],
  to_first: bool,
) -> list[Section]:
  """All sections.

  Args:
    summaries: stage or checkpoint -> `summarise(...)`.
    differences: of `compare`; may be empty.
    to_first: they are checkpoints, compared with the first.
  """
  found = []
  if len(summaries) > 1:
    found.append(_overview(summaries, differences, to_first))
  what = 'Checkpoint' if to_first else 'Stage'
  for stage, result in summaries.items():
    found.append(
      Section(
        f'{what}: {stage}',
        _explained(result),
        [table for _, table in tables.tables(result)],
      )
    )
  return found


def comparison_headline(differences: Sequence[Mapping]) -> str:
  """One sentence a checkpoint: pass@1 against that of the first.

  Args:
    differences: of `compare(..., to_first=True)`, not empty.
  """
  sentences = []
  for d in differences:
    if d['measure'] != 'pass@1':
      continue
    claim = {
      'yes': 'is better than',
      'below': 'is WORSE than',
      'not shown': 'shows no difference to',
      'undefined': 'cannot be told apart, by one problem, from',
    }[tables.verdict(d)]
    sentences.append(
      f'{d["after"]} {claim} {d["before"]}: pass@1 {tables.points(d)} points, '
      f'p = {tables.p_value(d["p"])} ({d["test"]}).'
    )
  return ' '.join(sentences)


def _explained(result: Mapping) -> str:
  P, N = result['problems'], result['samples_per_problem']
  level = f'{100 * result["level"]:g} %'
  each = f'{N} samples each'
  if result['traces']:
    each = f'{N} answers each, written from the best of {result["traces"]}'
    each += ' traces'
  text = (
    f'{result["task"]}: {P} problems, {each}. Accuracy in %, with {level} '
    'intervals over problems; every rule is the mean over all k-subsets of '
    f'the samples. Intervals by {tables.methods(result)}.'
  )
  sampled = [
    str(row['k'])
    for row in result['rows']
    if row['weighted_vote_subsets'] != 'all'
  ]
  if sampled:
    text += (
      f' The weighted vote at k = {", ".join(sampled)} is an unbiased '
      'estimate from random subsets.'
    )
  failed = sum(result['failures'].values())
  if failed:
    names = ', '.join(f'{n} {name}' for name, n in result['failures'].items())
    text += (
      f' The verifier failed on {failed} of {P * N} samples ({names}), which '
      'count as wrong.'
    )
  return text


def _overview(summaries, differences, to_first: bool) -> Section:
  # The k of the headline where every stage has it, else the largest shared.
  shared = set.intersection(
    *({row['k'] for row in r['rows']} for r in summaries.values())
  )
  k = 8 if 8 in shared else max(shared, default=None)
  header = ['checkpoint' if to_first else 'stage', 'pass@1']
  if k is not None:
    header += [f'{title} (k={k})' for title in summary.RULES.values()]
  header.append('AUC within a problem')
  rows = []
  for stage, result in summaries.items():
    row = [stage, tables.percent(result['pass_at_1'])]
    if k is not None:
      at_k = next(r for r in result['rows'] if r['k'] == k)
      row += [tables.percent(at_k[rule]) for rule in summary.RULES]
    rows.append([*row, tables.number(result['auc']['within'], 3)])
  found = [(header, rows)]
  text = 'Accuracy in %, with intervals over problems.'
  if differences:
    title = 'paired difference' if to_first else 'change from stage to stage'
    found.append(tables.comparison_table(differences, title))
    tests = ' or '.join(sorted({d['test'] for d in differences}))
    methods = ' or '.join(sorted({d['method'] for d in differences} - {''}))
    text += (
      f' Differences are paired by problem; intervals by {methods or "none"}, '
      f'p two-sided by permutation ({tests}), not corrected for the number of '
      'lines.'
    )
  return Section(
    'Checkpoint by checkpoint' if to_first else 'Stage by stage', text, found
  )
