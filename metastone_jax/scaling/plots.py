"""Pictures of laws: accuracy against compute and k, what pruning saves.

Contract: as in `evaluation.plots`: plain data in (`curve.Curve`, per cent), one
PNG out, no global state. The y axis holds the points and their intervals; a
band that is wider is cut. What a line and its band are, the legend says.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import patches as mpl_patches
from matplotlib import ticker

from metastone_jax.errors import UserError
from metastone_jax.evaluation import style
from metastone_jax.scaling import bootstrap, fits
from metastone_jax.scaling.curve import Curve, Saved, envelope

# Colour and marker of a curve: eight that differ in both, by turns.
_LOOKS = (
  (style.BLUE, 'o'),
  (style.VERMILION, '^'),
  (style.GREEN, 'D'),
  (style.ORANGE, 's'),
  ('#56B4E9', 'v'),
  ('#CC79A7', 'P'),
  ('#8B6F00', 'X'),
  ('#4B2E83', 'h'),
)
CEILING = 'oracle'
_STRATEGY_LOOKS = {
  'best_of_k': (style.BLUE, 'o'),
  'weighted_vote': (style.GREEN, 'D'),
  'majority': (style.ORANGE, 's'),
  'pruned': ('#CC79A7', 'P'),
  'single': ('#000000', 'x'),
}
_GRID = 120
_COLUMNS = 3


def plot_accuracy_against_compute(
  curves: Sequence[Curve],
  path: epath.PathLike,
  *,
  title: str,
  compute_label: str = 'compute: parameters x thinking tokens a problem',
  laws: Mapping[str, str] | str = 'linear',
  seed: int = 0,
) -> epath.Path:
  """Points with intervals, a fitted law with its 95 % band, and the envelope.

  The band is one over problems where a curve has `accuracy_PM`, else the fit's
  own. The envelope is the best accuracy that each compute buys over all curves.

  Args:
    curves: one a size, say; at least one.
    path: PNG to write.
    title: above the picture.
    compute_label: of the x axis.
    laws: label of a curve -> law drawn, or one law for all. A curve that the
      law cannot be fitted to is joined by a thin dashed line.
    seed: of the bootstrap.

  Returns:
    The path.

  Raises:
    UserError: no curve, or an unknown law.
  """
  if not curves:
    raise UserError('accuracy against compute: there is no curve to draw')
  fig = mpl_figure.Figure(figsize=(7.6, 5.2), layout='constrained')
  ax = fig.subplots()
  ax.set_xscale('log')
  kinds = set()
  for curve, look in zip(curves, _cycled(len(curves)), strict=True):
    law = laws if isinstance(laws, str) else laws[curve.label]
    kinds.add(_law(ax, curve, law, look[0], seed))
    _points(ax, curve, curve.compute_n, look)
  if len(curves) > 1:
    compute_m, best_m = envelope(curves)
    last = max(curve.compute_n[-1] for curve in curves)
    ax.step(
      [*compute_m, last],
      [*best_m, best_m[-1]],
      where='post',
      color='black',
      lw=1.3,
      ls=(0, (1, 1.2)),
      zorder=4,
    )
  ax.set_ylim(*_limits(curves))
  ax.set_xlabel(compute_label, fontsize=8.5)
  ax.set_ylabel('accuracy, %')
  style.title(ax, title)
  style.plain_axes(ax)
  names = laws if isinstance(laws, str) else 'chosen'
  handles = [
    _handle(look, '-', curve.label)
    for curve, look in zip(curves, _cycled(len(curves)), strict=True)
  ]
  if len(curves) > 1:
    handles.append(
      mpl_lines.Line2D(
        [],
        [],
        color='black',
        lw=1.3,
        ls=(0, (1, 1.2)),
        label='envelope: best at that compute',
      )
    )
  for kind in sorted(kinds - {''}):
    handles.append(
      mpl_patches.Patch(
        color=style.GREY,
        alpha=0.3,
        lw=0,
        label=f'{names} law, band: 95 % {kind}',
      )
    )
  if '' in kinds:
    handles.append(
      mpl_lines.Line2D(
        [], [], color=style.GREY, lw=0.9, ls='--', label='joined, not fitted'
      )
    )
  _legend(fig, handles)
  return style.write_png(fig, path)


def plot_accuracy_against_k(
  panels: Mapping[str, Mapping[str, Curve]], path: epath.PathLike, *, title: str
) -> epath.Path:
  """Accuracy of each strategy against k (log2 axis), pass@k as the ceiling.

  Args:
    panels: title of a panel (a model size) -> strategy -> its curve with
      `k_n`, and `low_n` and `high_n` for a band. The strategy 'oracle' is the
      ceiling; names of `scaling.strategies` keep their colours.
    path: PNG to write.
    title: above the picture.

  Returns:
    The path.

  Raises:
    UserError: no panel, or a curve without k.
  """
  if not any(panels.values()):
    raise UserError('accuracy against k: there is no curve to draw')
  fig, axes = _grid(len(panels), title)
  names = list(dict.fromkeys(name for some in panels.values() for name in some))
  labels = {n: c.label for some in panels.values() for n, c in some.items()}
  looks = _strategy_looks(names)
  for ax, (panel, some) in zip(axes, panels.items(), strict=True):
    for name, curve in some.items():
      if curve.k_n is None:
        raise UserError(f'accuracy against k: {curve.label!r} has no k')
      color, mark = looks[name]
      if curve.low_n is not None:
        ax.fill_between(
          curve.k_n, curve.low_n, curve.high_n, color=color, alpha=0.13, lw=0
        )
      ceiling = name == CEILING
      ax.plot(
        curve.k_n,
        curve.accuracy_n,
        '--' if ceiling else '-',
        color=color,
        marker=mark,
        ms=4,
        lw=1.5,
      )
    _k_axis(ax, sorted({k for c in some.values() for k in c.k_n}))
    ax.set_title(panel, loc='left', fontsize=9.5)
  for ax in axes[:: _columns(len(panels))]:
    ax.set_ylabel('accuracy, %')
  handles = [
    _handle(looks[n], '--' if n == CEILING else '-', labels[n]) for n in names
  ]
  if any(
    c.low_n is not None for some in panels.values() for c in some.values()
  ):
    handles.append(
      mpl_patches.Patch(
        color=style.GREY, alpha=0.3, lw=0, label='band: 95 % interval'
      )
    )
  _legend(fig, handles)
  return style.write_png(fig, path)


def plot_tokens_saved(
  saved: Sequence[Saved], path: epath.PathLike, *, title: str
) -> epath.Path:
  """Thinking tokens that pruning saves, and accuracy it changes, against k.

  Args:
    saved: one a size and rule of pruning.
    path: PNG to write.
    title: above the picture.

  Returns:
    The path.

  Raises:
    UserError: nothing to draw.
  """
  if not saved:
    raise UserError('tokens saved: there is nothing to draw')
  fig = mpl_figure.Figure(figsize=(9.6, 4.3), layout='constrained')
  fig.suptitle(title, x=0.01, ha='left', fontsize=10.5)
  left, right = fig.subplots(1, 2)
  right.axhline(0.0, color='black', lw=0.8, ls=':')
  ks = sorted({float(k) for one in saved for k in one.k_n})
  looks = _cycled(len(saved))
  # Side by side, so that whiskers at one k do not hide each other.
  shift_S = 2.0 ** np.linspace(-0.12, 0.12, len(saved))
  for one, (color, mark), shift in zip(saved, looks, shift_S, strict=True):
    left.plot(
      one.k_n, one.tokens_n, '-', marker=mark, color=color, ms=4, lw=1.5
    )
    _whiskers(
      right,
      np.asarray(one.k_n) * (shift if len(saved) > 1 else 1.0),
      one.change_n,
      one.low_n,
      one.high_n,
      (color, mark),
      line='-',
    )
  for ax, text in (
    (left, 'thinking tokens saved, %'),
    (right, 'accuracy, pruned minus whole, points'),
  ):
    _k_axis(ax, ks)
    ax.set_ylabel(text, fontsize=9)
  left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
  handles = [
    _handle(look, '-', one.label)
    for one, look in zip(saved, looks, strict=True)
  ]
  if any(one.low_n is not None for one in saved):
    handles.append(_handle((style.GREY, '|'), '-', 'whiskers: 95 % interval'))
  _legend(fig, handles)
  return style.write_png(fig, path)


def _law(ax, curve: Curve, law: str, color: str, seed: int) -> str:
  """Draws law and band; returns what the band is, '' if nothing was fitted."""
  fits.law_named(law)
  x_n = curve.compute_n
  try:
    fit = fits.fit_law(law, x_n, curve.accuracy_n)
  except UserError:
    ax.plot(x_n, curve.accuracy_n, '--', color=color, lw=0.9)
    return ''
  # A little beyond the points; more would be a claim.
  reach = 1.15
  at = np.geomspace(x_n[0] / reach, x_n[-1] * reach, _GRID)
  if curve.accuracy_PM is not None and len(curve.accuracy_PM) > 1:
    low, high = bootstrap.bootstrap_band(
      x_n, curve.accuracy_PM, law, at, seed=seed
    )
    kind = 'over problems'
  else:
    low, high = fit.band(at)
    kind = 'of the fit'
  ax.fill_between(at, low, high, color=color, alpha=0.13, lw=0)
  ax.plot(at, fit.predict(at), '-', color=color, lw=1.3)
  return kind


def _points(ax, curve: Curve, x_n, look) -> None:
  _whiskers(ax, x_n, curve.accuracy_n, curve.low_n, curve.high_n, look, line='')


def _whiskers(ax, x_n, y_n, low_n, high_n, look, *, line: str) -> None:
  color, mark = look
  error = None
  if low_n is not None and high_n is not None:
    error = np.maximum([y_n - low_n, high_n - y_n], 0.0)
  ax.errorbar(
    x_n,
    y_n,
    yerr=error,
    fmt=line + mark,
    color=color,
    ms=4.5,
    lw=1.3,
    elinewidth=0.9,
    capsize=2,
    zorder=3,
  )


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
  """Of the y axis: points and intervals, and some air."""
  low = min(
    np.nanmin([c.accuracy_n, c.accuracy_n if c.low_n is None else c.low_n])
    for c in curves
  )
  high = max(
    np.nanmax([c.accuracy_n, c.accuracy_n if c.high_n is None else c.high_n])
    for c in curves
  )
  air = 0.06 * max(high - low, 1.0)
  return low - air, high + air


def _k_axis(ax, ks: Sequence[float]) -> None:
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_locator(ticker.FixedLocator(list(ks)))
  ax.xaxis.set_major_formatter(ticker.FormatStrFormatter('%d'))
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.set_xlabel('k, samples an answer', fontsize=8.5)
  style.plain_axes(ax)


def _columns(count: int) -> int:
  return 2 if count == 4 else min(count, _COLUMNS)


def _grid(count: int, title: str):
  """(figure, axes of the panels)."""
  columns = _columns(count)
  lines = math.ceil(count / columns)
  fig = mpl_figure.Figure(
    figsize=(max(6.8, 4.1 * columns), 1.1 + 3.3 * lines), layout='constrained'
  )
  fig.suptitle(title, x=0.01, ha='left', fontsize=10.5)
  axes = list(fig.subplots(lines, columns, squeeze=False).flat)
  for ax in axes[count:]:
    ax.remove()
  return fig, axes[:count]


def _cycled(count: int) -> list[tuple[str, str]]:
  return [_LOOKS[i % len(_LOOKS)] for i in range(count)]


def _strategy_looks(names: Sequence[str]) -> dict[str, tuple]:
  """Known strategies by name, others in what is left of the colours."""
  looks = {CEILING: (style.GREY, None), **_STRATEGY_LOOKS}
  free = [look for look in _LOOKS if look not in looks.values()]
  others = [name for name in names if name not in looks]
  for i, name in enumerate(others):
    looks[name] = free[i % len(free)]
  return looks


def _handle(look, line: str, label: str) -> mpl_lines.Line2D:
  color, mark = look
  return mpl_lines.Line2D(
    [], [], color=color, marker=mark, ls=line, ms=4.5, lw=1.4, label=label
  )


def _legend(fig, handles) -> None:
  """Under all axes, where it covers no curve."""
  widest = max(len(handle.get_label()) for handle in handles)
  room = int(72 * fig.get_figwidth() / (5.0 * widest + 40))
  fig.legend(
    handles=handles,
    loc='outside lower center',
    ncols=max(1, min(len(handles), 4, room)),
    frameon=False,
    fontsize=8.5,
  )
