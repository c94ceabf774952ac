"""The pictures of a report, as PNG files.

Contract: every function takes plain data (metric rows, samples, a summary),
writes one PNG through `etils.epath` and returns its path. Figures are built
without pyplot, so no global state is touched and no display is needed. Colours
are the colour-blind safe set of Okabe and Ito; right is always blue and wrong
always vermilion. Metric rows are the dicts of the run's JSONL: 'step', 'phase'
and numbers by name; several rows may share a step, and each phase may count
its steps from 0.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import patches as mpl_patches
from matplotlib import ticker

from metastone_jax.errors import UserError
from metastone_jax.evaluation import style
from metastone_jax.evaluation.samples import EvaluationSamples
from metastone_jax.evaluation.series import Run, read_run, smooth

# Metric name -> (panel title, y label); other `loss/*` names get their own.
_LOSS_TITLES = {
  'loss/total': 'total loss',
  'loss/lm': 'language-model loss (nats per token)',
  'loss/policy': 'policy objective (GRPO)',
  'loss/spr': 'score-head loss (SPR)',
  'loss/kl': 'KL to the reference (nats per token)',
  'loss/entropy': 'policy entropy (nats per token)',
}
_PASS_RATE = {
  'reward/mean': ('rollout reward', style.GREY, '-'),
  'reward/pass_rate': ('rollout pass rate', style.BLUE, '-'),
  'eval/pass_at_1': ('held-out pass@1', style.VERMILION, 'o-'),
  'eval/majority_at_8': ('held-out majority@8', style.ORANGE, 's-'),
  'eval/best_of_8': ('held-out SPRM best-of-8', style.GREEN, '^-'),
}
_AUC = {
  'score/auc_within': ('rollouts, within a problem', style.BLUE, '-'),
  'score/auc_across': ('rollouts, across problems', style.GREY, '-'),
  'eval/auc_within': ('held-out, within a problem', style.VERMILION, 'o-'),
}
RULE_STYLES = {
  'oracle': ('oracle pass@k (ceiling)', style.GREY, '--', None),
  'best_of_k': ('SPRM best-of-k', style.BLUE, '-', 'o'),
  'weighted_vote': ('score-weighted vote', style.GREEN, '-', 'D'),
  'majority': ('majority vote', style.ORANGE, '-', 's'),
}


def plot_learning_curves(
  metrics: Iterable[Mapping], path: epath.PathLike
) -> epath.Path:
  """Losses, reward or pass rate, and AUC against the step, phases shaded.

  Args:
    metrics: rows with 'step', 'phase' and numbers; every `loss/*` gets a
      panel, `reward/*`, `score/auc_*` and `eval/*` share theirs.
    path: PNG to write.

  Returns:
    The path.

  Raises:
    UserError: no row, or no metric that this picture shows.
  """
  run = read_run(metrics)
  losses, panels = _panels(run)
  if not panels:
    raise UserError(
      'learning curves: no loss/*, reward/*, score/auc_* or eval/* metric in '
      'these rows'
    )
  # What the run is for on top, wide; the losses as small multiples below.
  wide = [panel for panel in panels if panel[0] not in losses]
  small = [panel for panel in panels if panel[0] in losses]
  columns = _columns(len(small))
  lines = math.ceil(len(small) / columns)
  heights = [3.3] * bool(wide) + [2.5 * lines] * bool(small)
  fig = mpl_figure.Figure(
    figsize=(12.0, sum(heights) + 0.3), layout='constrained'
  )
  parts = fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
  axes = []
  for part, count, shape in zip(
    parts[:, 0],
    [len(group) for group in (wide, small) if group],
    [(1, len(wide))] * bool(wide) + [(lines, columns)] * bool(small),
    strict=True,
  ):
    grid = list(part.subplots(*shape, squeeze=False).flat)
    axes += grid[:count]
    for ax in grid[count:]:
      ax.remove()
  for ax, (_, title, curves, chance) in zip(axes, wide + small, strict=True):
    style.shade(ax, run)
    if chance is not None:
      ax.axhline(chance, color='black', lw=0.8, ls=':')
      style.note(ax, chance, 'chance')
    for name, (label, color, mark) in curves.items():
      _curve(ax, run.series(name), label, color, mark)
    ax.set_title(title, fontsize=10, loc='left')
    style.step_axis(ax, run, list(curves))
    if any(label for label, _, _ in curves.values()):
      style.legend_below(ax)
  style.phase_legend(fig, run)
  return style.write_png(fig, path)


def has_learning_curves(metrics: Iterable[Mapping]) -> bool:
  """Whether `plot_learning_curves` finds anything to draw."""
  metrics = list(metrics)
  return bool(metrics) and bool(_panels(read_run(metrics))[1])


def plot_score_separation(
  metrics: Iterable[Mapping], path: epath.PathLike
) -> epath.Path:
  """The paper's "aha" picture: scores of right and wrong traces part ways.

  The band is one standard deviation of the traces where the rows hold
  `score/std_correct` and `score/std_wrong`, else the standard deviation of
  the mean over neighbouring steps; the legend says which.

  Args:
    metrics: rows with `score/mean_correct` and `score/mean_wrong`.
    path: PNG to write.

  Returns:
    The path.

  Raises:
    UserError: the rows hold neither metric.
  """
  run = read_run(metrics)
  sides = (
    ('correct', 'right', style.BLUE),
    ('wrong', 'wrong', style.VERMILION),
  )
  if not any(any(run.series(f'score/mean_{s}')) for s, _, _ in sides):
    raise UserError(
      'score separation: no score/mean_correct or score/mean_wrong in these '
      'rows'
    )
  fig = mpl_figure.Figure(figsize=(7.2, 4.0), layout='constrained')
  ax = fig.subplots()
  style.shade(ax, run)
  measured = all(any(run.series(f'score/std_{s}')) for s, _, _ in sides)
  for side, label, color in sides:
    deviations = [
      dict(zip(x, y, strict=True)) for x, y in run.series(f'score/std_{side}')
    ]
    spread_at = {x: y for part in deviations for x, y in part.items()}
    for part, (x, y) in enumerate(run.series(f'score/mean_{side}')):
      center = smooth(y)
      if measured:
        spread = smooth(np.array([spread_at.get(i, np.nan) for i in x]))
      else:
        spread = np.sqrt(np.maximum(smooth(y**2) - center**2, 0.0))
      ax.fill_between(
        x, center - spread, center + spread, color=color, alpha=0.18, lw=0
      )
      _line(ax, x, center, f'{label} traces' if part == 0 else '', color)
  ax.set_ylabel('mean trace score (0 to 1)')
  style.title(ax, 'Scores of right and wrong traces over training')
  low, high = ax.get_ylim()
  ax.set_ylim(max(low, 0.0), min(high, 1.0))
  style.step_axis(ax, run, [f'score/mean_{side}' for side, _, _ in sides])
  handles, labels = ax.get_legend_handles_labels()
  handles.append(mpl_patches.Patch(color=style.GREY, alpha=0.3, lw=0))
  labels.append(
    'band: one standard deviation of the traces'
    if measured
    else 'band: one standard deviation over steps'
  )
  style.legend_below(ax, handles, labels)
  style.phase_legend(fig, run)
  return style.write_png(fig, path)


def plot_score_histogram(
  samples: EvaluationSamples, path: epath.PathLike, *, title: str | None = None
) -> epath.Path:
  """Histogram of the final trace scores of right and of wrong samples.

  Each side is normalised to its own number of samples, so that the shapes
  can be compared when one side is rare.

  Args:
    samples: scored samples.
    path: PNG to write.
    title: above the picture; a default names the task.

  Returns:
    The path.
  """
  fig = mpl_figure.Figure(figsize=(6.4, 3.6), layout='constrained')
  ax = fig.subplots()
  bins = np.linspace(0.0, 1.0, 31)
  sides = (
    ('right', samples.correct_PN, style.BLUE, ''),
    ('wrong', ~samples.correct_PN, style.VERMILION, '///'),
  )
  handles, labels = [], []
  for label, chosen_PN, color, hatch in sides:
    scores = samples.scores_PN[chosen_PN]
    if not len(scores):
      continue
    share = np.full(len(scores), 100.0 / len(scores))
    legend = f'{label}: {len(scores):,}, mean {scores.mean():.2f} (dashed)'
    # Fill and outline apart: the hatch tells the sides apart without colour.
    ax.hist(scores, bins, weights=share, color=color, alpha=0.28)
    ax.hist(
      scores,
      bins,
      weights=share,
      histtype='step',
      color=color,
      lw=1.6,
      hatch=hatch,
    )
    fill = mpl_colors.to_rgba(color, 0.28)
    handles.append(mpl_patches.Patch(fc=fill, ec=color, hatch=hatch))
    labels.append(legend)
    ax.axvline(scores.mean(), color=color, lw=1.2, ls='--')
  ax.set_xlim(0.0, 1.0)
  ax.set_xlabel('trace score (geometric mean of the step scores)')
  ax.set_ylabel('share of that side (%)')
  style.title(
    ax, title or f'{samples.task}: final scores of right and wrong samples'
  )
  style.plain_axes(ax)
  style.legend_below(ax, handles, labels)
  return style.write_png(fig, path)


def plot_accuracy_against_k(
  summary: Mapping, path: epath.PathLike, *, title: str | None = None
) -> epath.Path:
  """Accuracy of every rule against k (log2 axis), with interval bands.

  Args:
    summary: as `summarise` returns it; one point for each of its rows.
    path: PNG to write.
    title: above the picture; a default names the task and its size.

  Returns:
    The path.
  """
  rows = summary['rows']
  ks = [row['k'] for row in rows]
  fig = mpl_figure.Figure(figsize=(6.8, 4.3), layout='constrained')
  ax = fig.subplots()
  single = 100.0 * summary['pass_at_1']['mean']
  ax.axhline(single, color='black', lw=0.8, ls=':', label='one sample (pass@1)')
  for rule, (label, color, line, marker) in RULE_STYLES.items():
    mean, low, high = (
      np.array(
        [np.nan if row[rule][key] is None else row[rule][key] for row in rows],
        float,
      )
      * 100.0
      for key in ('mean', 'low', 'high')
    )
    ax.fill_between(ks, low, high, color=color, alpha=0.15, lw=0)
    ax.plot(
      ks, mean, line, color=color, marker=marker, ms=4.5, lw=1.8, label=label
    )
  ax.set_xscale('log', base=2)
  ax.set_xticks(ks, [str(k) for k in ks])
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.set_xlabel('k, samples per problem (log scale)')
  ax.set_ylabel('accuracy (%)')
  level = 100.0 * summary['level']
  style.title(
    ax,
    title
    or f'{summary["task"]}: accuracy against k, {summary["problems"]} problems',
  )
  style.plain_axes(ax)
  handles, labels = ax.get_legend_handles_labels()
  handles.append(mpl_patches.Patch(color=style.GREY, alpha=0.3, lw=0))
  labels.append(f'band: {level:g} % interval')
  style.legend_below(ax, handles, labels)
  return style.write_png(fig, path)


def _panels(run: Run):
  """(names of losses, [(name, title, {metric: style}, chance level)])."""
  names = run.names()
  losses = [name for name in _LOSS_TITLES if name in names]
  losses += sorted(
    name for name in names if name.startswith('loss/') and name not in losses
  )
  panels = [
    (
      name,
      _LOSS_TITLES.get(name, name.removeprefix('loss/') + ' loss'),
      {name: ('', style.BLUE, '-')},
      None,
    )
    for name in losses
    if any(run.series(name))
  ]
  shares = {name: v for name, v in _PASS_RATE.items() if any(run.series(name))}
  if shares:
    panels.append(('rate', 'reward and accuracy (share, 0 to 1)', shares, None))
  aucs = {name: v for name, v in _AUC.items() if any(run.series(name))}
  if aucs:
    panels.append(
      ('auc', 'AUC of the trace score, right against wrong', aucs, 0.5)
    )
  return losses, panels


def _columns(panels: int) -> int:
  """Columns of a grid that leaves few places empty."""
  return max(1, min(panels, 4 if panels % 3 == 1 else 3))


def _curve(ax, series, label: str, color: str, mark: str) -> None:
  parts = list(series)
  if mark != '-':
    # Rare evaluations: one line through the phases, whole markers at the edge.
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    ax.plot(x, y, mark, color=color, lw=1.2, ms=5, label=label, clip_on=False)
    return
  for part, (x, y) in enumerate(parts):
    if len(y) >= 50:
      ax.plot(x, y, color=color, lw=0.6, alpha=0.25)
      y = smooth(y)
    _line(ax, x, y, label if part == 0 else '', color)


def _line(ax, x, y, label: str, color: str) -> None:
  # A lone point has no line: it needs a marker to be seen.
  mark = 'o' if len(x) == 1 else '-'
  ax.plot(x, y, mark, color=color, lw=1.6, ms=4, label=label or '_nolegend_')
