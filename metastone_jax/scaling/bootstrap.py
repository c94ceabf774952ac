"""Bands of a law by the bootstrap: over problems, or over residuals.

Contract: the computes stay as they are, the accuracies are drawn anew and the
law is fitted to each draw; the band is the range that holds `level` of the
curves at each compute by itself (percentiles).

- Over PROBLEMS (accuracies of P problems x M points are given): a resample
  takes P problems with replacement, the same ones at every point, so that what
  the points share moves them together. Says how far other problems of the same
  kind would move the curve. Takes about 30 problems or more.
- Over RESIDUALS (one accuracy a point): the law's residuals, centred and
  widened by sqrt(n / (n - parameters)), are dealt to the points anew. Says how
  far other points about the same law would. With few points it is narrower
  than the law's own `band`, which knows Student's t.

Seeded: equal seeds draw the same.
"""

import math

import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import intervals
from metastone_jax.scaling import fits, points
from metastone_jax.scaling.profile import Profile

RESAMPLES = 2000


def bootstrap_band(
  compute_n,
  accuracy,
  law: str,
  grid_compute,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
  level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile band of a fitted law.

  Args:
    compute_n: compute of each point, above 0.
    accuracy: accuracy of each point (n), resampled by residuals; or of each
      problem at each point (P, n), resampled by problems.
    law: its name, see `laws`.
    grid_compute: m computes at which the band is wanted.
    resamples: at least 1.
    seed: of the resampling.
    level: coverage, in (0, 1).

  Returns:
    (low_m, high_m).

  Raises:
    UserError: as `fits.fit_law`, or a single problem.
  """
  points.check_level(level)
  grid_m = points.log_compute(grid_compute)
  profile, t_R, beta_Rp = resampled_fits(
    compute_n, accuracy, law, resamples=resamples, seed=seed
  )
  curve_Rm = profile.curve(grid_m, t_R, beta_Rp)
  low_m, high_m = np.quantile(
    curve_Rm, [(1 - level) / 2, (1 + level) / 2], axis=0
  )
  return low_m, high_m


def resampled_fits(
  compute_n, accuracy, law: str, *, resamples: int, seed: int
) -> tuple[Profile, np.ndarray, np.ndarray]:
  """(profile, t_R, beta_Rp): the law fitted to every resample."""
  if resamples < 1:
    raise UserError(f'bootstrap: resamples={resamples}, needs >= 1')
  if np.ndim(accuracy) == 2:
    accuracy_PM = points.numbers('accuracy', accuracy, 2)
    P = len(accuracy_PM)
    if P < 2:
      raise UserError(
        f'bootstrap over problems needs 2 problems or more, there are {P}; '
        'give one accuracy a point instead'
      )
    form, x_n, _ = fits.prepared(
      law, compute_n, accuracy_PM.mean(axis=0), noise_known=True
    )
    profile = Profile(form, x_n)
    y_Rn = np.concatenate(
      [
        weight_RP @ accuracy_PM / P
        for weight_RP in intervals.problem_weights(P, resamples, seed)
      ]
    )
  else:
    fit = fits.fit_law(law, compute_n, accuracy)
    wider = math.sqrt(fit.n / (fit.n - len(fit.params)))
    left_n = (fit.residual_n - fit.residual_n.mean()) * wider
    rng = np.random.default_rng(seed)
    y_Rn = fit.predict(fit.compute_n) + rng.choice(left_n, (resamples, fit.n))
    profile = fit.profile
  return profile, *profile.best_many(y_Rn)
