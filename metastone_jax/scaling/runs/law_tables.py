"""Tables of the scaling-law page: Markdown text of what a sweep has drawn.

Contract: pure functions of the sample points that are there (`law_curves`);
accuracies in per cent, differences and slopes in percentage points, intervals
95 % over problems unless a column says else. A table of which nothing is there
is the empty text.
"""

from collections.abc import Sequence

import numpy as np

from metastone_jax.evaluation import intervals
from metastone_jax.scaling.page_text import aligned_table
from metastone_jax.scaling.runs import law_curves
from metastone_jax.scaling.runs.law_curves import Drawn, LawCurve
from metastone_jax.scaling.strategies import STRATEGIES


def seeds(lines: Sequence[tuple[str, Sequence[LawCurve]]]) -> str:
  """Gain per doubling of compute, of each seed by itself and of their mean.

  Args:
    lines: (label, curves whose points one line is fitted to).
  """
  rows, header = [], ['size', 'mean, interval over problems']
  for label, curves in lines:
    compute_n = np.concatenate([curve.compute_n for curve in curves])
    names = curves[0].seeds
    if any(curve.seeds != names for curve in curves) or len(compute_n) < 3:
      continue
    accuracy_Pn = 100 * np.concatenate([c.accuracy_Pn for c in curves], axis=1)
    over = law_curves.slope_over_problems(compute_n, accuracy_Pn)
    found = law_curves.slopes_of_seeds(curves)
    rows.append(
      [
        label,
        _number(over.mean, 2, over.low, over.high),
        ', '.join(
          f'{100 * slope:.2f} (seed {name})'
          for name, slope in zip(names, found, strict=True)
        ),
      ]
    )
  return aligned_table([*header, 'each seed'], rows) if rows else ''


def strategies(drawn: Sequence[Drawn]) -> str:
  """Accuracy of every strategy at the largest k, no budget or the largest."""
  budget, rows, most = law_curves.budgets(drawn)[-1], [], 0
  for width in law_curves.widths(drawn):
    label, cells = '', []
    for name in STRATEGIES:
      # The last milestone prunes least.
      first = law_curves.firsts(drawn)[-1:] if name == 'pruned' else [0]
      curve = None
      if first:
        curve = law_curves.curve(drawn, width, budget, name, first[0])
      cells.append('-' if curve is None else _at_last(curve))
      if curve is not None:
        label, most = curve.label, max(most, int(curve.k_n[-1]))
    if label:
      rows.append([label, *cells])
  if not rows:
    return ''
  return aligned_table([f'size, k = {most}', *STRATEGIES.values()], rows)


def budgets(drawn: Sequence[Drawn], strategy: str) -> str:
  """What a budget of thinking tokens costs and gains, of each size."""
  rows, shown = [], []
  for width in law_curves.widths(drawn):
    for budget in law_curves.budgets(drawn):
      curve = law_curves.curve(drawn, width, budget, strategy)
      if curve is None:
        continue
      shown = shown or _some(curve.k_n)
      rows.append(
        [
          f'{curve.parameters / 1e6:.2f} M',
          str(budget) if budget else 'none',
          f'{curve.thinking_n[0] / curve.k_n[0]:.1f}',
          *(_share(curve.at(k)) for k in shown),
        ]
      )
  if not rows:
    return ''
  header = ['size', 'budget, tokens', 'thinking tokens a sample']
  return aligned_table(header + [f'k = {k}' for k in shown], rows)


def frontier(drawn: Sequence[Drawn], strategy: str) -> str:
  """The best of all sizes, budgets and k for rising compute.

  Chosen on the same problems it is measured on, so a little too good.
  """
  found = []
  for width in law_curves.widths(drawn):
    for budget in law_curves.budgets(drawn):
      curve = law_curves.curve(drawn, width, budget, strategy)
      if curve is not None:
        found += [
          (curve.compute_n[i], -curve.accuracy_n[i], int(k), curve)
          for i, k in enumerate(curve.k_n)
        ]
  rows, best = [], -1.0
  for compute, loss, k, curve in sorted(found, key=lambda row: row[:3]):
    if -loss > best:
      best = -loss
      rows.append(
        [
          f'{compute:.3g}',
          f'{curve.parameters / 1e6:.2f} M',
          str(curve.budget) if curve.budget else 'none',
          str(k),
          _share(curve.at(k)),
        ]
      )
  if not rows:
    return ''
  header = ['compute', 'size', 'budget, tokens', 'k', 'accuracy, %']
  return aligned_table(header, rows)


def costs(drawn: Sequence[Drawn]) -> str:
  """What an answer at the largest k costs, by both measures of compute."""
  budget, rows = law_curves.budgets(drawn)[-1], []
  for width in law_curves.widths(drawn):
    scored = law_curves.curve(drawn, width, budget, 'best_of_k')
    plain = law_curves.curve(drawn, width, budget, 'oracle')
    if scored is None or plain is None:
      continue
    compute, flops = scored.compute_n[-1], scored.flops_n[-1]
    rows.append(
      [
        f'{scored.label}, k = {int(scored.k_n[-1])}',
        f'{scored.thinking_n[-1]:,.0f}',
        f'{compute:.3g}',
        f'{2 * compute:.3g}',
        f'{flops:.3g}',
        f'{100 * (flops - plain.flops_n[-1]) / flops:.2f}',
      ]
    )
  header = [
    'size',
    'thinking tokens',
    'parameters x these',
    '2 x that',
    'FLOPs as done',
    'of them scoring, %',
  ]
  return aligned_table(header, rows) if rows else ''


def pruning(drawn: Sequence[Drawn]) -> str:
  """Tokens that pruning draws and accuracy that it loses, at a few k."""
  budget, rows = law_curves.budgets(drawn)[-1], []
  for width in law_curves.widths(drawn):
    whole = law_curves.curve(drawn, width, budget, 'best_of_k')
    for first in law_curves.firsts(drawn):
      pruned = law_curves.curve(drawn, width, budget, 'pruned', first)
      if whole is None or pruned is None:
        continue
      for i, k in enumerate(whole.k_n.tolist()):
        if k == 1 or k not in _some(whole.k_n):
          continue
        lost = intervals.paired_interval(pruned.at(k), whole.at(k))
        rows.append(
          [
            f'{whole.parameters / 1e6:.2f} M',
            str(first),
            str(k),
            f'{100 * pruned.thinking_n[i] / whole.thinking_n[i]:.0f}',
            f'{100 * pruned.flops_n[i] / whole.flops_n[i]:.0f}',
            _share(whole.at(k)),
            _number(100 * lost.mean, 1, 100 * lost.low, 100 * lost.high),
          ]
        )
  if not rows:
    return ''
  header = [
    'size',
    'first look, tokens',
    'k',
    'thinking tokens drawn, %',
    'FLOPs, %',
    'best-of-k, %',
    'pruned minus that, points',
  ]
  return aligned_table(header, rows)


def _some(k_n) -> list[int]:
  """The first, the last and one k between them."""
  ks = [int(k) for k in k_n]
  return sorted({ks[0], ks[len(ks) // 2], ks[-1]})


def _at_last(curve: LawCurve) -> str:
  return _share(curve.accuracy_Pn[:, -1])


def _share(value_P) -> str:
  found = intervals.interval(value_P)
  return _number(100 * found.mean, 1, 100 * found.low, 100 * found.high)


def _number(mean: float, digits: int, low: float, high: float) -> str:
  """`12.3 (11.0 to 13.6)`; what is undefined is said."""
  if not np.isfinite(mean):
    return 'undefined'
  text = f'{mean:.{digits}f}'
  if np.isfinite(low) and np.isfinite(high):
    text += f' ({low:.{digits}f} to {high:.{digits}f})'
  return text
