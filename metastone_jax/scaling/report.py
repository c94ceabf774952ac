"""What laws say of curves, as Markdown: fits, choice, bends, predictions.

Contract: `law_section` computes everything anew from the curves' points and
says what so many points cannot tell; a curve that cannot be fitted is named. Of
three points there is a straight line, its R^2 and t intervals (one degree of
freedom), and the direction of the bend; no other law and no held-out error.
Tables are aligned, so that the text reads without a renderer.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from metastone_jax.evaluation import intervals
from metastone_jax.scaling import bend, fits, prediction, selection
from metastone_jax.scaling.curve import Curve
from metastone_jax.scaling.page_text import (
  MOST_DIGITS,
  aligned_table,
  plain,
  with_interval,
  words,
)

PER_CENT = 'accuracy, %'
# Residuals of longer curves are summed up.
_MOST_RESIDUALS = 16
# Beyond so many times the data a prediction is no number to print.
_FAR = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
  """What is fitted to one curve.

  Attributes:
    curve: with 3 points or more.
    line: the log-linear fit.
    over_problems: its gain per doubling with the interval over problems; None
      where the curve has none.
    selection: the laws compared.
    bend: of the curve; None with fewer than 3 different computes.
  """

  curve: Curve
  line: fits.LogLinearFit
  over_problems: intervals.Interval | None
  selection: selection.Selection
  bend: bend.Bend | None

  @property
  def chosen(self) -> fits.LawFit:
    """The fit of the chosen law."""
    return self.selection.fits[self.selection.chosen]


def analyse(curve: Curve) -> Analysis:
  """Fits everything to one curve.

  Raises:
    UserError: fewer than 3 points, or all at one compute.
  """
  x_n, y_n = curve.compute_n, curve.accuracy_n
  line = fits.fit_log_linear(x_n, y_n)
  over = None
  if curve.accuracy_PM is not None:
    off_n = np.log(x_n) - np.log(x_n).mean()
    # The slope is a weighted sum of the points: it has a value a problem.
    weight_n = math.log(2) * off_n / (off_n @ off_n)
    over = intervals.interval(curve.accuracy_PM @ weight_n, intervals.VALUE)
  bent = None
  if len(np.unique(x_n)) >= 3:
    bent = bend.bend_test(x_n, curve.problems_or_means)
  return Analysis(curve, line, over, selection.select(x_n, y_n), bent)


def analyse_all(curves: Iterable[Curve]) -> list[Analysis]:
  """Of the curves that can be fitted."""
  return [analyse(curve) for curve in curves if curve.can_be_fitted]


def law_section(
  title: str,
  curves: Sequence[Curve],
  *,
  targets: Iterable[float] = (),
  analyses: Sequence[Analysis] | None = None,
  intro: str = '',
  compute_name: str = 'parameters x thinking tokens',
  accuracy_name: str = PER_CENT,
  heading: str = '##',
) -> str:
  """Everything the laws say of these curves.

  Args:
    title: of the section.
    curves: in the order they are shown.
    targets: accuracies whose compute is predicted, in the curves' unit.
    analyses: of the curves that can be fitted (`analyse_all`), where the caller
      wants them too; None: made here.
    intro: a paragraph of Markdown below the title.
    compute_name: what compute is.
    accuracy_name: what accuracy is, with its unit.
    heading: of the section; its parts are one level lower.

  Returns:
    Markdown, without a line break at its end.
  """
  found = analyse_all(curves) if analyses is None else analyses
  parts = [f'{heading} {title}'] + ([intro] if intro else [])
  parts.append(
    f'C is {compute_name}, ln the natural logarithm; {accuracy_name}. '
    'Intervals are 95 %.'
  )
  few = [curve.label for curve in curves if not curve.can_be_fitted]
  if few:
    parts.append(
      'Not fitted, for a line needs 3 points and 2 different computes: '
      f'{"; ".join(few)}.'
    )
  for name, text in (
    ('Log-linear fit', _lines(found)),
    ('Which law', _choice(found)),
    ('Where it bends', _bends(found)),
    ('Compute for a target', _predictions(found, list(targets))),
    ('Residuals of the chosen law', _residuals(found)),
  ):
    if text:
      parts += [f'{heading}# {name}', text]
  return '\n\n'.join(parts)


def _lines(found: Sequence[Analysis]) -> str:
  """accuracy = a + b ln C of every curve."""
  if not found:
    return ''
  problems = any(one.over_problems is not None for one in found)
  header = ['curve', 'points', 'a, at C = 1', 'b, per ln C']
  header += ['gain per doubling of C']
  header += ['the same, interval over problems'] * problems
  header += ['R^2', 'spread about it']
  rows = []
  for one in found:
    line = one.line
    row = [
      one.curve.label,
      str(line.n),
      with_interval(line.intercept, *line.intercept_interval),
      with_interval(line.slope, *line.slope_interval),
      with_interval(line.per_doubling, *line.per_doubling_interval),
    ]
    if problems:
      over = one.over_problems
      text = (
        '-' if over is None else with_interval(over.mean, over.low, over.high)
      )
      row.append(text)
    r2 = 'undefined'
    if not math.isnan(line.r2):
      low, high = line.r2_interval
      r2 = f'{line.r2:.3f} ({low:.3f} to {high:.3f})'
    rows.append([*row, r2, plain(line.sigma)])
  text = (
    "accuracy = a + b ln C by least squares, with Student's t intervals that "
    'take the points as independent.'
  )
  if problems:
    text += (
      ' Points that share problems are not: the interval over problems says '
      'how far other problems would move the gain.'
    )
  if any(one.line.n == 3 for one in found):
    text += (
      ' Three points leave one degree of freedom, so t is 12.7: such an '
      'interval is wide even where R^2 is near 1.'
    )
  return f'{text}\n\n{aligned_table(header, rows)}'


def _choice(found: Sequence[Analysis]) -> str:
  """Held-out errors of every law, the chosen one and its formula."""
  if not found:
    return ''
  parts = []
  names = list(
    dict.fromkeys(name for one in found for name in one.selection.errors)
  )
  if names:
    rows = []
    for one in found:
      errors = one.selection.errors
      if errors:
        cells = [
          f'{plain(errors[name].leave_one_out)} / {_forward(errors[name])}'
          if name in errors
          else '-'
          for name in names
        ]
        rows.append([one.curve.label, *cells, one.selection.chosen])
    parts.append(
      'Held-out error of each law, in the unit of the accuracy: each compute '
      'left out in turn / the higher computes predicted from the lower.'
    )
    parts.append(aligned_table(['curve', *names, 'chosen'], rows))
  # Curves of which the same is to be said share a line.
  reasons: dict[str, list[str]] = {}
  for one in found:
    reasons.setdefault(one.selection.why, []).append(one.curve.label)
  parts.append(
    '\n'.join(
      f'- {_named(labels, len(found))}: {words(why)}.'
      for why, labels in reasons.items()
    )
  )
  rows = []
  for one in found:
    fit = one.chosen
    values = '; '.join(
      f'{name} {_parameter(name, value, *fit.intervals[name])}'
      for name, value in fit.params.items()
    )
    rows.append(
      f'- {one.curve.label}: `{words(fit.describe())}` ({values}'
      + (f'; {words(fit.note)}' if fit.note else '')
      + ')'
    )
  if any(one.selection.errors for one in found):
    parts += ['The chosen laws, with the intervals of their parameters:']
    parts.append('\n'.join(rows))
  return '\n\n'.join(parts)


def _bends(found: Sequence[Analysis]) -> str:
  """Change of slope of every curve, and where a broken line would break."""
  rows, breaks = [], []
  tested = any(not math.isnan(one.bend.p) for one in found if one.bend)
  for one in found:
    if one.bend is None:
      continue
    bent = one.bend
    row = [
      one.curve.label,
      plain(bent.at),
      plain(bent.slope_before * math.log(2)),
      plain(bent.slope_after * math.log(2)),
    ]
    if tested:
      low, high = (x * math.log(2) for x in bent.interval)
      row.append(with_interval(bent.change * math.log(2), low, high))
      row.append(_p(bent.p))
    rows.append([*row, _direction(bent)])
    broken = one.selection.fits.get('broken')
    if broken is not None:
      low, high = broken.intervals['bend']
      limits = 'anywhere'
      if low > 0 or math.isfinite(high):
        limits = f'{plain(low)} to {plain(high)}'
      text = f'{one.curve.label} at C = {plain(broken.params["bend"])}'
      breaks.append(f'{text} ({limits})')
  if not rows:
    return ''
  header = ['curve', 'C in the middle', 'gain per doubling below', 'above']
  header += ['change', 'p'] * tested + ['reading']
  text = (
    'Two lines that meet at the median compute, a place chosen before looking, '
    'against one straight line.'
  )
  if not tested:
    text += ' With three points the direction is known, its noise is not.'
  parts = [text, aligned_table(header, rows)]
  if breaks:
    parts.append(
      f'Where a broken line fits best: {"; ".join(breaks)}. An interval from '
      '0, to infinity or over the data says that no place is singled out.'
    )
  return '\n\n'.join(parts)


def _predictions(found: Sequence[Analysis], targets: Sequence[float]) -> str:
  """Compute that the chosen law needs for each target."""
  if not targets or not found:
    return ''
  rows, notes = [], {}
  for one in found:
    cells = []
    for target in targets:
      predicted = prediction.compute_for(
        one.chosen, target, accuracy_PM=one.curve.accuracy_PM
      )
      cells.append(_compute(predicted, one.curve))
      for note in filter(None, predicted.note.split('; ')):
        if not note.startswith('extrapolated'):  # the asterisk says so
          label = f'{one.curve.label}, {target:g}'
          notes.setdefault(note, []).append(label)
    rows.append([f'{one.curve.label} ({one.chosen.name})', *cells])
  header = ['curve (law)', *(f'{target:g}' for target in targets)]
  parts = [
    'The least C at which the chosen law reaches an accuracy, and every C that '
    'its band does not exclude. A law that is wrong beyond the data is not in '
    'the interval.',
    aligned_table(header, rows),
  ]
  if any('*' in cell for row in rows for cell in row[1:]):
    parts.append('\\* outside of the computes that were measured.')
  if notes:
    parts.append(
      '\n'.join(
        f'- {"; ".join(at)}: {words(note)}.' for note, at in notes.items()
      )
    )
  return '\n\n'.join(parts)


def _residuals(found: Sequence[Analysis]) -> str:
  """Accuracy minus the chosen law."""
  rows = []
  for one in found:
    left_n = one.chosen.residual_n
    exact = np.abs(left_n).max() <= 1e-9 * np.abs(one.curve.accuracy_n).max()
    left_n = 0 * left_n if exact else left_n
    digits = 1 - math.floor(math.log10(np.abs(left_n).max() or 10.0))
    digits = min(max(digits, 0), MOST_DIGITS)
    largest = int(np.abs(left_n).argmax())
    shown = '-'
    if len(left_n) <= _MOST_RESIDUALS:
      shown = ' '.join(_signed(x, digits) for x in left_n)
    rows.append(
      [
        f'{one.curve.label} ({one.chosen.name})',
        plain(math.sqrt(float((left_n**2).mean()))),
        f'{_signed(left_n[largest], digits)} at '
        f'{plain(one.curve.compute_n[largest])}',
        shown,
      ]
    )
  if not rows:
    return ''
  header = ['curve (law)', 'root mean square', 'largest, at C', 'in order of C']
  return aligned_table(header, rows)


def _named(labels: Sequence[str], of: int) -> str:
  if len(labels) == of > 1:
    return f'all {of} curves'
  return '; '.join(labels)


def _forward(errors: selection.HeldOut) -> str:
  if not errors.forward_computes:
    return '-'
  return f'{plain(errors.forward)} ({errors.forward_computes} predicted)'


def _parameter(name: str, value: float, low: float, high: float) -> str:
  """A bend is a compute: its powers of ten tell more than its digits."""
  if name == 'bend':
    return f'{plain(value)} ({plain(low)} to {plain(high)})'
  return with_interval(value, low, high)


def _compute(found: prediction.Prediction, curve: Curve) -> str:
  if math.isinf(found.compute):
    return 'never' if math.isinf(found.low) else f'never ({_range(found)})'
  if found.compute == 0:
    return 'at any C'
  least, most = curve.compute_n[[0, -1]]
  if found.compute > _FAR * most:
    return f'over {_FAR:,.0f} x the data ({_range(found)})'
  outside = not least * (1 - 1e-9) <= found.compute <= most * (1 + 1e-9)
  return f'{plain(found.compute)}{"*" * outside} ({_range(found)})'


def _range(found: prediction.Prediction) -> str:
  if found.low == 0 and math.isinf(found.high):
    return 'nothing excluded'
  if found.high - found.low <= 1e-9 * found.compute < math.inf:
    return 'exact'
  return f'{plain(found.low)} to {plain(found.high)}'


def _signed(value: float, digits: int) -> str:
  return f'{round(value, digits) + 0.0:+.{digits}f}'


def _p(p: float) -> str:
  if math.isnan(p):
    return '-'
  return f'{p:.1e}' if 0 < p < 0.001 else f'{p:.3f}'


def _direction(bent: bend.Bend) -> str:
  if bent.direction == bend.STRAIGHT:
    return 'straight'
  text = f'bends {bent.direction}'
  if math.isnan(bent.p):
    return text
  return text + (', clear' if bent.clear else ', not clear')
