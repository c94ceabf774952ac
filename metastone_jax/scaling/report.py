"""A law in words and tables: fits, their comparison, bend, predictions.

Contract: curves (`curve.Curve`, per cent) in, Markdown out; nothing is drawn.
A curve is told as much as its points support: two points get no fit, three a
line and the direction of the bend without a p-value. What cannot be computed
is said in words; no number is `nan` or `inf` on the page.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals
from metastone_jax.evaluation.tables import markdown_table, p_value
from metastone_jax.scaling import bend, fits, prediction, selection
from metastone_jax.scaling.curve import Curve

_WORDS = {math.inf: 'infinite', -math.inf: 'minus infinite'}
_RESIDUALS_SHOWN = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
  """What is found about one curve.

  Attributes:
    curve: its points.
    line: the log-linear fit.
    found: the laws compared.
    turn: whether it bends; None where its computes are two.
  """

  curve: Curve
  line: fits.LogLinearFit
  found: selection.Selection
  turn: bend.Bend | None

  @property
  def fit(self) -> fits.LawFit:
    """Of the chosen law."""
    return self.found.fits[self.found.chosen]


def tell(curve: Curve) -> Told:
  """Fits and tests one curve.

  Raises:
    UserError: fewer than 3 points, or all at one compute.
  """
  x_n, y_n = curve.compute_n, curve.accuracy_n
  try:
    line = fits.fit_log_linear(x_n, y_n)
    found = selection.select(x_n, y_n)
  except UserError as error:
    raise UserError(f'{curve.label}: {error}') from error
  try:
    turn = bend.bend_test(x_n, curve.problems_or_means)
  except UserError:  # two different computes do not bend
    turn = None
  return Told(curve, line, found, turn)


def law_section(
  title: str,
  curves: Sequence[Curve],
  *,
  targets: Sequence[float] = (),
  compute_unit: str = 'parameters x thinking tokens a problem',
  level: int = 2,
) -> str:
  """Everything about the laws of these curves.

  Args:
    title: heading.
    curves: with different labels.
    targets: accuracies, per cent, whose compute is predicted.
    compute_unit: what compute is, in words.
    level: of the heading.

  Returns:
    Markdown that ends with one newline.

  Raises:
    UserError: no curve can be fitted; the message is that of the first.
  """
  told, left_out = [], []
  for curve in curves:
    try:
      told.append(tell(curve))
    except UserError as error:
      left_out.append(str(error))
  if not told:
    raise UserError(left_out[0] if left_out else f'{title}: there is no curve')
  parts = [
    f'{"#" * level} {title}',
    f'C is the compute: {compute_unit}. Accuracy is in per cent, differences '
    'in points; intervals are 95 %. An interval of the fit takes the points as '
    'independent; one over problems keeps together what points share that come '
    'from the same problems.',
  ]
  if left_out:
    parts.append('Not fitted: ' + '; '.join(left_out) + '.')
  bends = [one for one in told if one.turn is not None]
  parts += _captioned(
    ('accuracy = a + b ln C', lines(told)),
    ('Laws and their errors at points they have not seen', laws(told)),
  )
  parts.append('\n'.join(f'- {one.curve.label}: {_why(one)}' for one in told))
  parts += _captioned(
    ('Does it bend? Two lines that meet at the middle compute', _bends(bends)),
    (
      'Residuals of the chosen law, from the lowest compute on, points',
      residuals(told),
    ),
    (
      'Compute for a target accuracy, by the chosen law',
      _targets(told, targets),
    ),
  )
  return '\n\n'.join(parts) + '\n'


def lines(told: Sequence[Told]) -> str:
  """Table of the log-linear fits."""
  over = any(_over_problems(one) for one in told)
  header = [
    'curve',
    'points',
    'C from',
    'to',
    'a',
    'points per doubling of C (b ln 2)',
    *['the same, over problems'] * over,
    'R^2',
  ]
  rows = []
  for one in told:
    line, c = one.line, one.curve.compute_n
    rows.append(
      [
        one.curve.label,
        str(line.n),
        number(c[0]),
        number(c[-1]),
        with_limits(line.intercept, line.intercept_interval, 1),
        with_limits(line.per_doubling, line.per_doubling_interval, 2),
        *[_over_problems(one) or '-'] * over,
        with_limits(line.r2, line.r2_interval, 3),
      ]
    )
  return markdown_table(header, rows)


def laws(told: Sequence[Told]) -> str:
  """Table of the laws: formula, parameters, errors; the chosen one marked."""
  rows = []
  for one in told:
    for name, fit in one.found.fits.items():
      error = one.found.errors.get(name)
      marked = ' (chosen)' if name == one.found.chosen else ''
      rows.append(
        [
          one.curve.label,
          name + marked,
          words(fit.describe().removeprefix('accuracy = ')),
          '; '.join(
            f'{key} {_limits(limits)}' for key, limits in fit.intervals.items()
          )
          + (f'; {words(fit.note)}' if fit.note else ''),
          number(math.sqrt(fit.sse / fit.n)),
          '-' if error is None else number(error.leave_one_out),
          '-' if error is None else number(error.forward),
        ]
      )
  header = [
    'curve',
    'law',
    'accuracy',
    '95 % intervals of its parameters',
    'error at the points it was fitted to',
    'leave-one-out error',
    'forward error',
  ]
  return markdown_table(header, rows)


def residuals(told: Sequence[Told]) -> str:
  """Table of residuals; of long curves the largest ones."""
  rows = []
  for one in told:
    left_n = one.fit.residual_n
    worst = int(np.abs(left_n).argmax())
    shown = ', '.join(_signed(x, 2) for x in left_n[:_RESIDUALS_SHOWN])
    if len(left_n) > _RESIDUALS_SHOWN:
      shown += ', ...'
    rows.append(
      [
        one.curve.label,
        one.found.chosen,
        f'{_signed(left_n[worst], 2)} at C = '
        f'{number(one.curve.compute_n[worst])}',
        shown,
      ]
    )
  return markdown_table(['curve', 'law', 'largest', 'residuals'], rows)


def number(value: float, digits: int = 3) -> str:
  """Significant digits; `undefined` and `infinite` as words."""
  value = float(value)
  if math.isnan(value):
    return 'undefined'
  if math.isinf(value):
    return _WORDS[value]
  return f'{value:.{digits}g}'


def with_limits(value: float, limits, digits: int) -> str:
  """`4.55 (3.10 to 6.00)` with this many decimals.

  Limits that are undefined are left out, and those of points that lie exactly
  on a line: nothing tells their noise.
  """
  text = _decimals(value, digits)
  if math.isnan(value) or any(map(math.isnan, limits)):
    return text
  if limits[0] == limits[1]:
    return f'{text} (exact)'
  low, high = (_decimals(x, digits) for x in limits)
  return f'{text} ({low} to {high})'


def words(text: str) -> str:
  """Text of numbers, with those that are none in words."""
  text = re.sub(r'-inf\b', 'minus infinite', text)
  text = re.sub(r'\+?\binf\b', 'infinite', text)
  return re.sub(r'\bnan\b', 'undefined', text)


def _captioned(*parts: tuple[str, str]) -> list[str]:
  return [text for caption, t in parts if t for text in (f'{caption}:', t)]


def _decimals(value: float, digits: int) -> str:
  if not math.isfinite(value):
    return number(value)
  # No minus before a rounded 0; no row of digits before a wild bound.
  if abs(value) >= 1e6:
    return f'{value:.3g}'
  text = f'{value:.{digits}f}'
  return text.lstrip('-') if float(text) == 0 else text


def _signed(value: float, digits: int) -> str:
  text = _decimals(value, digits)
  return text if text.startswith('-') else '+' + text


def _limits(limits) -> str:
  low, high = limits
  if math.isnan(low) or math.isnan(high):
    return 'undefined'
  return f'{number(low)} to {number(high)}'


def _over_problems(one: Told) -> str:
  """Points per doubling with the interval over problems; '' without them."""
  accuracy_PM = one.curve.accuracy_PM
  if accuracy_PM is None:
    return ''
  x_n = np.log2(one.curve.compute_n)
  off_n = x_n - x_n.mean()
  # The slope is a weighted sum of the points: a value for each problem.
  slope_P = accuracy_PM @ (off_n / (off_n @ off_n))
  found = intervals.interval(slope_P, intervals.VALUE)
  return with_limits(found.mean, (found.low, found.high), 2)


def _why(one: Told) -> str:
  text = f'**{one.found.chosen}**. {words(one.found.why)}.'
  broken = one.found.fits.get('broken')
  if broken is not None:
    limits = broken.intervals['bend']
    text += (
      f' The broken law bends at C = {number(broken.params["bend"])} '
      f'({_limits(limits)}).'
    )
  return text


def _bends(told: Sequence[Told]) -> str:
  rows = []
  for one in told:
    turn = one.turn
    doubling = math.log(2)
    if turn.direction == bend.STRAIGHT:
      verdict = 'straight'
    elif math.isnan(turn.p):
      verdict = f'{turn.direction}; nothing tells the noise'
    else:
      verdict = turn.direction if turn.clear else f'{turn.direction}, not shown'
    limits = [x * doubling for x in turn.interval]
    rows.append(
      [
        one.curve.label,
        number(turn.at),
        _decimals(turn.slope_before * doubling, 2),
        _decimals(turn.slope_after * doubling, 2),
        with_limits(turn.change * doubling, limits, 2),
        '-' if math.isnan(turn.p) else p_value(turn.p),
        verdict,
        turn.method or '-',
      ]
    )
  if not rows:
    return ''
  header = [
    'curve',
    'middle C',
    'points per doubling before',
    'after',
    'change',
    'p',
    'bends',
    'by',
  ]
  return markdown_table(header, rows)


def _targets(told: Sequence[Told], targets: Sequence[float]) -> str:
  rows = []
  for target in targets:
    for one in told:
      found = prediction.compute_for(
        one.fit, target, accuracy_PM=one.curve.accuracy_PM
      )
      rows.append(
        [
          f'{target:g}',
          one.curve.label,
          one.found.chosen,
          'never' if math.isinf(found.compute) else number(found.compute),
          _limits((found.low, found.high)),
          words(found.note) or '-',
        ]
      )
  if not rows:
    return ''
  return markdown_table(
    ['accuracy, %', 'curve', 'law', 'C', '95 %', 'note'], rows
  )
