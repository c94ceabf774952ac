"""The page of a scaling-law sweep, docs/scaling_law.md, from its workdir.

Contract: everything is computed anew from the `values.npz` of the sample points
that are done; what is not done is named. Pictures are written beside the page,
the page last; notes in `NAME_notes.md` beside it are appended as they are.
Accuracies are per cent. The law is that of one strategy without a budget of
thinking tokens (or the largest), over all k of each size, and over all sizes.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

import metastone_jax
from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals
from metastone_jax.scaling import (
  plan,
  plots,
  published_plot,
  published_report,
  report,
  table,
)
from metastone_jax.scaling.curve import Curve
from metastone_jax.scaling.page_text import aligned_table, words
from metastone_jax.scaling.runs import law, law_curves, law_tables
from metastone_jax.scaling.runs.law_curves import Drawn, LawCurve
from metastone_jax.scaling.strategies import STRATEGIES
from metastone_jax.telemetry import files
from metastone_jax.telemetry.progress import format_duration

_ALL = 'all sizes'


def check(config: Mapping[str, Any]) -> None:
  """Refuses options of a sweep that `write` cannot use.

  Raises:
    UserError: a strategy that has no law, or targets that are no accuracies.
  """
  options = config.get('options')
  strategy, targets = (
    options.get(key) if isinstance(options, Mapping) else None
    for key in ('strategy', 'targets')
  )
  # One sample has one k; a pruned answer has several costs at a k.
  known = [name for name in STRATEGIES if name not in ('single', 'pruned')]
  if strategy not in known:
    raise UserError(
      f'--config.options.strategy={strategy!r}: whose law it is; use one of '
      f'{", ".join(known)}'
    )
  right = isinstance(targets, list | tuple) and all(
    isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1
    for x in targets
  )
  if not right:
    raise UserError(
      f'--config.options.targets={targets!r}: must be accuracies between 0 and '
      '1 whose compute is predicted, such as (0.8, 0.9)'
    )


def write(
  config: Mapping[str, Any],
  workdir: epath.PathLike,
  page: epath.PathLike,
  rows: Sequence[Mapping[str, Any]],
  *,
  command: str,
) -> list[epath.Path]:
  """Writes the page and its pictures.

  Args:
    config: of the sweep: points, options {strategy: whose law it is, targets:
      accuracies in [0, 1] whose compute is predicted}.
    workdir: of the sweep.
    page: Markdown file to write; pictures beside it.
    rows: the sweep's table.
    command: that made the page.

  Returns:
    Paths written, the page last.

  Raises:
    UserError: a point that cannot be read, seeds of different problems.
  """
  workdir, page = epath.Path(workdir), epath.Path(page)
  drawn, missing = law_curves.load(config['points'], workdir, rows)
  page.parent.mkdir(parents=True, exist_ok=True)
  parts = [
    '# Accuracy against compute',
    _made(config, workdir, rows, drawn, missing, command),
  ]
  written = []
  if drawn:
    found = _Found.of(drawn, config['options'])
    text, written = _sections(found, page)
    parts += text
  picture = page.parent / 'scaling_published.png'
  written.append(published_plot.plot_published(picture))
  parts.append(published_report.published_section(picture).rstrip('\n'))
  notes = page.parent / f'{page.stem}_notes.md'
  if notes.exists():
    parts.append(notes.read_text().strip('\n'))
  files.write_text_atomic(page, '\n\n'.join(filter(None, parts)) + '\n')
  return [*written, page]


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
  """What the page is about.

  Attributes:
    drawn: sample points that are done.
    strategy: whose law it is.
    budget: of its thinking tokens; 0 = none.
    curves: of that strategy and budget, one a size.
    analyses: of the same, and of all sizes together.
    targets: accuracies whose compute is predicted, per cent.
  """

  drawn: Sequence[Drawn]
  strategy: str
  budget: int
  curves: Sequence[LawCurve]
  analyses: Sequence[report.Analysis]
  targets: Sequence[float]

  @classmethod
  def of(cls, drawn: Sequence[Drawn], options: Mapping[str, Any]) -> '_Found':
    """Fits the laws."""
    strategy, budget = options['strategy'], law_curves.budgets(drawn)[-1]
    curves = _of_sizes(drawn, budget, strategy)
    plain = [_per_cent(curve) for curve in curves]
    if len(curves) > 1:
      plain.append(_pooled(curves))
    targets = [100 * target for target in options['targets']]
    analyses = report.analyse_all(plain)
    return cls(drawn, strategy, budget, curves, analyses, targets)

  @property
  def title(self) -> str:
    """What the law is of."""
    text = STRATEGIES[self.strategy]
    return text + (f', {self.budget} thinking tokens' if self.budget else '')


def _of_sizes(drawn, budget: int, name: str, first: int = 0) -> list[LawCurve]:
  found = [
    law_curves.curve(drawn, width, budget, name, first)
    for width in law_curves.widths(drawn)
  ]
  return [curve for curve in found if curve is not None]


def _per_cent(curve: LawCurve) -> Curve:
  low_n, high_n = curve.limits()
  return Curve(
    curve.label,
    curve.compute_n,
    100 * curve.accuracy_n,
    100 * low_n,
    100 * high_n,
    curve.k_n,
    100 * curve.accuracy_Pn,
  )


def _pooled(curves: Sequence[LawCurve]) -> Curve:
  """The points of all sizes as one curve."""
  accuracy_PM = 100 * np.concatenate([c.accuracy_Pn for c in curves], axis=1)
  return Curve(
    _ALL,
    np.concatenate([curve.compute_n for curve in curves]),
    accuracy_PM.mean(axis=0),
    accuracy_PM=accuracy_PM,
  )


def _made(config, workdir, rows, drawn, missing, command: str) -> str:
  """How the numbers came about: command, machine, time, what is left."""
  planned = plan.Plan.of(config['points'])
  times = table.times_of(planned, workdir)
  seconds = {row['point']: row['seconds'] for row in times}
  trained = {
    name: json.loads(path.read_text())['seconds']
    for name, point in planned.points.items()
    if point['kind'] == 'train'
    if (path := plan.point_folder(workdir, name) / 'train.json').exists()
  }
  # A run that was there before says itself how long it took.
  took, sampled = {}, {}
  for name in {**trained, **seconds}:
    if planned.points[name]['kind'] == 'train':
      took[name] = max(seconds.get(name, 0.0), trained.get(name, 0.0))
    else:
      sampled[name] = seconds[name]
  machines = sorted({row['device'] for row in times} - {''})
  folders = [plan.point_folder(workdir, name) for name in planned.points]
  lines = [
    f'- command: `{command}`',
    *(f'- {text}' for text in law.draws_of(folders)),
    f'- points done on: {", ".join(machines) or "nothing yet"}; page made on '
    f'{os.cpu_count()} CPU cores ({platform.machine()}, {platform.system()}), '
    f'metastone_jax {metastone_jax.__version__}',
    f'- time: {len(took)} models trained in '
    f'{format_duration(sum(took.values()))}, {len(sampled)} sets of samples '
    f'drawn and evaluated in {format_duration(sum(sampled.values()))}, added '
    'up over the workers (`times.csv`)',
  ]
  if drawn:
    sizes = sorted({(one.width, one.parameters) for one in drawn})
    names = ', '.join(f'{n:,} (width {width})' for width, n in sizes)
    P, _ = drawn[0].values.accuracy_PM.shape
    number = max(row['samples'] for row in rows if row.get('samples'))
    lines.append(
      f'- parameters without the score head: {names}; seeds '
      f'{", ".join(str(s) for s in sorted({one.seed for one in drawn}))}; '
      f'{P} held-out problems, the same for all; {number} samples of each, '
      'drawn once: every k is an average over subsets of them'
    )
  if missing:
    lines.append(
      f'- NOT DONE YET: {len(missing)} of {len(missing) + len(drawn)} sets of '
      f'samples: {", ".join(missing)}; the same command goes on'
    )
  return '\n'.join(lines)


def _sections(found: _Found, page: epath.Path):
  """(parts of the page, pictures written)."""

  def path(what: str) -> epath.Path:
    return page.parent / f'{page.stem}_{what}.png'

  def shown(text: str, picture: epath.Path) -> str:
    return f'![{text}]({picture.name})'

  drawn, heading = found.drawn, 'Accuracy against compute, a curve a size'
  compute = plots.plot_accuracy_against_compute(
    [_per_cent(curve) for curve in found.curves],
    path('compute'),
    title=f'{heading}: {found.title}',
    laws={a.curve.label: a.selection.chosen for a in found.analyses},
  )
  against_k = plots.plot_accuracy_against_k(
    _panels(found), path('k'), title='Accuracy against k, by strategy'
  )
  written = [compute, against_k]
  parts = [
    _in_short(found),
    shown(heading, compute),
    report.law_section(
      f'The law of {found.title}',
      [a.curve for a in found.analyses]
      or [_per_cent(curve) for curve in found.curves],
      targets=found.targets,
      analyses=found.analyses,
      intro=_DEPENDENT,
    ),
    _seeds(found),
    f'## Which size for how much compute\n\n{_FRONTIER}',
    law_tables.frontier(drawn, found.strategy),
    _COSTS,
    law_tables.costs(drawn),
    '## Strategies',
    shown('Accuracy against k, by strategy', against_k),
    law_tables.strategies(drawn),
    f'## Thinking budgets\n\n{_BUDGETS}',
    law_tables.budgets(drawn, found.strategy),
  ]
  saved = _saved(found)
  if saved:
    pruning = plots.plot_tokens_saved(saved, path('pruning'))
    written.append(pruning)
    parts += [
      f'## Tokens saved by pruning\n\n{_PRUNING}',
      shown('Tokens saved by pruning', pruning),
      law_tables.pruning(drawn),
    ]
  return parts, written


_DEPENDENT = (
  'Points at different k come from the same samples of the same problems, and '
  'all sizes have the same problems: their errors go up and down together. The '
  't interval takes them as independent: it sees how far the points are from a '
  'line, a bend included, and not what they share, so it can be far too '
  'narrow. In a simulation of such points '
  '(`tests/scaling/runs/test_law_curves.py`) it held the true slope less than '
  'half of the time, the interval over problems 95 %. Both are given; believe '
  'the one over problems. Neither says what other seeds would give: those are '
  'shown one by one.'
)
_FRONTIER = (
  'The best of all sizes, thinking budgets and k as compute rises. Each row is '
  'the best of many on the problems it is measured on, so a little too good.'
)
_COSTS = (
  'A problem costs, in the usual estimate (2 FLOPs a parameter and thinking '
  'token) and as it is done (products of the weights, attention, prompt and '
  'answers too, the score head at the marks):'
)
_BUDGETS = (
  'After so many tokens `</think>` is forced and the answer is written from '
  'what is there. Thinking tokens count the forced one.'
)
_PRUNING = (
  'At so many tokens the better half (by the score of the steps so far) of the '
  'candidates that still think goes on, then again at twice as many. Replayed '
  'from the kept step scores over random k-subsets; judged at exactly so many '
  'tokens. FLOPs include prompts, answers and scoring: who is given up writes '
  'no answer. The replay bills the answer of everyone who is left; the engine '
  'does not write that of a closed trace which a better one beats, so it '
  'spends fewer FLOPs than the column says.'
)


def _in_short(found: _Found) -> str:
  """The main numbers in a few lines."""
  lines = []
  for one in found.analyses:
    over, line = one.over_problems, one.line
    text = (
      f'- {one.curve.label}: a doubling of compute gains {over.mean:.2f} '
      f'points ({over.low:.2f} to {over.high:.2f} over problems; '
      f'{line.per_doubling_interval[0]:.2f} to '
      f'{line.per_doubling_interval[1]:.2f} by t), R^2 {line.r2:.3f}; chosen '
      f'law: {one.selection.chosen}'
    )
    if one.bend is not None:
      clear = 'clearly' if one.bend.clear else 'not clearly'
      text += f'; bends {one.bend.direction}, {clear}'
      if one.bend.direction == 'straight':
        text = text.replace('; bends straight, not clearly', '; straight')
    lines.append(words(text))
  most = int(max(curve.k_n[-1] for curve in found.curves))
  largest = found.curves[-1]
  others = [
    f'{STRATEGIES[name]} {100 * curve.accuracy_n[-1]:.1f} %'
    for name in ('single', 'majority', 'weighted_vote', 'best_of_k', 'oracle')
    if name != found.strategy
    for curve in [
      law_curves.curve(found.drawn, largest.width, found.budget, name)
    ]
    if curve is not None
  ]
  lines.append(
    f'- {largest.label}, k = {most}: {STRATEGIES[found.strategy]} '
    f'{100 * largest.accuracy_n[-1]:.1f} %; {", ".join(others)}'
  )
  for one in _saved(found)[-1:]:
    difference = one.pruned_n[-1] - one.whole_n[-1]
    lines.append(
      f'- pruning, {one.label}, k = {int(one.k_n[-1])}: '
      f'{100 * one.share_n[-1]:.0f} % of the thinking tokens, '
      f'{difference:+.1f} points ({one.low_n[-1]:+.1f} to '
      f'{one.high_n[-1]:+.1f})'
    )
  return '\n'.join(['## In short', '', *lines])


def _seeds(found: _Found) -> str:
  lines = [(curve.label, [curve]) for curve in found.curves]
  if len(found.curves) > 1:
    lines.append((_ALL, found.curves))
  text = law_tables.seeds(lines)
  rows = []
  for curve in found.curves:
    accuracy_Sn = 100 * curve.accuracy_SPn.mean(axis=1)
    for seed, accuracy_n in zip(curve.seeds, accuracy_Sn, strict=True):
      cells = [f'{value:.1f}' for value in accuracy_n]
      rows.append([f'{curve.label}, seed {seed}', *cells])
  if len({tuple(curve.k_n) for curve in found.curves}) == 1:
    header = [f'k = {int(k)}' for k in found.curves[0].k_n]
    text += '\n\n' + aligned_table(['accuracy, %', *header], rows)
  return (
    '### Seeds\n\nA seed has its own training and its own draws; gain per '
    f'doubling of compute, in points, and accuracies.\n\n{text}'
  )


def _panels(found: _Found) -> dict[str, dict[str, Curve]]:
  """Size -> strategy -> curve; pruning as it begins last."""
  panels: dict[str, dict[str, Curve]] = {}
  latest = law_curves.firsts(found.drawn)[-1:]
  for name in STRATEGIES:
    for first in latest if name == 'pruned' else [0]:
      for curve in _of_sizes(found.drawn, found.budget, name, first):
        heading = curve.label.replace(' M', ' M parameters')
        panels.setdefault(heading, {})[name] = _per_cent(curve)
  return panels


def _saved(found: _Found) -> list[plots.Saved]:
  """What pruning saves, a size and first milestone each."""
  saved = []
  wholes = {
    curve.width: curve
    for curve in _of_sizes(found.drawn, found.budget, 'best_of_k')
  }
  for first in law_curves.firsts(found.drawn):
    for pruned in _of_sizes(found.drawn, found.budget, 'pruned', first):
      whole = wholes[pruned.width]
      lost = intervals.column_intervals(
        pruned.accuracy_Pn - whole.accuracy_Pn,
        [intervals.DIFFERENCE] * len(pruned.k_n),
      )
      saved.append(
        plots.Saved(
          f'{pruned.label}, first at {first} tokens',
          pruned.k_n,
          100 * whole.accuracy_n,
          100 * pruned.accuracy_n,
          pruned.thinking_n / whole.thinking_n,
          100 * np.array([x.low for x in lost]),
          100 * np.array([x.high for x in lost]),
        )
      )
  return saved
