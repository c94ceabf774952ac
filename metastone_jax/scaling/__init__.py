"""Scaling laws: compute accounting, fits, predictions, tables and plots.

Contract of the fits: points (compute, accuracy) in, any units; numpy and scipy
in float64. `fit_log_linear` is the paper's law with exact t intervals,
`fit_law` any of `LAWS`, `select` compares them by held-out error,
`bootstrap_band` says how far other problems would move a curve, `compute_for`
turns a law round, and `bend_test` asks whether more compute gains less.
"""

from metastone_jax.scaling.bend import Bend, BendSigns, bend_signs, bend_test
from metastone_jax.scaling.bootstrap import bootstrap_band
from metastone_jax.scaling.fits import (
  LawFit,
  LogLinearFit,
  fit_law,
  fit_log_linear,
)
from metastone_jax.scaling.laws import LAWS
from metastone_jax.scaling.prediction import Prediction, compute_for
from metastone_jax.scaling.selection import HeldOut, Selection, select

__all__ = [
  'LAWS',
  'Bend',
  'BendSigns',
  'HeldOut',
  'LawFit',
  'LogLinearFit',
  'Prediction',
  'Selection',
  'bend_signs',
  'bend_test',
  'bootstrap_band',
  'compute_for',
  'fit_law',
  'fit_log_linear',
  'select',
]
