"""The published table told as a law: Markdown and a picture.

Contract: all numbers are computed from `published.PUBLISHED`.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from etils import epath

from metastone_jax.evaluation.tables import markdown_table, p_value
from metastone_jax.scaling import bend, fits, plots, published, report
from metastone_jax.scaling.curve import Curve

# Models of one recipe; XBai-o4 has another base model.
_ONE_RECIPE = ('1.5B', '7B', '32B')


def plot_published(path: epath.PathLike) -> epath.Path:
  """Accuracy against k of every model, a panel a benchmark; one PNG."""
  panels = {
    benchmark: {curve.label: curve for curve in published.curves(benchmark)}
    for benchmark in published.BENCHMARKS
  }
  return plots.plot_accuracy_against_k(
    panels, path, title='Published: pass@1 against k = 2, 8, 32'
  )


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
  found = published.signs()
  parts = [
    f'{"#" * level} The published table',
    'Pass@1 in per cent at low, medium and high effort (the best of k = 2, 8, '
    '32 traces), and of the model each was trained from (base, one trace). '
    'Thinking tokens are not published, so compute is k, or parameters x k '
    '(sizes as the names say): what longer thinking adds is not in it. Numbers '
    'of problems are not published either: nothing but the scatter about a '
    'line tells the noise, and three points leave one degree of freedom.',
    '![Accuracy against k of the published models]'
    f'({epath.Path(picture).name})',
    _table(),
    f'Of {len(found.bends)} curves {found.down} bend down (the second two '
    f'doublings of k gain less than the first two), {found.straight} are '
    f'straight and {found.up} bend up: sign test over the '
    f'{found.down + found.up} that bend, p = {_p(found)}. The test takes '
    'curves as independent, and models on the same problems are less than '
    f'that. {_by_benchmark()} Numbers have one decimal: a change of slope '
    'below about 0.1 points per doubling may be rounding.',
    _sizes_apart('AIME24'),
    report.law_section(
      'Laws of parameters x k',
      [_pooled(benchmark) for benchmark in published.BENCHMARKS],
      targets=targets,
      compute_unit=f'parameters x k over the models {", ".join(_ONE_RECIPE)}',
      level=level + 1,
    ).rstrip(),
  ]
  return '\n\n'.join(parts) + '\n'


def one_decimal(value: float) -> str:
  """Half away from 0, as tables are rounded by hand: 4.55 -> 4.6."""
  return (
    f'{math.copysign(math.floor(abs(value) * 10 + 0.5 + 1e-6) / 10, value):.1f}'
  )


def _table() -> str:
  rows = []
  gains = published.points_per_doubling()
  for benchmark in published.BENCHMARKS:
    for curve in published.curves(benchmark):
      single = published.base(benchmark, curve.label)
      before, after = gains[benchmark, curve.label]
      line = fits.fit_log_linear(curve.compute_n, curve.accuracy_n)
      turn = bend.bend_test(curve.compute_n, curve.accuracy_n)
      rows.append(
        [
          f'{benchmark}, {curve.label}',
          '-' if single is None else f'{single.accuracy:.1f}',
          ' / '.join(f'{y:.1f}' for y in curve.accuracy_n),
          one_decimal(before),
          one_decimal(after),
          turn.direction,
          report.with_limits(line.per_doubling, line.per_doubling_interval, 2),
          report.with_limits(line.r2, line.r2_interval, 3),
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
  return markdown_table(header, rows)


def _p(found: bend.BendSigns) -> str:
  return 'undefined' if math.isnan(found.p) else p_value(found.p)


def _by_benchmark() -> str:
  parts = []
  for benchmark in published.BENCHMARKS:
    found = published.signs([benchmark])
    parts.append(f'{benchmark} {found.down}')
  sizes = len(published.SIZES)
  return f'Down, of {sizes} on each benchmark: {", ".join(parts)}.'


def _sizes_apart(benchmark: str) -> str:
  """How much k gains within a model, and compute over the models."""
  within = ', '.join(
    f'{fits.fit_log_linear(c.compute_n, c.accuracy_n).per_doubling:.1f} '
    f'({c.label})'
    for c in published.curves(benchmark)
    if c.label in _ONE_RECIPE
  )
  pooled = _pooled(benchmark)
  over = fits.fit_log_linear(pooled.compute_n, pooled.accuracy_n)
  return (
    f'On {benchmark} a doubling of k gains {within} points within a model; one '
    f'line through all sizes against parameters x k rises '
    f'{over.per_doubling:.1f} points per doubling, and its points lie up to '
    f'{np.abs(over.residual_n).max():.0f} points off it: the product of '
    'parameters and k is no common measure of these models.'
  )


def _pooled(benchmark: str) -> Curve:
  """One curve over the sizes of one recipe."""
  some = [
    curve
    for curve in published.curves(benchmark, against='parameters x k')
    if curve.label in _ONE_RECIPE
  ]
  parts = {
    field.name: np.concatenate([getattr(curve, field.name) for curve in some])
    for field in dataclasses.fields(Curve)
    if field.name in ('compute_n', 'accuracy_n', 'k_n')
  }
  return Curve(benchmark, **parts)
