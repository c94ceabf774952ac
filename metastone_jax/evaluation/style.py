"""How every picture looks: colours, phases, legends, axes, writing.

Contract: the colours are the colour-blind safe set of Okabe and Ito. Legends
sit below the axes and phases above the figure, where they cover no curve.
"""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib import lines as mpl_lines
from matplotlib import patches as mpl_patches
from matplotlib import textpath, ticker

from metastone_jax.evaluation.series import Run
from metastone_jax.telemetry.files import write_bytes_atomic

BLUE, VERMILION, GREEN = '#0072B2', '#D55E00', '#009E73'
ORANGE, GREY = '#E69F00', '#6E6E6E'
_PHASE_TINTS = ('#F3F0E6', '#E4EDF5', '#E9F3E4', '#F5E8EE')
_DPI = 160
_TITLE_POINTS = 10.5
# Left of the axes, for their label and numbers.
_AXIS_POINTS = 60.0
_NARROWEST = 20  # characters


def _tint(run: Run, name: str) -> str:
  names = list(dict.fromkeys(phase for phase, _, _ in run.phases))
  return _PHASE_TINTS[names.index(name) % len(_PHASE_TINTS)]


def shade(ax, run: Run) -> None:
  """Tints the background of each phase."""
  for index, (name, start, end) in enumerate(run.phases):
    ax.axvspan(start, end, color=_tint(run, name), lw=0, zorder=0)
    if index:
      ax.axvline(start, color='white', lw=1.5, zorder=1)


def phase_legend(fig, run: Run) -> None:
  """Names the tinted phases that some panel shows, above the figure."""
  limits = [ax.get_xlim() for ax in fig.get_axes()]
  names = list(
    dict.fromkeys(
      name
      for name, start, end in run.phases
      # Only phases that some panel shows.
      if name and any(start < high and end > low for low, high in limits)
    )
  )
  if not names:
    return
  handles: list = [
    mpl_patches.Patch(facecolor=_tint(run, name), edgecolor='#BBBBBB')
    for name in names
  ]
  handles.insert(0, mpl_lines.Line2D([], [], lw=0))
  fig.legend(
    handles,
    ['phase:', *names],
    loc='outside upper left',
    ncols=len(handles),
    frameon=False,
    fontsize=8.5,
    handlelength=1.4,
    columnspacing=1.2,
  )


def legend_below(
  ax, handles: Sequence = (), labels: Sequence = (), offset: float = -0.17
) -> None:
  """A legend under the axes, where it cannot cover a curve.

  Args:
    ax: the axes.
    handles: of the legend; default: those of the axes.
    labels: theirs.
    offset: of its top, in heights of the axes.
  """
  if not handles:
    handles, labels = ax.get_legend_handles_labels()
  if handles:
    ax.legend(
      handles,
      labels,
      loc='upper center',
      bbox_to_anchor=(0.5, offset),
      ncols=min(3, len(handles)),
      frameon=False,
      fontsize=8.5,
    )


def title(ax, text: str) -> None:
  """A left-aligned title, in as many lines as the figure's width takes."""
  room = 72.0 * ax.figure.get_figwidth() - _AXIS_POINTS
  columns = int(len(text) * min(1.0, room / _points(text)))
  while True:
    lines = textwrap.wrap(text, max(columns, _NARROWEST))
    if columns <= _NARROWEST or max(map(_points, lines)) <= room:
      break
    columns -= 1
  ax.set_title('\n'.join(lines), loc='left', fontsize=_TITLE_POINTS)


def _points(text: str) -> float:
  """How wide a title is."""
  path = textpath.TextPath((0, 0), text, size=_TITLE_POINTS, usetex=False)
  return path.get_extents().width


def note(ax, y: float, text: str) -> None:
  """A small text on a horizontal line, at its right end."""
  ax.text(
    0.99,
    y,
    text,
    transform=ax.get_yaxis_transform(),
    ha='right',
    va='bottom',
    fontsize=7.5,
  )


def step_axis(ax, run: Run, names: Sequence[str]) -> None:
  """Step axis over the phases in which these metrics exist.

  Several phases get widths by the cube root of their lengths, so that a long
  warm-up does not squeeze the short phases that matter.
  """
  seen = [x[[0, -1]] for name in names for x, _ in run.series(name)]
  first, last = np.min(seen), np.max(seen)
  start = max(s for _, s, _ in run.phases if s <= first)
  end = min(e for _, _, e in run.phases if e >= last)
  end = end if end > start else start + 1.0
  inner = [s for _, s, _ in run.phases if start < s < end]
  label = 'training step (updates)'
  if inner:
    edges = np.array([start, *inner, end])
    places = np.concatenate([[0.0], np.cumsum(np.cbrt(np.diff(edges)))])
    ax.set_xscale(
      'function',
      functions=(
        lambda x: np.interp(x, edges, places),
        lambda place: np.interp(place, places, edges),
      ),
    )
    # Where a phase starts, and inside wide ones.
    ticks = list(edges)
    for low, high, width in zip(
      edges, edges[1:], np.diff(places) / places[-1], strict=False
    ):
      if width > 0.4:
        ticks += list(low + (high - low) * np.array([0.25, 0.5, 0.75]))
    ax.xaxis.set_major_locator(ticker.FixedLocator(sorted(ticks)))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter('%d'))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    label += '; phases not to scale'
  else:
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  ax.set_xlim(start, end)
  ax.set_xlabel(label, fontsize=8.5)
  plain_axes(ax)


def plain_axes(ax) -> None:
  """No box, a light horizontal grid."""
  ax.spines[['top', 'right']].set_visible(False)
  ax.grid(axis='y', color='#D0D0D0', lw=0.5)
  ax.set_axisbelow(True)
  ax.tick_params(labelsize=8.5)


def write_png(fig, path: epath.PathLike) -> epath.Path:
  """Renders the figure and writes it whole; returns the path."""
  buffer = io.BytesIO()
  fig.savefig(buffer, format='png', dpi=_DPI, facecolor='white')
  return write_bytes_atomic(path, buffer.getvalue())
