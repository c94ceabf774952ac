"""Pictures of scaling laws: against compute, against k, tokens saved.

Contract: as in `evaluation.plots`: plain data in, one PNG out through
`etils.epath`, no global state. Accuracies are drawn in the unit they come in.
A fitted curve has a band only where points are left to tell the noise.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import patches as mpl_patches

from metastone_jax.errors import UserError
from metastone_jax.evaluation import style
from metastone_jax.evaluation.plots import RULE_STYLES
from metastone_jax.scaling import bootstrap, fits, selection
from metastone_jax.scaling import plot_parts as parts
from metastone_jax.scaling.curve import Curve, envelope
from metastone_jax.scaling.strategies import STRATEGIES

PER_CENT = 'accuracy (%)'
# strategy -> (colour, line, marker).
_STRATEGY_STYLES = {
  **{name: look[1:] for name, look in RULE_STYLES.items()},
  'pruned': (style.VERMILION, '-', '^'),
  'single': ('black', ':', None),
}
_GRID = 200  # computes at which a fit is drawn
_RESAMPLES = 500  # of a band, which is looked at and not read off
# A fit is drawn a little beyond its points, as a share of their range.
_BEYOND = 0.04


def plot_accuracy_against_compute(
  curves: Sequence[Curve],
  path: epath.PathLike,
  *,
  title: str = 'Accuracy against compute',
  compute_name: str = 'parameters x thinking tokens',
  accuracy_name: str = PER_CENT,
  laws: Mapping[str, str] | None = None,
  with_envelope: bool | None = None,
) -> epath.Path:
  """Points with their intervals, fits with bands, the envelope over curves.

  The band is over problems (bootstrap) where a curve has them, else that of the
  fit, which takes the points as independent.

  Args:
    curves: at least one; one colour each.
    path: PNG to write.
    title: above the picture.
    compute_name: what compute is.
    accuracy_name: label of the accuracies, with their unit.
    laws: label -> law to draw; default: the one `select` chooses.
    with_envelope: whether to draw it; default: with several curves.

  Returns:
    The path.

  Raises:
    UserError: no curve.
  """
  if not curves:
    raise UserError('accuracy against compute: there is no curve to draw')
  fig = mpl_figure.Figure(figsize=(8.2, 5.0), layout='constrained')
  ax = fig.subplots()
  handles, bands = [], set()
  for i, curve in enumerate(curves):
    color, marker = parts.look(i)
    points = dict(color=color, marker=marker, ms=4.5)
    parts.whiskers(ax, curve, color)
    ax.plot(curve.compute_n, curve.accuracy_n, lw=0, zorder=4, **points)
    label = parts.label(curve.label)
    if curve.can_be_fitted:
      law, band = _draw_fit(ax, curve, (laws or {}).get(curve.label), color)
      bands.add(band)
      label += f' ({law})'
    handles.append(mpl_lines.Line2D([], [], lw=1.6, label=label, **points))
  if with_envelope or (with_envelope is None and len(curves) > 1):
    handles.append(_draw_envelope(ax, curves))
  handles += [
    mpl_patches.Patch(color=style.GREY, alpha=0.3, lw=0, label=f'band: {band}')
    for band in sorted(bands - {''})
  ]
  parts.log_axis(ax)
  _fit_range(ax, curves)
  ax.set_xlabel(f'{parts.literal(compute_name)} (log scale)', fontsize=9)
  ax.set_ylabel(accuracy_name, fontsize=9)
  style.title(ax, parts.literal(title))
  style.plain_axes(ax)
  parts.figure_legend(fig, handles)
  return style.write_png(fig, path)


def plot_accuracy_against_k(
  panels: Mapping[str, Mapping[str, Curve]],
  path: epath.PathLike,
  *,
  title: str = 'Accuracy against k',
  accuracy_name: str = PER_CENT,
) -> epath.Path:
  """Every strategy against k (log2), pass@k as the ceiling, interval bands.

  Args:
    panels: title of a panel (a model size) -> strategy (`strategies.STRATEGIES`
      or a name of its own) -> curve with `k_n`.
    path: PNG to write.
    title: above the picture.
    accuracy_name: label of the accuracies, with their unit.

  Returns:
    The path.

  Raises:
    UserError: no panel, or a curve without `k_n`.
  """
  if not panels or not all(panels.values()):
    raise UserError('accuracy against k: there is no curve to draw')
  fig, axes = parts.row_of_axes(len(panels), sharey=True)
  names = list(dict.fromkeys(name for each in panels.values() for name in each))
  # Known ones in their own order, the ceiling last: on top of a legend's end.
  known = [name for name in STRATEGIES if name in names]
  names = known + [name for name in names if name not in known]
  looks = _strategy_looks(names)
  banded = False
  for ax, (heading, curves) in zip(axes, panels.items(), strict=True):
    for name in names:
      if name in curves:
        banded |= _draw_strategy(ax, name, curves[name], looks[name])
    parts.k_axis(ax, [k for curve in curves.values() for k in curve.k_n])
    ax.set_title(parts.label(heading), loc='left', fontsize=9.5)
  for ax in axes[:: parts.COLUMNS]:
    ax.set_ylabel(accuracy_name, fontsize=9)
  handles = [
    mpl_lines.Line2D(
      [],
      [],
      color=color,
      ls=line,
      marker=marker,
      ms=4.5,
      lw=1.7,
      label=parts.label(STRATEGIES.get(name, name)),
    )
    for name, (color, line, marker) in looks.items()
  ]
  if banded:
    handles.append(parts.interval_patch())
  fig.suptitle(parts.literal(title), x=0.01, ha='left', fontsize=10.5)
  parts.figure_legend(fig, handles)
  return style.write_png(fig, path)


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
  """What pruning saves and loses at n values of k, against all samples whole.

  Attributes:
    label: for the legend.
    k_n: samples an answer.
    whole_n: accuracy of best-of-k without pruning.
    pruned_n: with it.
    share_n: thinking tokens drawn, as a share (0 to 1) of those without it.
    low_n: lower ends of the interval of pruned minus whole, paired; or None.
    high_n: upper ends.
  """

  label: str
  k_n: np.ndarray
  whole_n: np.ndarray
  pruned_n: np.ndarray
  share_n: np.ndarray
  low_n: np.ndarray | None = None
  high_n: np.ndarray | None = None


def plot_tokens_saved(
  found: Sequence[Saved],
  path: epath.PathLike,
  *,
  title: str = 'Tokens saved by pruning, and what it costs',
  accuracy_name: str = PER_CENT,
) -> epath.Path:
  """Accuracy with and without pruning, their difference, share of tokens.

  Args:
    found: at least one; one colour each.
    path: PNG to write.
    title: above the picture.
    accuracy_name: label of the accuracies, with their unit.

  Returns:
    The path.

  Raises:
    UserError: nothing to draw.
  """
  if not found:
    raise UserError('tokens saved: there is nothing to draw')
  fig, axes = parts.row_of_axes(3, sharey=False)
  handles = []
  for i, one in enumerate(found):
    color, marker = parts.look(i)
    line = dict(color=color, marker=marker, ms=4.5, lw=1.7)
    faint = {**line, 'lw': 1.2, 'ls': '--', 'mfc': 'white'}
    difference_n = np.subtract(one.pruned_n, one.whole_n)
    axes[0].plot(one.k_n, one.whole_n, **faint)
    axes[0].plot(one.k_n, one.pruned_n, **line)
    axes[1].plot(one.k_n, difference_n, **line)
    axes[2].plot(one.k_n, 100 * np.asarray(one.share_n), **line)
    if one.low_n is not None:
      axes[1].fill_between(
        one.k_n, one.low_n, one.high_n, color=color, alpha=0.15, lw=0
      )
    handles.append(
      mpl_lines.Line2D([], [], label=parts.label(one.label), **line)
    )
  axes[1].axhline(0.0, color='black', lw=0.8, ls=':')
  axes[2].axhline(100.0, color='black', lw=0.8, ls=':')
  axes[2].set_ylim(0.0, 105.0)
  for ax, heading in zip(
    axes,
    (
      accuracy_name,
      'pruned minus all samples whole',
      'thinking tokens drawn (% of all)',
    ),
    strict=True,
  ):
    parts.k_axis(ax, [k for one in found for k in one.k_n])
    ax.set_title(heading, loc='left', fontsize=9.5)
  handles += [
    mpl_lines.Line2D(
      [],
      [],
      color=style.GREY,
      ls='--',
      marker='o',
      mfc='white',
      ms=4.5,
      lw=1.2,
      label='without pruning',
    )
  ]
  if any(one.low_n is not None for one in found):
    handles.append(parts.interval_patch())
  fig.suptitle(parts.literal(title), x=0.01, ha='left', fontsize=10.5)
  parts.figure_legend(fig, handles)
  return style.write_png(fig, path)


def _draw_fit(ax, curve: Curve, law: str | None, color: str):
  """Draws a law and its band; (its name, what the band is or empty)."""
  if law is None:
    chosen = selection.select(curve.compute_n, curve.accuracy_n)
    fit = chosen.fits[chosen.chosen]
  else:
    fit = fits.fit_law(law, curve.compute_n, curve.accuracy_n)
  ends = np.log(curve.compute_n[[0, -1]])
  margin = _BEYOND * (ends[1] - ends[0])
  grid = np.exp(np.linspace(ends[0] - margin, ends[1] + margin, _GRID))
  ax.plot(grid, fit.predict(grid), color=color, lw=1.6, zorder=2)
  # With one degree of freedom a t band is 12.7 standard errors.
  if fit.n - len(fit.params) < 2 and curve.accuracy_PM is None:
    return fit.name, ''
  if curve.accuracy_PM is None:
    (low, high), what = fit.band(grid), '95 %, points independent'
  else:
    low, high = bootstrap.bootstrap_band(
      curve.compute_n,
      curve.accuracy_PM,
      fit.name,
      grid,
      resamples=_RESAMPLES,
    )
    what = '95 % over problems'
  ax.fill_between(grid, low, high, color=color, alpha=0.15, lw=0, zorder=1)
  return fit.name, what


def _draw_envelope(ax, curves: Sequence[Curve]):
  found = envelope(curves)
  last = max(curve.compute_n[-1] for curve in curves)
  line = dict(color='black', lw=0.9, ls=(0, (3, 1)))
  ax.step(
    np.append(found.compute_m, last),
    np.append(found.accuracy_m, found.accuracy_m[-1]),
    where='post',
    zorder=2.5,
    **line,
  )
  return mpl_lines.Line2D([], [], label='envelope: best within compute', **line)


def _fit_range(ax, curves: Sequence[Curve]) -> None:
  """y limits from the points and their intervals: bands may be cut off."""
  values = np.concatenate(
    [
      values
      for curve in curves
      for values in (curve.accuracy_n, curve.low_n, curve.high_n)
      if values is not None
    ]
  )
  low, high = np.nanmin(values), np.nanmax(values)
  margin = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
  ax.set_ylim(low - margin, high + margin)


def _strategy_looks(names: Sequence[str]) -> dict[str, tuple]:
  """(colour, line, marker) of each, unknown ones in colours not yet taken."""
  taken = {_STRATEGY_STYLES[n][0] for n in names if n in _STRATEGY_STYLES}
  free = [
    parts.look(i)
    for i in range(len(parts.COLORS))
    if parts.COLORS[i] not in taken
  ]
  free = free or [parts.look(i) for i in range(len(parts.COLORS))]
  found, unknown = {}, 0
  for name in names:
    if name in _STRATEGY_STYLES:
      found[name] = _STRATEGY_STYLES[name]
    else:
      color, marker = free[unknown % len(free)]
      found[name], unknown = (color, '-', marker), unknown + 1
  return found


def _draw_strategy(ax, name: str, curve: Curve, style_of) -> bool:
  """One line; whether it has a band."""
  if curve.k_n is None:
    raise UserError(f'accuracy against k: curve {curve.label!r} has no k_n')
  color, line, marker = style_of
  if len(curve.k_n) == 1:  # of one k: a level to compare with
    ax.axhline(curve.accuracy_n[0], color=color, lw=0.9, ls=line)
    return False
  order_n = np.argsort(curve.k_n, kind='stable')
  k_n = curve.k_n[order_n]
  ax.plot(
    k_n,
    curve.accuracy_n[order_n],
    color=color,
    ls=line,
    marker=marker,
    ms=4.5,
    lw=1.7,
  )
  if curve.low_n is None:
    return False
  ax.fill_between(
    k_n,
    curve.low_n[order_n],
    curve.high_n[order_n],
    color=color,
    alpha=0.15,
    lw=0,
  )
  return True
