"""Numbers and tables of a page of laws, as text.

Contract: no number of a page is `nan` or `inf`: what is none is said in words.
"""

import math
import re
from collections.abc import Sequence

MOST_DIGITS = 6


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table with columns of one width; the first left-aligned."""
  # A bar in a label of the user would be a column of its own.
  header, *rows = [[x.replace('|', '\\|') for x in r] for r in (header, *rows)]
  widths = [
    max(3, *map(len, column)) for column in zip(header, *rows, strict=True)
  ]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]

  def line(cells):
    first, *others = cells
    padded = [first.ljust(widths[0])]
    padded += [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
    return '| ' + ' | '.join(padded) + ' |'

  return '\n'.join(line(cells) for cells in (header, rule, *rows))


def with_interval(value: float, low: float, high: float) -> str:
  """`4.6 (3.9 to 5.2)`: as many digits as the interval knows, and one more.

  What is not bounded is said; without any interval three digits are given.
  """
  if not math.isfinite(value):
    return 'undefined'
  if math.isnan(low) or math.isnan(high):
    return plain(value)
  if math.isinf(low) and math.isinf(high):
    return f'{plain(value)} (not bounded)'
  if math.isinf(low) or math.isinf(high):
    return f'{plain(value)} ({plain(low)} to {plain(high)})'
  half = max(value - low, high - value)
  if half <= 1e-12 * abs(value):
    return f'{plain(value)} (exact)'
  digits = min(max(1 - math.floor(math.log10(half)), 0), MOST_DIGITS)
  # Adding 0 makes a rounded -0 a 0.
  texts = [f'{round(x, digits) + 0.0:.{digits}f}' for x in (value, low, high)]
  return '{} ({} to {})'.format(*texts)


def plain(value: float) -> str:
  """A number with three significant digits; what is no number in words."""
  if math.isnan(value):
    return 'undefined'
  if math.isinf(value):
    return 'infinite' if value > 0 else 'minus infinite'
  text = f'{value:.3g}'
  if 1e3 <= abs(float(text)) < 1e6:
    return f'{float(text):,.0f}'
  mantissa, e, power = text.partition('e')
  return f'{mantissa}e{int(power)}' if e else text


def words(text: str) -> str:
  """A sentence with numbers in it, of which `inf` and `nan` become words."""
  text = re.sub(r'(?<![\w.])-inf\b', 'minus infinite', text)
  text = re.sub(r'(?<![\w.])inf\b', 'infinite', text)
  return re.sub(r'(?<![\w.])nan\b', 'undefined', text)
