"""What the pictures of laws share: colours, whiskers, panels, one legend."""

from collections.abc import Sequence

from matplotlib import figure as mpl_figure
from matplotlib import patches as mpl_patches
from matplotlib import ticker

from metastone_jax.evaluation import style
from metastone_jax.scaling.curve import Curve

COLORS = (
  *(style.BLUE, style.VERMILION, style.GREEN, style.ORANGE),
  *('#CC79A7', '#56B4E9', '#000000', '#A89A00'),
)
MARKERS = 'osD^vP*X'
COLUMNS = 4  # of panels
_LONGEST = 60  # characters of a label
_LEGEND_LINE = 0.18  # inches


def literal(text: str) -> str:
  """A text of the user's, in which matplotlib is to see no formula."""
  return text.replace('$', r'\$')


def label(text: str) -> str:
  """For legends: literal, not too long, never left out."""
  if len(text) > _LONGEST:
    text = text[: _LONGEST - 4] + ' ...'
  text = literal(text)
  # A legend leaves out what begins with this.
  return f' {text}' if text.startswith('_') else text


def look(index: int) -> tuple[str, str]:
  """(colour, marker) of a curve; 64 before one comes again."""
  turn = index // len(COLORS)
  return COLORS[index % len(COLORS)], MARKERS[(index + turn) % len(MARKERS)]


def whiskers(ax, curve: Curve, color: str) -> None:
  """Intervals of a curve's points, where it has them."""
  if curve.low_n is not None:
    ax.vlines(
      curve.compute_n, curve.low_n, curve.high_n, color=color, lw=1.1, zorder=3
    )


def log_axis(ax) -> None:
  """A log10 axis; within two decades ticks are numbers, not powers."""
  ax.set_xscale('log')
  low, high = ax.get_xlim()
  if high / low < 100:
    steps = (1, 2, 3, 4, 6, 8) if high / low < 10 else (1, 2, 5)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    ax.xaxis.set_minor_locator(ticker.NullLocator())


def k_axis(ax, ks: Sequence[float]) -> None:
  """A log2 axis with a tick at each k (every other one, where many)."""
  ks = sorted({int(k) for k in ks})
  shown = ks if len(ks) <= 7 else ks[(len(ks) - 1) % 2 :: 2]
  ax.set_xscale('log', base=2)
  ax.set_xticks(shown, [str(k) for k in shown])
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.set_xlabel('k, samples per problem (log scale)', fontsize=8.5)
  style.plain_axes(ax)


def figure_legend(fig, handles: Sequence) -> None:
  """One legend for all panels, below them."""
  longest = max(len(str(handle.get_label())) for handle in handles)
  room = 13 * fig.get_figwidth()  # characters, and 6 for each sample of a line
  columns = max(1, min(len(handles), int(room / (longest + 6))))
  # Many lines of a legend make the figure higher, not its panels lower.
  more = max(0, -(-len(handles) // columns) - 3)
  fig.set_figheight(fig.get_figheight() + _LEGEND_LINE * more)
  fig.legend(
    handles=handles,
    loc='outside lower center',
    ncols=columns,
    frameon=False,
    fontsize=8.5,
  )


def row_of_axes(count: int, *, sharey: bool):
  """(figure, axes): a row of panels, in several lines where there are many."""
  columns = min(count, COLUMNS)
  lines = -(-count // columns)
  width = {1: 6.8, 2: 9.6}.get(columns, 3.6 * columns + 0.6)
  fig = mpl_figure.Figure(
    figsize=(width, 3.4 * lines + 0.9), layout='constrained'
  )
  axes = list(fig.subplots(lines, columns, sharey=sharey, squeeze=False).flat)
  for ax in axes[count:]:
    ax.remove()
  return fig, axes[:count]


def interval_patch():
  """The legend of all bands that are intervals."""
  return mpl_patches.Patch(
    color=style.GREY, alpha=0.3, lw=0, label='band: 95 % interval'
  )
