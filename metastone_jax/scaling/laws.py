"""The laws: how accuracy may depend on compute C.

| law        | accuracy                                                  |
| ---------- | --------------------------------------------------------- |
| linear     | intercept + slope ln C                                    |
| saturating | top - span (C / C0)^-rate                                 |
| broken     | intercept + slope_before ln C up to C = bend, from there  |
|            | on with slope_after (the two lines meet at the bend)      |

C0 is the geometric mean of the fitted computes, so that `span` is what is
missing to the top in the middle of the data. The paper's own form is `linear`.

Contract: a law is LINEAR in all its parameters but one, its SHAPE (`rate`,
`bend`). With u = ln C - ln(lowest C) and the shape t, accuracy = basis(u, t) .
coefficients; `parameters` tells each parameter as a linear form of those
coefficients. So a fit is exact least squares for each t and a search over one
number (variable projection, Golub & Pereyra 1973; see `profile`).

Shapes: G values of t, n points, p coefficients.
"""

import dataclasses

import numpy as np

from metastone_jax.scaling import points

# rate x (ln C range) where the saturating law is a line to 1 part in 8,000.
_LEAST_RATE = 1e-3
# ... and where all but the lowest compute are within 1e-6 of the top.
_MOST_RATE = 14.0
_STEPS = 160
_EXPONENT = 300.0  # of what float64 can square


@dataclasses.dataclass(frozen=True)
class Frame:
  """Where the data lie: what a law needs to name its parameters.

  Attributes:
    lowest: ln of the lowest compute; u counts from here.
    centre: mean of ln C, the saturating law's ln C0.
  """

  lowest: float
  centre: float

  @classmethod
  def of(cls, x_n: np.ndarray) -> 'Frame':
    """Of logarithms of computes."""
    return cls(float(x_n.min()), float(x_n.mean()))


class Linear:
  """intercept + slope ln C; one (meaningless) shape."""

  name = 'linear'
  names = ('intercept', 'slope')
  shape = ''
  # Smallest numbers of different computes that determine it.
  computes = 2
  # Parameters that are unbounded where the shape's low end is not excluded.
  unbounded = ()

  def grid(self, u_n):
    """Values of the shape that a search looks at, ascending."""
    return np.zeros(1)

  def basis(self, u_n, t_G):
    """(G, n, p): what the coefficients multiply."""
    return np.broadcast_to(
      np.stack([np.ones_like(u_n), u_n], axis=-1), (len(t_G), len(u_n), 2)
    )

  def forms(self, frame, t_G):
    """Parameter -> (G, p): its linear form of the coefficients."""
    ones = np.ones_like(t_G)
    return {
      'intercept': np.stack([ones, -frame.lowest * ones], axis=-1),
      'slope': np.stack([0 * ones, ones], axis=-1),
    }

  def formula(self, params, frame) -> str:
    """The law with its numbers."""
    return f'{params["intercept"]:.4g} {_signed(params["slope"])} ln C'


class Saturating:
  """top - span (C / C0)^-rate; t = ln rate.

  The coefficients are the accuracy and the slope at the lowest compute, which
  stay well determined where the law is almost a line (top and span do not).
  """

  name = 'saturating'
  names = ('top', 'span', 'rate')
  shape = 'rate'
  computes = 3
  unbounded = ('top', 'span')

  def grid(self, u_n):
    """Values of the shape that a search looks at, ascending."""
    u_m = points.levels(u_n)
    return np.linspace(
      np.log(_LEAST_RATE / np.ptp(u_m)),
      np.log(_MOST_RATE / np.diff(u_m).min()),
      _STEPS,
    )

  def basis(self, u_n, t_G):
    """(G, n, p): what the coefficients multiply."""
    rate_G1 = np.exp(t_G)[:, None]
    growth_Gn = -np.expm1(np.minimum(-rate_G1 * u_n, _EXPONENT)) / rate_G1
    return np.stack([np.ones_like(growth_Gn), growth_Gn], axis=-1)

  def forms(self, frame, t_G):
    """Parameter -> (G, p): its linear form of the coefficients."""
    rate_G = np.exp(t_G)
    share_G = np.exp(-rate_G * (frame.centre - frame.lowest))
    return {
      'top': np.stack([np.ones_like(t_G), 1 / rate_G], axis=-1),
      'span': np.stack([np.zeros_like(t_G), share_G / rate_G], axis=-1),
    }

  def shape_value(self, frame, t):
    """The shape in the user's unit."""
    return np.exp(t)

  def formula(self, params, frame) -> str:
    """The law with its numbers."""
    return (
      f'{params["top"]:.4g} {_signed(-params["span"])} '
      f'(C / {np.exp(frame.centre):.4g})^-{params["rate"]:.4g}'
    )


class Broken:
  """Two lines of ln C that meet at `bend`; t = ln(bend) - ln(lowest C).

  At least two computes lie on each side of the bend (one of them may lie at
  it), else one side would be no line but a single point.
  """

  name = 'broken'
  names = ('intercept', 'slope_before', 'bend', 'slope_after')
  shape = 'bend'
  computes = 4
  unbounded = ()

  def grid(self, u_n):
    """Values of the shape that a search looks at, ascending."""
    u_m = points.levels(u_n)[1:-1]
    steps = max(4, _STEPS // (len(u_m) - 1))
    parts = [
      np.linspace(a, b, steps, endpoint=False)
      for a, b in zip(u_m[:-1], u_m[1:], strict=True)
    ]
    return np.concatenate([*parts, u_m[-1:]])

  def basis(self, u_n, t_G):
    """(G, n, p): what the coefficients multiply."""
    after_Gn = np.maximum(u_n - t_G[:, None], 0.0)
    line_Gn = np.broadcast_to(u_n, after_Gn.shape)
    return np.stack([np.ones_like(after_Gn), line_Gn, after_Gn], axis=-1)

  def forms(self, frame, t_G):
    """Parameter -> (G, p): its linear form of the coefficients."""
    zero, one = np.zeros_like(t_G), np.ones_like(t_G)
    return {
      'intercept': np.stack([one, -frame.lowest * one, zero], axis=-1),
      'slope_before': np.stack([zero, one, zero], axis=-1),
      'slope_after': np.stack([zero, one, one], axis=-1),
    }

  def shape_value(self, frame, t):
    """The shape in the user's unit."""
    return np.exp(frame.lowest + t)

  def formula(self, params, frame) -> str:
    """The law with its numbers."""
    return (
      f'{params["intercept"]:.4g} {_signed(params["slope_before"])} ln C up to '
      f'C = {params["bend"]:.4g}, then {params["slope_after"]:.4g} per unit of '
      'ln C'
    )


Law = Linear | Saturating | Broken
# Simplest first.
LAWS: dict[str, Law] = {
  law.name: law for law in (Linear(), Saturating(), Broken())
}


def _signed(x: float) -> str:
  return f'{"-" if x < 0 else "+"} {abs(x):.4g}'
