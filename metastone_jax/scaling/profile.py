"""Least squares of a law for every value of its shape, and what follows.

Contract: `Profile` holds the orthogonalised basis on a grid of shapes, which
depends on the computes alone, so that many accuracies (resamples) are fitted
at once. `region` is the set of shapes, and of coefficients for each, that a
likelihood-ratio (F) test does not reject; the interval of a parameter, or of
the curve at a compute, is the range it takes in that set (Bates & Watts 1988,
chapter 6). For the linear law this is Student's t interval, exactly; for
`rate` and `bend` it follows their skewness, and is open where the data cannot
exclude more, which a standard error cannot say.

Shapes: G values of the shape, n points, p coefficients, R resamples.
"""

import dataclasses

import numpy as np
from scipy import optimize

from metastone_jax.scaling import laws, points

_FINE = 128


@dataclasses.dataclass(frozen=True)
class Region:
  """The fits that the data do not reject.

  Attributes:
    t_G: shapes, ascending.
    beta_Gp: the best coefficients for each.
    room_G: what the weighted sum of squares may still grow by.
    inverse_Gpp: R^-1 of the basis for each; a linear form c of the
      coefficients lies within sqrt(room) |c R^-1| of its best value.
    open_low: the lowest shape searched is not rejected.
    open_high: nor is the highest.
  """

  t_G: np.ndarray
  beta_Gp: np.ndarray
  room_G: np.ndarray
  inverse_Gpp: np.ndarray
  open_low: bool
  open_high: bool

  def ranges(self, form_Gp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of each G of a linear form of the coefficients."""
    best_G = np.einsum('g...p,gp->g...', form_Gp, self.beta_Gp)
    scale_G = np.linalg.norm(
      np.einsum('g...p,gpq->g...q', form_Gp, self.inverse_Gpp), axis=-1
    )
    room_G = self.room_G.reshape(-1, *[1] * (best_G.ndim - 1))
    half_G = np.sqrt(room_G) * scale_G
    return best_G - half_G, best_G + half_G

  def interval(self, form_Gp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) over all of the region."""
    low_G, high_G = self.ranges(form_Gp)
    return low_G.min(axis=0), high_G.max(axis=0)


class Profile:
  """A law at fixed computes, ready for any accuracies.

  Args:
    law: one of `laws.LAWS`.
    x_n: ln of the computes; at least `law.computes` different ones.
    sigma_n: standard errors of the accuracies; None weighs all alike.
  """

  def __init__(self, law: laws.Law, x_n, sigma_n=None):
    self.law, self.frame = law, laws.Frame.of(x_n)
    self.u_n = x_n - self.frame.lowest
    self.weight_n = np.ones_like(x_n) if sigma_n is None else 1 / sigma_n
    self.t_G = law.grid(self.u_n)
    self._q_Gnp, self._r_Gpp = self._factors(self.t_G)

  def _factors(self, t_G):
    basis_Gnp = self.law.basis(self.u_n, t_G)
    return np.linalg.qr(basis_Gnp * self.weight_n[:, None])

  def solve(self, t_G, y_n):
    """(beta_Gp, sse_G, r_Gpp): weighted least squares for each shape."""
    return self._solved(*self._factors(np.asarray(t_G)), y_n)

  def _solved(self, q_Gnp, r_Gpp, y_n):
    z_n = y_n * self.weight_n
    on_Gp = np.einsum('gnp,n->gp', q_Gnp, z_n)
    left_Gn = z_n - np.einsum('gnp,gp->gn', q_Gnp, on_Gp)
    beta_Gp = np.linalg.solve(r_Gpp, on_Gp[..., None])[..., 0]
    return beta_Gp, (left_Gn**2).sum(axis=-1), r_Gpp

  def best(self, y_n) -> tuple[float, np.ndarray, float]:
    """(t, beta_p, sse): the least-squares fit of the law."""
    _, sse_G, _ = self._solved(self._q_Gnp, self._r_Gpp, y_n)
    found = [(sse_G.min(), float(self.t_G[sse_G.argmin()]))]
    last = len(sse_G) - 1
    if last:
      # Every dip of the grid is searched: the broken law can have several.
      before_G = np.concatenate([[np.inf], sse_G[:-1]])
      after_G = np.concatenate([sse_G[1:], [np.inf]])
      dips = np.flatnonzero((sse_G <= before_G) & (sse_G <= after_G))
      for g in sorted(dips, key=lambda g: sse_G[g])[:4]:
        sides = self.t_G[max(g - 1, 0)], self.t_G[min(g + 1, last)]
        for low, high in ((sides[0], self.t_G[g]), (self.t_G[g], sides[1])):
          if low < high:
            result = optimize.minimize_scalar(
              self._sse_at,
              args=(y_n,),
              bounds=(low, high),
              method='bounded',
              options={'xatol': 1e-9 * (high - low)},
            )
            found.append((result.fun, float(result.x)))
    t = min(found)[1]
    beta_Gp, sse_G, _ = self.solve([t], y_n)
    return t, beta_Gp[0], float(sse_G[0])

  def _sse_at(self, t, y_n) -> float:
    return float(self.solve([t], y_n)[1][0])

  def best_many(self, y_Rn) -> tuple[np.ndarray, np.ndarray]:
    """(t_R, beta_Rp): fits of many accuracies, on the grid of shapes."""
    z_Rn = y_Rn * self.weight_n
    t_R = np.empty(len(z_Rn))
    beta_Rp = np.empty((len(z_Rn), self._q_Gnp.shape[-1]))
    rows = max(1, 4_000_000 // len(self.t_G))
    for start in range(0, len(z_Rn), rows):
      part = slice(start, start + rows)
      on_RGp = np.einsum('gnp,rn->rgp', self._q_Gnp, z_Rn[part], optimize=True)
      # |z|^2 is the same for all shapes: most explained is least left.
      best_R = (on_RGp**2).sum(axis=-1).argmax(axis=1)
      on_Rp = np.take_along_axis(on_RGp, best_R[:, None, None], axis=1)[:, 0]
      t_R[part] = self.t_G[best_R]
      beta_Rp[part] = np.linalg.solve(self._r_Gpp[best_R], on_Rp[..., None])[
        ..., 0
      ]
    return t_R, beta_Rp

  def curve(self, x, t_G, beta_Gp) -> np.ndarray:
    """(G, m): accuracy at m values of ln C, for G fits."""
    basis_Gmp = self.law.basis(x - self.frame.lowest, np.asarray(t_G))
    return np.einsum('gmp,gp->gm', basis_Gmp, beta_Gp)

  def region(self, y_n, t: float, sse: float, more: float) -> Region:
    """Shapes whose sum of squares is at most `sse + more`; `t` has `sse`."""
    limit = sse + more + points.rounding(y_n * self.weight_n)
    t_G = np.union1d(self.t_G, [t])
    inside = np.flatnonzero(self.solve(t_G, y_n)[1] <= limit)
    first, last = int(inside[0]), int(inside[-1])

    def beyond(s):
      return self._sse_at(s, y_n) - limit

    def edge(inner, outer):
      if beyond(t_G[inner]) >= 0:  # at the limit already, by rounding
        return t_G[inner]
      return optimize.brentq(beyond, t_G[inner], t_G[outer])

    open_low, open_high = first == 0, last == len(t_G) - 1
    low = t_G[0] if open_low else edge(first, first - 1)
    high = t_G[-1] if open_high else edge(last, last + 1)
    fine_G = np.concatenate(
      [np.linspace(low, t, _FINE), np.linspace(t, high, _FINE)[1:]]
    )
    fine_G = np.unique(
      np.concatenate([fine_G, t_G[(t_G > low) & (t_G < high)]])
    )
    beta_Gp, sse_G, r_Gpp = self.solve(fine_G, y_n)
    # The ends found by brentq may lie a rounding outside.
    keep = (sse_G <= limit) | (fine_G == low) | (fine_G == high)
    return Region(
      fine_G[keep],
      beta_Gp[keep],
      np.maximum(limit - sse_G[keep], 0.0),
      np.linalg.inv(r_Gpp[keep]),
      open_low,
      open_high,
    )
