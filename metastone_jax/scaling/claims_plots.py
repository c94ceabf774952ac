"""Pictures of the claims: verdicts, accuracy against k, aggregators.

Contract: as in `evaluation.plots`: plain data in, one PNG out, no global state.
Bands and whiskers are 95 % intervals over problems and seeds (`claims`).
"""

import textwrap
from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker

from metastone_jax.evaluation import style
from metastone_jax.scaling import claims, claims_list, judged
from metastone_jax.scaling.claims import Estimate, Finding
from metastone_jax.scaling.claims_list import Side

VERDICT_COLORS = {
  claims.SUPPORTED: style.BLUE,
  claims.NOT_SUPPORTED: style.VERMILION,
  claims.UNCLEAR: style.GREY,
}
_WHISKERS = dict(fmt='none', lw=1.5, capsize=2.5)
_LABEL_COLUMNS = 46
# Colour, line, marker of the curves against k, in their order.
_CURVES = (
  (style.BLUE, '-', 'o'),
  (style.GREEN, '-', 'D'),
  (style.VERMILION, '-', '^'),
  (style.ORANGE, '-', 's'),
  ('#56B4E9', '-', 'v'),
  ('#CC79A7', '-', 'P'),
  ('#000000', ':', 'x'),
)
_CEILING = (style.GREY, '--', None)


def plot_verdicts(
  findings: Sequence[Finding], path: epath.PathLike, *, title: str
) -> epath.Path | None:
  """Differences with their intervals, coloured by verdict, a line a claim.

  A tick marks the border of each claim: 0, or minus the loss that is tolerated;
  a hollow finding has a hollow point.

  Args:
    findings: of one set.
    path: PNG to write.
    title: of the picture.

  Returns:
    The path, or None where nothing is measured.
  """
  findings = [f for f in findings if f.verdict in VERDICT_COLORS]
  if not findings:
    return None
  fig = mpl_figure.Figure(
    figsize=(9.0, 1.6 + 0.42 * len(findings)), layout='constrained'
  )
  ax = fig.subplots()
  ax.axvline(0, color='black', lw=0.8, ls=':')
  labels = []
  for place, found in enumerate(findings):
    color, difference = VERDICT_COLORS[found.verdict], found.difference
    mean, half = 100 * difference.mean, 100 * difference.half()
    mark = 's' if found.claim.metric == claims_list.AUC else 'o'
    ax.errorbar(mean, place, xerr=half, color=color, **_WHISKERS)
    inside = 'white' if found.hollow else color
    ax.plot(mean, place, mark, color=color, mfc=inside, ms=5, zorder=3)
    border = 0.0
    if found.claim.kind == claims_list.NO_WORSE:
      border = -100 * found.claim.margin
    ax.plot([border, border], [place - 0.38, place + 0.38], 'k-', lw=1.4)
    text = textwrap.fill(found.claim.text, _LABEL_COLUMNS)
    if found.claim.metric == claims_list.AUC:
      text += ' (AUC)'
    if found.hollow:
      text += ' ‡'
    labels.append(text)
  ax.set_yticks(range(len(findings)), labels, fontsize=7.5)
  ax.set_ylim(len(findings) - 0.4, -0.6)
  # One outlier must not squeeze the rest.
  ax.set_xscale('symlog', linthresh=10.0)
  ax.xaxis.set_major_locator(
    ticker.FixedLocator([-80, -40, -20, -10, -5, -2, 0, 2, 5, 10, 20, 40, 80])
  )
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.xaxis.set_major_formatter(
    ticker.FuncFormatter(lambda x, _: f'{x:+g}' if x else '0')
  )
  ax.set_xlabel(
    'difference: percentage points, or AUC x 100 (squares); '
    f'{100 * claims.LEVEL:g} % interval; logarithmic beyond 10',
    fontsize=8.5,
  )
  style.plain_axes(ax)
  ax.tick_params(axis='y', labelsize=7.5)
  ax.grid(axis='x', color='#D0D0D0', lw=0.5)
  style.title(ax, title)
  handles = [
    mpl_lines.Line2D([], [], color=color, marker='o', lw=1.5, label=name)
    for name, color in VERDICT_COLORS.items()
  ]
  handles.append(
    mpl_lines.Line2D(
      [], [], color='black', marker='|', ms=9, lw=0, label="a claim's border"
    )
  )
  fig.legend(
    handles=handles,
    loc='outside lower center',
    ncols=4,
    frameon=False,
    fontsize=8.5,
  )
  return style.write_png(fig, path)


def plot_against_k(
  curves: Mapping[str, Mapping[int, Estimate]],
  path: epath.PathLike,
  *,
  title: str,
  ceiling: str = 'pass@k (ceiling)',
) -> epath.Path:
  """Accuracy against k of several ways to choose.

  Args:
    curves: legend -> k -> accuracy; `ceiling`, where there is one, is dashed.
    path: PNG to write.
    title: of the picture.
    ceiling: which curve nothing can pass.

  Returns:
    The path.
  """
  fig = mpl_figure.Figure(figsize=(7.4, 5.0), layout='constrained')
  ax = fig.subplots()
  looks = iter(_CURVES)
  for name, curve in curves.items():
    color, line, marker = _CEILING if name == ceiling else next(looks)
    ks = sorted(curve)
    mean, low, high = (
      [100 * getattr(curve[k], part) for k in ks]
      for part in ('mean', 'low', 'high')
    )
    ax.fill_between(ks, low, high, color=color, alpha=0.10, lw=0)
    ax.plot(
      ks, mean, line, color=color, marker=marker, ms=4.5, lw=1.8, label=name
    )
  every = sorted({k for curve in curves.values() for k in curve})
  ax.set_xscale('log', base=2)
  ax.set_xticks(every, [str(k) for k in every])
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.set_xlabel('samples a problem, k (log scale)')
  ax.set_ylabel('accuracy (%)')
  # Whole percent: a band of a set that solves nothing needs room too.
  low, high = ax.get_ylim()
  ax.set_ylim(max(low, -2), min(max(high, 5), 102))
  style.title(ax, title)
  style.plain_axes(ax)
  style.legend_below(ax)
  return style.write_png(fig, path)


def plot_aggregators(
  found: Mapping[str, Mapping[str, Estimate]],
  path: epath.PathLike,
  *,
  k: int,
  title: str,
) -> epath.Path:
  """Best-of-k by each aggregator of step scores, of several arms.

  Args:
    found: arm -> aggregator -> accuracy.
    path: PNG to write.
    k: of best-of-k.
    title: of the picture.

  Returns:
    The path.
  """
  fig = mpl_figure.Figure(figsize=(7.4, 4.0), layout='constrained')
  ax = fig.subplots()
  for number, (arm, of_aggregator) in enumerate(found.items()):
    color, _, marker = _CURVES[number % len(_CURVES)]
    shift = 0.12 * (number - (len(found) - 1) / 2)
    x = [judged.AGGREGATORS.index(a) + shift for a in of_aggregator]
    y = [100 * e.mean for e in of_aggregator.values()]
    half = [100 * e.half() for e in of_aggregator.values()]
    ax.plot(x, y, marker, color=color, ms=5, label=arm)
    ax.errorbar(x, y, yerr=half, color=color, **_WHISKERS)
  ax.set_xticks(range(len(judged.AGGREGATORS)), judged.AGGREGATORS)
  ax.set_ylabel(f'best-of-{k} accuracy (%)')
  style.title(ax, title)
  style.plain_axes(ax)
  style.legend_below(ax)
  return style.write_png(fig, path)


def curves_of(
  arms: claims.Arms, name: str, ks: Sequence[int]
) -> dict[str, dict[int, Estimate]]:
  """What `plot_against_k` shows of a set: arms that it has, votes, pass@k."""
  main = claims_list.MAIN[name]
  sides = {
    f'best-of-k, {main}': Side(main),
    'score-weighted vote': Side(main, 'vote'),
    'separate reward model': Side('prm'),
    'majority vote': Side(main, 'majority'),
    'score of the whole trace': Side('outcome'),
    'self-certainty': Side('self-certainty'),
    'mean log-probability': Side('log-prob'),
    'pass@k (ceiling)': Side(main, 'oracle'),
  }
  return {
    label: {k: claims.measure(arms, side, k) for k in ks}
    for label, side in sides.items()
    if claims.seeds_of(arms, side.arm)
  }


def aggregators_of(
  arms: claims.Arms, names: Sequence[str], k: int
) -> dict[str, dict[str, Estimate]]:
  """Best-of-k of these arms, where there are any, by each aggregator."""
  return {
    name: {
      aggregator: claims.measure(arms, Side(name, 'best', aggregator), k)
      for aggregator in judged.AGGREGATORS
    }
    for name in names
    if claims.seeds_of(arms, name)
  }
