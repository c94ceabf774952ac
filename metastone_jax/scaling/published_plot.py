"""The picture of the published table: against k, and parameters x k.

Contract: as in `plots`. Three points a curve are joined and have no band; the
dashed lines are log-linear fits.
"""

import numpy as np
from etils import epath
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines

from metastone_jax.evaluation import style
from metastone_jax.scaling import fits, published
from metastone_jax.scaling import plot_parts as parts
from metastone_jax.scaling.curve import envelope

_FIT = dict(color=style.GREY, lw=1.0, ls='--')
_STAIRS = dict(color='black', lw=0.9, ls=(0, (1, 1)))


def plot_published(path: epath.PathLike) -> epath.Path:
  """Two rows of panels, a benchmark each; writes one PNG.

  Above: accuracy against k, and the model that each was trained from at k = 1
  (hollow). Below: the same points against parameters x k with one line through
  the S1 models, and the envelope over all of them.

  Args:
    path: PNG to write.

  Returns:
    The path.
  """
  fig = mpl_figure.Figure(figsize=(12.4, 6.9), layout='constrained')
  above, below = fig.subplots(2, len(published.BENCHMARKS), sharey='col')
  by_label = [
    {curve.label: curve for curve in published.curves(sizes=sizes)}
    for sizes in (False, True)
  ]
  for i, benchmark in enumerate(published.BENCHMARKS):
    labels = [f'{model}, {benchmark}' for model in published.MODELS]
    against_k, sized = ([some[label] for label in labels] for some in by_label)
    _panel(above[i], against_k)
    for j, model in enumerate(published.MODELS):
      color, marker = parts.look(j)
      _line(above[i], against_k[j], dict(_FIT, color=color, alpha=0.8))
      base = published.base_of(model, benchmark)
      if base is not None:
        hollow = dict(color=color, marker=marker, mfc='white', ms=5, lw=0)
        above[i].plot(base.k, base.accuracy, **hollow)
    parts.k_axis(above[i], [1, *published.KS])
    above[i].set_title(benchmark, loc='left', fontsize=9.5)
    _panel(below[i], sized)
    pooled = published.pooled(benchmark)
    _line(below[i], pooled, dict(_FIT, zorder=1))
    best = envelope(sized)
    below[i].step(
      np.append(best.compute_m, max(c.compute_n[-1] for c in sized)),
      np.append(best.accuracy_m, best.accuracy_m[-1]),
      where='post',
      **_STAIRS,
    )
    below[i].set_xscale('log')
    below[i].set_xlabel('parameters x k (log scale)', fontsize=8.5)
    style.plain_axes(below[i])
  for axes in (above, below):
    axes[0].set_ylabel('accuracy (%)', fontsize=9)
  handles = [
    mpl_lines.Line2D(
      [], [], color=color, marker=marker, ms=4.5, lw=1.7, label=model
    )
    for model, (color, marker) in (
      (model, parts.look(j)) for j, model in enumerate(published.MODELS)
    )
  ]
  handles += [
    mpl_lines.Line2D(
      [], [], color=style.GREY, marker='o', mfc='white', lw=0, label='its base'
    ),
    mpl_lines.Line2D([], [], label='log-linear fit (below: S1 models)', **_FIT),
    mpl_lines.Line2D([], [], label='envelope over models', **_STAIRS),
  ]
  fig.suptitle(
    'Published pass@1 at low, medium and high effort',
    x=0.01,
    ha='left',
    fontsize=10.5,
  )
  parts.figure_legend(fig, handles)
  return style.write_png(fig, path)


def _panel(ax, curves) -> None:
  """The points of every model, joined."""
  for i, curve in enumerate(curves):
    color, marker = parts.look(i)
    ax.plot(
      curve.compute_n,
      curve.accuracy_n,
      color=color,
      marker=marker,
      ms=4.5,
      lw=1.7,
    )


def _line(ax, curve, look) -> None:
  """The log-linear fit over the curve's computes."""
  ends = curve.compute_n[[0, -1]]
  fit = fits.fit_log_linear(curve.compute_n, curve.accuracy_n)
  ax.plot(ends, fit.predict(ends), **look)
