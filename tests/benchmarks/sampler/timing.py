"""Forms that take turns, and medians with an interval that assumes nothing."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

# A form does its work once and returns (seconds, tokens that it wrote).
Form = Callable[[], tuple[float, int]]


def timed(work: Callable[[], int]) -> Form:
  """A form of work in this process that returns its tokens."""

  def run() -> tuple[float, int]:
    started = time.perf_counter()
    tokens = work()
    return time.perf_counter() - started, tokens

  return run


@dataclasses.dataclass(frozen=True)
class Median:
  """A median and an interval of it.

  Attributes:
    value: the sample's.
    low: lower end.
    high: upper end.
    coverage: probability that such an interval holds the true median.
  """

  value: float
  low: float
  high: float
  coverage: float

  def __str__(self):
    return f'{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]'


def median(values: Sequence[float], least: float = 0.95) -> Median:
  """The narrowest pair of order statistics that covers `least`, or all.

  The true median lies between the (r + 1)-th least and (r + 1)-th largest of n
  values with probability 1 - 2 P(Binomial(n, 1/2) <= r), whatever they are
  distributed like. Fewer than 6 values cannot reach 95 %: then it is their
  range, and `coverage` says what that is worth.
  """
  values = sorted(values)
  n, rank, outside = len(values), 0, 2 * 0.5 ** len(values)
  while rank + 1 <= (n - 1) // 2:
    more = outside + 2 * math.comb(n, rank + 1) * 0.5**n
    if 1 - more < least:
      break
    rank, outside = rank + 1, more
  return Median(
    statistics.median(values),
    values[rank],
    values[n - 1 - rank],
    max(0.0, 1 - outside),
  )


def take_turns(
  forms: Mapping[str, Form], repeats: int
) -> dict[str, list[tuple[float, int]]]:
  """Every form `repeats` times; who begins a round moves on by one.

  Whatever compiles must have run before.
  """
  names, found = list(forms), {name: [] for name in forms}
  for turn in range(repeats):
    at = turn % len(names)
    for name in names[at:] + names[:at]:
      found[name].append(forms[name]())
  return found


def table(found: Mapping[str, list[tuple[float, int]]], ours: str) -> list[str]:
  """Lines: seconds, tokens/s, and what a token costs there over one of ours.

  Args:
    found: of `take_turns`.
    ours: the form that the others are divided by, round by round.
  """
  width = max(map(len, found))
  lines = []
  for name, runs in found.items():
    seconds = median([s for s, _ in runs])
    rate = median([n / s for s, n in runs])
    ratio = median(ratios(found, name, ours))
    over = '' if name == ours else f', {ratio} x {ours}'
    lines.append(
      f'  {name:{width}}  {seconds} s, {rate.value:.0f} tokens/s{over}'
    )
  coverage = median([s for s, _ in found[ours]]).coverage
  lines.append(
    f'  ({len(found[ours])} rounds; intervals hold the median with '
    f'{100 * coverage:.0f} %)'
  )
  return lines


def ratios(found, name: str, over: str) -> list[float]:
  """Seconds a token of one form over those of another, round by round."""
  return [
    (a / n) / (b / m)
    for (a, n), (b, m) in zip(found[name], found[over], strict=True)
  ]
