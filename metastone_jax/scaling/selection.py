"""Which law: the one that predicts points it has not seen.

Contract: two held-out errors a law (root mean squares, in the accuracy's unit):

- `leave_one_out`: each compute in turn is held out (with all its points, so
  that repeats of a seed do not tell) and predicted from the others.
- `forward`: the computes below predict the next, from as few as the hungriest
  law can be fitted to, up to the highest: what a law is for.

A law is held WORSE than the best when its squared error at a compute is, on
average over computes, larger by more than one standard error of that
difference. Chosen is the simplest law that is worse in neither error (in the
order of `laws.LAWS`); where every law is worse in one of them, leave-one-out
decides alone. A forward error of fewer than 3 computes decides nothing.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.scaling import fits, laws, points
from metastone_jax.scaling.profile import Profile

# Points below which none is held out.
FEWEST = 5
# Held-out computes below which an error decides nothing.
_TELLING = 3
_HUGE = 1e100  # of a squared error; its own square is still a number


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Errors of one law at computes it has not seen, in the accuracy's unit.

  Attributes:
    leave_one_out: root mean square over all computes.
    forward: over the predicted computes; NaN if there is none.
    forward_computes: how many those are.
  """

  leave_one_out: float
  forward: float
  forward_computes: int


@dataclasses.dataclass(frozen=True)
class Selection:
  """The laws compared.

  Attributes:
    errors: law -> HeldOut; empty where too few points allow no comparison.
    chosen: name of a law.
    why: one sentence or more: the comparison, and what was left out.
    fits: law -> its fit to all points; also of laws that could be fitted but
      not compared.
  """

  errors: dict[str, HeldOut]
  chosen: str
  why: str
  fits: dict[str, fits.LawFit]


def select(
  compute_n, accuracy_n, names: Iterable[str] | None = None
) -> Selection:
  """Compares laws by held-out error.

  Args:
    compute_n: compute of each point, above 0.
    accuracy_n: accuracy of each point.
    names: laws to compare; None: all.

  Returns:
    Selection. With fewer than 5 points, or where only one law can be held out,
    nothing is compared: `chosen` is the simplest law and `why` says so.

  Raises:
    UserError: unknown law, or points that allow none of them.
  """
  wanted = list(laws.LAWS) if names is None else list(names)
  for name in wanted:
    fits.law_named(name)
  order = [name for name in laws.LAWS if name in wanted]
  if not order:
    raise UserError(f'no law is named; the laws are {", ".join(laws.LAWS)}')
  x_n, y_n = points.checked(compute_n, accuracy_n)
  fitted, left_out = {}, []
  for name in order:
    try:
      fitted[name] = fits.fit_law(name, compute_n, accuracy_n)
    except UserError as error:
      left_out.append(str(error))
  if not fitted:
    raise UserError(left_out[0])
  simplest = next(iter(fitted))
  if len(x_n) < FEWEST:
    why = (
      f'{len(x_n)} points are too few to hold any out ({FEWEST} are needed): '
      f'the laws are not compared, the simplest ({simplest}) is taken'
    )
    return Selection(
      {}, simplest, '; left out: '.join([why, *left_out]), fitted
    )
  able = [name for name in fitted if _can_be_held_out(laws.LAWS[name], x_n)]
  for name in fitted:
    if name not in able:
      left_out.append(
        f'the {name} law has too many parameters to hold a point out'
      )
  if not able:
    why = f'no law can be fitted with a point held out; {simplest} is taken'
    return Selection({}, simplest, why, fitted)
  square_Lm = _squares(able, x_n, y_n, _all_but)
  start = max(_computes_needed(laws.LAWS[name], x_n) for name in able)
  forward_Lm = _squares(able, x_n, y_n, _below, start)
  number = forward_Lm.shape[1]
  errors = {
    name: HeldOut(
      math.sqrt(square_Lm[i].mean()),
      math.sqrt(forward_Lm[i].mean()) if number else math.nan,
      number,
    )
    for i, name in enumerate(able)
  }
  chosen, why = _choose(able, square_Lm, forward_Lm, points.rounding(y_n))
  why = '; left out: '.join([why, *left_out])
  return Selection(errors, chosen, why, fitted)


def _can_be_held_out(law: laws.Law, x_n: np.ndarray) -> bool:
  """Whether the law can be fitted without any one of the computes."""
  return all(_enough(law, x_n[_all_but(x_n, x)]) for x in points.levels(x_n))


def _enough(law: laws.Law, x_n: np.ndarray) -> bool:
  return len(x_n) > len(law.names) and points.distinct(x_n) >= law.computes


def _computes_needed(law: laws.Law, x_n: np.ndarray) -> int:
  """Of the lowest computes, how many the law can be fitted to."""
  x_m = points.levels(x_n)
  for m in range(1, len(x_m)):
    if _enough(law, x_n[_below(x_n, x_m[m])]):
      return m
  return len(x_m)


def _all_but(x_n, x):
  return np.abs(x_n - x) > 1e-9


def _below(x_n, x):
  return x_n < x - 1e-9


def _squares(names, x_n, y_n, kept, start: int = 0) -> np.ndarray:
  """(laws, computes): mean squared error at each held-out compute."""
  held = points.levels(x_n)[start:]
  square_Lm = np.empty((len(names), len(held)))
  for m, x in enumerate(held):
    keep_n = kept(x_n, x)
    out_n = ~_all_but(x_n, x)
    for i, name in enumerate(names):
      profile = Profile(laws.LAWS[name], x_n[keep_n])
      t, beta_p, _ = profile.best(y_n[keep_n])
      predicted = profile.curve(x_n[out_n], [t], beta_p[None])[0]
      square_Lm[i, m] = ((y_n[out_n] - predicted) ** 2).mean()
  return square_Lm


def _worse(square_Lm: np.ndarray, rounding: float) -> np.ndarray:
  """Which laws have a larger error than the best, by one standard error."""
  number = square_Lm.shape[1]
  square_Lm = np.minimum(square_Lm, _HUGE)
  best = square_Lm.mean(axis=1).argmin()
  more_Lm = square_Lm - square_Lm[best]
  error_L = more_Lm.std(axis=1, ddof=1) / math.sqrt(number)
  # A single wild error is worse by one standard error, exactly: it counts.
  return more_Lm.mean(axis=1) > (1 - 1e-6) * error_L + rounding


def _choose(names, square_Lm, forward_Lm, rounding) -> tuple[str, str]:
  """(law, why)."""
  worse_L = _worse(square_Lm, rounding)
  rms_L = np.sqrt(square_Lm.mean(axis=1))
  by_name = ', '.join(
    f'{name} {rms:.3g}' for name, rms in zip(names, rms_L, strict=True)
  )
  why = f'leave-one-out error: {by_name}'
  if forward_Lm.shape[1]:
    rms_L = np.sqrt(forward_Lm.mean(axis=1))
    by_name = ', '.join(
      f'{name} {rms:.3g}' for name, rms in zip(names, rms_L, strict=True)
    )
    why += f'; forward error ({forward_Lm.shape[1]} predicted): {by_name}'
  good_L = ~worse_L
  if forward_Lm.shape[1] >= _TELLING:
    both_L = good_L & ~_worse(forward_Lm, rounding)
    if both_L.any():
      good_L = both_L
    else:
      why += '; the two disagree, leave-one-out decides'
  chosen = names[int(good_L.argmax())]
  if len(names) == 1:
    return chosen, why + f'; {chosen} is the only law compared'
  why += f'; {chosen} is the simplest law within one standard error of the best'
  return chosen, why
