"""Pictures of an evaluation's answers: calibration, cost, problems, pairs.

Contract: as in `plots`: plain data in, one PNG out, no global state, the same
colours for the same rules.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib import figure as mpl_figure
from matplotlib import patches as mpl_patches
from matplotlib import ticker

from metastone_jax.evaluation import style
from metastone_jax.evaluation.plots import RULE_STYLES
from metastone_jax.evaluation.samples import EvaluationSamples

# Interval whiskers.
_WHISKERS = dict(fmt='none', lw=1.3, capsize=2.5)


def plot_reliability(summary: Mapping, path: epath.PathLike) -> epath.Path:
  """How often samples of a score are right, with counts below.

  Args:
    summary: as `summarise` returns it.
    path: PNG to write.

  Returns:
    The path.
  """
  found = summary['calibration']
  bins = found['bins']
  fig = mpl_figure.Figure(figsize=(6.0, 5.6), layout='constrained')
  ax, below = fig.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
  ax.plot([0, 1], [0, 1], color='black', lw=0.8, ls=':', label='calibrated')
  x = np.array([b['score'] for b in bins])
  right = np.array([b['right']['mean'] for b in bins])
  ax.plot(
    x, right, 'o-', color=style.BLUE, ms=4.5, lw=1.4, label='samples of a bin'
  )
  bounded = [b for b in bins if b['right']['low'] is not None]
  if bounded:
    low, mean, high = (
      np.array([b['right'][key] for b in bounded])
      for key in ('low', 'mean', 'high')
    )
    ax.errorbar(
      [b['score'] for b in bounded],
      mean,
      [mean - low, high - mean],
      color=style.BLUE,
      label=f'{100 * summary["level"]:g} % interval over problems',
      **_WHISKERS,
    )
  ax.set_xlim(0, 1)
  ax.set_ylim(-0.02, 1.02)
  ax.set_ylabel('share right')
  style.title(
    ax,
    f'{summary["task"]}: reliability of the score, ECE {found["ece"]:.3f} '
    f'({found["ece_by_chance"]:.3f} by chance), '
    f'Brier {found["brier"]["mean"]:.3f}',
  )
  style.plain_axes(ax)
  below.bar(
    [b['low'] for b in bins],
    [b['count'] for b in bins],
    width=[b['high'] - b['low'] for b in bins],
    align='edge',
    color=style.GREY,
    alpha=0.5,
    ec='white',
  )
  for b in bins:
    below.text(
      (b['low'] + b['high']) / 2,
      b['count'],
      f'{b["count"]:,}',
      ha='center',
      va='bottom',
      fontsize=7,
    )
  below.margins(y=0.25)
  below.set_ylabel('samples')
  below.set_xlabel('trace score, mean of the bin')
  style.plain_axes(below)
  handles, labels = ax.get_legend_handles_labels()
  style.legend_below(below, handles, labels, offset=-0.52)
  return style.write_png(fig, path)


def plot_accuracy_against_cost(
  summary: Mapping, path: epath.PathLike
) -> epath.Path:
  """Accuracy of every rule against what its answer costs, k as labels.

  Args:
    summary: as `summarise` returns it; FLOPs where it has them, else tokens.
    path: PNG to write.

  Returns:
    The path.
  """
  rows = summary['rows']
  counted = rows[0]['cost']['best_of_k']['flops'] is not None
  name = 'flops' if counted else 'tokens'
  fig = mpl_figure.Figure(figsize=(6.8, 4.3), layout='constrained')
  ax = fig.subplots()
  for rule, (label, color, line, marker) in RULE_STYLES.items():
    x = [row['cost'][rule][name] for row in rows]
    mean, low, high = (
      100.0
      * np.array(
        [np.nan if row[rule][key] is None else row[rule][key] for row in rows]
      )
      for key in ('mean', 'low', 'high')
    )
    ax.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
    ax.plot(
      x, mean, line, color=color, marker=marker, ms=4.5, lw=1.8, label=label
    )
  for row in rows:
    ax.annotate(
      f'k = {row["k"]}',
      (row['cost']['best_of_k'][name], 0.02),
      xycoords=('data', 'axes fraction'),
      ha='center',
      fontsize=7.5,
    )
  ax.set_xscale('log')
  ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  ax.set_xlabel(
    'FLOPs an answer (log scale): prompt, samples and their scores'
    if counted
    else 'tokens an answer (log scale)'
  )
  ax.set_ylabel('accuracy (%)')
  style.title(ax, f'{summary["task"]}: accuracy against the cost of an answer')
  style.plain_axes(ax)
  handles, labels = ax.get_legend_handles_labels()
  handles.append(mpl_patches.Patch(color=style.GREY, alpha=0.3, lw=0))
  labels.append(f'band: {100 * summary["level"]:g} % interval')
  style.legend_below(ax, handles, labels)
  return style.write_png(fig, path)


def plot_pass_rates(
  samples: EvaluationSamples, path: epath.PathLike
) -> epath.Path:
  """How hard the problems are: a histogram of their pass rates.

  Args:
    samples: P x N.
    path: PNG to write.

  Returns:
    The path.
  """
  rate_P = samples.correct_PN.mean(axis=1)
  fig = mpl_figure.Figure(figsize=(6.4, 3.2), layout='constrained')
  ax = fig.subplots()
  # Never and always solved are kinds of their own; between them 10 bins.
  never, always = (rate_P == 0).sum(), (rate_P == 1).sum()
  inner = rate_P[(rate_P > 0) & (rate_P < 1)]
  count = np.histogram(inner, np.linspace(0, 1, 11))[0]
  ax.bar(
    np.arange(12),
    [never, *count, always],
    color=[style.VERMILION, *[style.GREY] * 10, style.BLUE],
    alpha=0.75,
    ec='white',
    width=0.95,
  )
  for place, value in enumerate([never, *count, always]):
    ax.text(place, value, f'{value}', ha='center', va='bottom', fontsize=7.5)
  ax.set_xticks(
    range(12), ['never', *(f'< {10 * i} %' for i in range(1, 11)), 'always']
  )
  ax.tick_params(axis='x', rotation=35)
  ax.margins(y=0.15)
  ax.set_ylabel('problems')
  style.title(
    ax,
    f'{samples.task}: share of the {samples.shape[1]} samples that is right, '
    f'of {samples.shape[0]} problems',
  )
  style.plain_axes(ax)
  return style.write_png(fig, path)


def plot_comparison(
  found: Sequence[Mapping], path: epath.PathLike, *, level: float
) -> epath.Path:
  """Paired differences with their intervals, a line each.

  Args:
    found: of `compare`, at least one.
    path: PNG to write.
    level: coverage of the intervals.

  Returns:
    The path.
  """
  height = 1.2 + 0.3 * len(found)
  fig = mpl_figure.Figure(figsize=(8.0, height), layout='constrained')
  ax = fig.subplots()
  ax.axvline(0, color='black', lw=0.8, ls=':')
  names = list(dict.fromkeys(d['after'] for d in found))
  colors = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.GREY)
  for place, d in enumerate(found):
    color = colors[names.index(d['after']) % len(colors)]
    mean = 100 * d['mean']
    ax.plot(mean, place, 'o', color=color, ms=5)
    if d['low'] is not None:
      ax.errorbar(
        mean,
        place,
        xerr=[[mean - 100 * d['low']], [100 * d['high'] - mean]],
        color=color,
        **_WHISKERS,
      )
  ax.set_yticks(
    range(len(found)),
    [f'{d["measure"]}: {d["after"]} minus {d["before"]}' for d in found],
  )
  ax.set_ylim(len(found) - 0.4, -0.6)
  ax.set_xlabel(f'percentage points, {100 * level:g} % interval')
  style.plain_axes(ax)
  ax.grid(axis='x', color='#D0D0D0', lw=0.5)
  return style.write_png(fig, path)
