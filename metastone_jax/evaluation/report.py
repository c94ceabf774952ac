"""The report of a run: one sentence, tables, pictures, how it was made.

Contract: `write_report` writes into one folder, local or gs://:

    report.html    self-contained (pictures embedded), light and dark
    report.md      the same for a terminal or a code host
    summary.json   every number, by stage
    differences.json  between stages or checkpoints, where there are several
    plots/*.png    the pictures, referenced by report.md

The headline is computed from the numbers and says so when the score head does
NOT win. Nothing is drawn that was not given: a report without metrics has no
learning curves and says which part is absent.
"""

import importlib.metadata
import io
import platform
from collections.abc import Iterable, Mapping

from etils import epath
from rich import box as rich_box
from rich import console as rich_console
from rich import table as rich_table

from metastone_jax.errors import UserError
from metastone_jax.evaluation import (
  answer_plots,
  plots,
  render,
  sections,
  summary,
  tables,
)
from metastone_jax.evaluation.comparison import compare
from metastone_jax.evaluation.samples import EvaluationSamples
from metastone_jax.telemetry import files

_PACKAGES = ('metastone-jax', 'jax', 'flax', 'optax', 'numpy')
_TERMINAL_WIDTH = 110  # characters


def write_report(
  out_dir: epath.PathLike,
  *,
  title: str,
  summaries: Mapping[str, Mapping],
  samples: EvaluationSamples | Mapping[str, EvaluationSamples] | None = None,
  metrics: Iterable[Mapping] = (),
  config_text: str = '',
  command: str = '',
  seconds: float | Mapping[str, float] | None = None,
  versions: Mapping[str, str] | None = None,
  notes: Iterable[str] = (),
  to_first: bool = False,
) -> epath.Path:
  """Writes the whole report; see the module docstring for the files.

  Args:
    out_dir: folder, made when missing; a report in it is replaced.
    title: heading of the report.
    summaries: stage ('after warmup', ...) -> `summarise(...)`, in order of
      training; the last one makes the headline. A command that evaluates one
      checkpoint passes one.
    samples: stage -> samples, or the samples of the last stage only. With
      several stages on the same problems the report adds their paired
      differences, with the last one the histogram of scores.
    metrics: rows of the run's JSONL ('step', 'phase', numbers).
    config_text: the config as text.
    command: the command line that repeats the run.
    seconds: wall-clock seconds, in all or by part.
    versions: package -> version; by default those installed.
    notes: more sentences for the section "How it was made".
    to_first: the summaries are of several checkpoints, each to be compared
      with the first; default: stages, each compared with the one before.

  Returns:
    The path of report.html.

  Raises:
    UserError: no summary, or samples of an unknown stage.
  """
  if not summaries:
    raise UserError('report: no summary; evaluate at least one stage first')
  out_dir = epath.Path(out_dir)
  last = list(summaries)[-1]
  if samples is None:
    samples = {}
  elif isinstance(samples, EvaluationSamples):
    samples = {last: samples}
  unknown = [stage for stage in samples if stage not in summaries]
  if unknown:
    raise UserError(f'report: samples of {unknown[0]!r}, which has no summary')
  # In the order of the stages, whatever the order of the mapping.
  samples = {stage: samples[stage] for stage in summaries if stage in samples}
  metrics = list(metrics)
  differences = _differences(summaries, samples, to_first)
  pictures, absent = _pictures(
    out_dir / 'plots', metrics, summaries[last], samples.get(last), differences
  )
  parts = sections.sections(summaries, differences, to_first)
  facts = _facts(command, seconds, versions, [*notes, *absent])
  files.write_json_atomic(out_dir / 'summary.json', dict(summaries))
  if differences:
    files.write_json_atomic(out_dir / 'differences.json', differences)
  sentence = headline(summaries[last])
  if to_first and differences:
    sentence = sections.comparison_headline(differences)
  files.write_text_atomic(
    out_dir / 'report.md',
    render.markdown(title, sentence, parts, pictures, facts, config_text),
  )
  path = out_dir / 'report.html'
  files.write_text_atomic(
    path, render.page(title, sentence, parts, pictures, facts, config_text)
  )
  return path


def headline(result: Mapping) -> str:
  """One sentence in plain words, at k = 8 or else the largest k.

  Args:
    result: as `summarise` returns it.

  Returns:
    For example "SPRM best-of-8 answers 81.2 % of 512 held-out signs problems
    right, against 70.3 % for majority@8 and 66.1 % for one sample ...".
  """
  rows = {row['k']: row for row in result['rows']}
  k = 8 if 8 in rows else max(rows)
  row, single = rows[k], result['pass_at_1']['mean']
  where = {'heldout': 'held-out', 'train': 'training'}[result['split']]
  of = f'of {result["problems"]} {where} {result["task"]} problems right'
  if result['traces']:
    return (
      f'The answer written from the best of {result["traces"]} traces is right '
      f'on {100 * single:.1f} % {of[:-6]}.'
    )
  if k == 1:
    return f'One sample answers {100 * single:.1f} % {of}.'
  sentence = (
    f'SPRM best-of-{k} answers {100 * row["best_of_k"]["mean"]:.1f} % {of}, '
    f'against {100 * row["majority"]["mean"]:.1f} % for majority@{k} and '
    f'{100 * single:.1f} % for one sample'
  )
  difference = next(
    d
    for d in result['differences']
    if d['name'] == f'best-of-{k} minus majority@{k}'
  )
  claim = {
    'yes': 'the score head picks better answers than the vote',
    'below': 'the score head picks WORSE answers than the vote',
    'not shown': 'no difference to the vote is shown',
    'undefined': 'one problem cannot tell the two apart',
  }[tables.verdict(difference)]
  gain = f'{100 * difference["mean"]:+.1f} points'
  if difference['low'] is not None:
    gain += (
      f', {100 * result["level"]:g} % interval '
      f'{100 * difference["low"]:.1f} to {100 * difference["high"]:.1f}'
    )
  return f'{sentence}: {claim} ({gain}).'


def terminal_summary(result: Mapping, *, width: int = _TERMINAL_WIDTH) -> str:
  """The summary as plain text tables for a terminal.

  Args:
    result: as `summarise` returns it.
    width: columns of the terminal.

  Returns:
    Lines without colour codes, ending in a newline.
  """
  stream = io.StringIO()
  console = rich_console.Console(
    file=stream, width=width, color_system=None, highlight=False
  )
  console.print(headline(result), markup=False)
  for caption, (header, rows) in tables.tables(result):
    table = rich_table.Table(
      title=caption, box=rich_box.SIMPLE, title_justify='left'
    )
    for index, name in enumerate(header):
      table.add_column(name, justify='right' if index else 'left')
    for line in rows:
      table.add_row(*line)
    console.print(table)
  lines = stream.getvalue().splitlines()
  return '\n'.join(line.rstrip() for line in lines) + '\n'


def _differences(summaries, samples, to_first: bool) -> list[dict]:
  """Paired differences, where several have samples of the same problems."""
  if len({tuple(s.problem_ids) for s in samples.values()}) != 1:
    return []
  shared = set.intersection(
    *({row['k'] for row in r['rows']} for r in summaries.values())
  )
  first = next(iter(summaries.values()))
  # Of each rule one number, at the k of the headline.
  k = 8 if 8 in shared else max(shared, default=1)
  return compare(
    samples,
    (k,),
    to_first=to_first,
    level=first['level'],
    resamples=first['resamples'],
    seed=first['seed'],
  )


def _pictures(folder, metrics, result, samples, differences):
  """(pictures made, a sentence for each that could not be)."""
  names = {
    name for row in metrics for name, value in row.items() if value is not None
  }
  # (file, heading, caption, how to draw it or None, what is then absent)
  separated = names & {'score/mean_correct', 'score/mean_wrong'}
  plans = [
    (
      'accuracy_against_k',
      'Accuracy against k',
      'Mean over all k-subsets of the samples. The oracle counts a problem as '
      'right when any of its k samples is.',
      lambda path: plots.plot_accuracy_against_k(_finer(result, samples), path),
      '',
    ),
    (
      'comparison',
      'Paired differences',
      'On the same problems; p-values stand in the table below.',
      (
        lambda path: answer_plots.plot_comparison(
          differences, path, level=result['level']
        )
      )
      if differences
      else None,
      '',
    ),
    (
      'accuracy_against_cost',
      'Accuracy against the cost of an answer',
      'FLOPs are counted, not measured: the prompt once, all k samples, and '
      'the score head where the rule reads scores.',
      lambda path: answer_plots.plot_accuracy_against_cost(
        _finer(result, samples), path
      ),
      '',
    ),
    (
      'reliability',
      'Calibration of the score',
      'Samples in ten bins of their score. A trace score is made to order '
      'traces; on the dotted line it would also be a probability.',
      lambda path: answer_plots.plot_reliability(result, path),
      '',
    ),
    (
      'pass_rates',
      'How hard the problems are',
      'Pass rate of each problem over its samples.',
      (lambda path: answer_plots.plot_pass_rates(samples, path))
      if samples is not None
      else None,
      'the samples were not given',
    ),
    (
      'score_separation',
      'Score separation over training',
      'Mean trace score of rollouts whose answer is right and of those whose '
      'answer is wrong. Where the two part, the head has learned to tell them '
      'apart.',
      (lambda path: plots.plot_score_separation(metrics, path))
      if separated
      else None,
      'the metrics hold no mean scores',
    ),
    (
      'score_histogram',
      'Scores of the held-out samples',
      'Each side is normalised to its own number of samples.',
      (lambda path: plots.plot_score_histogram(samples, path))
      if samples is not None
      else None,
      'the samples were not given',
    ),
    (
      'learning_curves',
      'Learning curves',
      'Thin: every step; thick: running mean. A panel spans the phases in '
      'which its metric exists.',
      (lambda path: plots.plot_learning_curves(metrics, path))
      if plots.has_learning_curves(metrics)
      else None,
      'no training metrics were given',
    ),
  ]
  made, absent = [], []
  for name, heading, caption, draw, reason in plans:
    path = folder / f'{name}.png'
    if draw is None:
      # A picture of an earlier report must not pass for one of this.
      path.unlink(missing_ok=True)
      if reason:
        absent.append(f'No picture "{heading}": {reason}.')
    else:
      made.append(render.Picture(heading, caption, draw(path)))
  return made, absent


def _finer(result, samples):
  """The same summary at every power of two, which a curve wants."""
  asked = {row['k'] for row in result['rows']}
  ks = asked | {2**i for i in range(max(asked).bit_length())}
  if samples is None or ks == asked:
    return result
  return summary.summarise(
    samples,
    sorted(ks),
    level=result['level'],
    resamples=result['resamples'],
    seed=result['seed'],
  )


def _facts(command, seconds, versions, notes) -> list[tuple[str, str]]:
  facts = [('command', command)] if command else []
  if isinstance(seconds, Mapping):
    facts += [(f'seconds, {k}', f'{v:.1f}') for k, v in seconds.items()]
  elif seconds is not None:
    facts.append(('seconds', f'{seconds:.1f}'))
  versions = _installed() if versions is None else versions
  facts.append(('versions', ', '.join(f'{k} {v}' for k, v in versions.items())))
  facts += [('note', note) for note in notes]
  return facts


def _installed() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # run from a source tree that was never installed
  return found
