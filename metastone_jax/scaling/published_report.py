"""The published table told as a law: Markdown.

Contract: all numbers are computed from `published.PUBLISHED`.
"""

import math
from collections.abc import Sequence

import numpy as np
from etils import epath

from metastone_jax.evaluation.tables import p_value
from metastone_jax.scaling import fits, published, report
from metastone_jax.scaling.page_text import aligned_table


def published_section(
  picture: epath.PathLike, *, targets: Sequence[float] = (90.0,), level: int = 2
) -> str:
  """The published table, its points per doubling, bends and laws.

  Args:
    picture: of `plot_published`; linked by its name, beside the page.
    targets: accuracies, per cent, whose compute is predicted.
    level: of the heading.

  Returns:
    Markdown that ends with one newline.
  """
  parts = [
    f'{"#" * level} The published table',
    'Pass@1 in per cent at low, medium and high effort (k = 2, 8 and 32 '
    'traces, the best one answers), and of the model that each was trained '
    'from (base, one trace). Thinking tokens are not published, so compute is '
    'k, or parameters x k (sizes as the names say): what longer thinking adds '
    'is not in it. Intervals are not published either: three points leave one '
    'degree of freedom to tell the noise.',
    '![Accuracy against k of the published models]'
    f'({epath.Path(picture).name})',
    _table(),
    _bends(),
    _sizes_apart('AIME24'),
    report.law_section(
      'Laws of parameters x k',
      [published.pooled(benchmark) for benchmark in published.BENCHMARKS],
      targets=targets,
      compute_name='parameters x k, over the three S1 models',
      heading='#' * (level + 1),
    ),
  ]
  return '\n\n'.join(parts) + '\n'


def one_decimal(value: float) -> str:
  """Half away from 0, as tables are rounded by hand: 4.55 -> 4.6."""
  tenths = math.floor(abs(value) * 10 + 0.5 + 1e-6)
  return f'{math.copysign(tenths / 10, value):.1f}'


def _table() -> str:
  rows = []
  for gain, curve, turn in zip(
    published.points_per_doubling(),
    published.curves(),
    published.bends().bends,
    strict=True,
  ):
    base = published.base_of(gain.model, gain.benchmark)
    line = fits.fit_log_linear(curve.compute_n, curve.accuracy_n)
    direction = turn.direction
    if not gain.beyond_rounding and gain.change:
      direction += ' (rounding?)'
    rows.append(
      [
        f'{gain.benchmark}, {gain.model}',
        '-' if base is None else f'{base.accuracy:.1f}',
        ' / '.join(f'{y:.1f}' for y in curve.accuracy_n),
        one_decimal(gain.low_to_medium),
        one_decimal(gain.medium_to_high),
        direction,
        _fitted(line.per_doubling, line.per_doubling_interval),
        f'{line.r2:.3f}',
      ]
    )
  header = [
    'benchmark, model',
    'base',
    'low / medium / high',
    'points per doubling of k, 2 to 8',
    '8 to 32',
    'bends',
    'log-linear fit, points per doubling (t interval)',
    'R^2',
  ]
  return aligned_table(header, rows)


def _fitted(value: float, limits) -> str:
  """A slope with its interval; three points on a line do not tell any noise."""
  low, high = limits
  if low == high:
    return f'{value:.2f} (exact)'
  return f'{value:.2f} ({low:.2f} to {high:.2f})'


def _bends() -> str:
  found = published.bends()
  gains = published.points_per_doubling()
  sure = [gain for gain in gains if gain.beyond_rounding]
  down = {b: 0 for b in published.BENCHMARKS}
  for gain, turn in zip(gains, found.bends, strict=True):
    down[gain.benchmark] += turn.direction == 'down'
  by_benchmark = ', '.join(f'{b} {number}' for b, number in down.items())
  p = 'undefined'
  if not math.isnan(found.p):
    # A fair coin is symmetric: half of the two-sided p is the one-sided.
    p = f'{p_value(found.p)} (two-sided; {p_value(found.p / 2)} one-sided)'
  return (
    f'Of {len(gains)} curves {found.down} bend down (the second two doublings '
    f'of k gain less than the first two), {found.straight} are straight and '
    f'{found.up} bend up: sign test over the {found.down + found.up} that '
    f'bend, p = {p}. Down, of {len(published.MODELS)} on each benchmark: '
    f'{by_benchmark}. The numbers have one decimal; {len(sure)} curves change '
    'by more than rounding can, of which '
    f'{sum(gain.change < 0 for gain in sure)} bend down. The test takes curves '
    'as independent, which models on the same problems are not quite.'
  )


def _sizes_apart(benchmark: str) -> str:
  """How much k gains within a model, and compute over the models."""
  within = ', '.join(
    f'{fits.fit_log_linear(c.compute_n, c.accuracy_n).per_doubling:.1f} '
    f'({c.label.partition(",")[0]})'
    for c in published.curves()
    if c.label.endswith(f', {benchmark}')
  )
  pooled = published.pooled(benchmark)
  over = fits.fit_log_linear(pooled.compute_n, pooled.accuracy_n)
  return (
    f'On {benchmark} a doubling of k gains {within} points; one line through '
    f'the S1 models against parameters x k rises {over.per_doubling:.1f} '
    f'points per doubling, and points lie up to '
    f'{np.abs(over.residual_n).max():.0f} off it: parameters x k is no common '
    'measure of these models.'
  )
