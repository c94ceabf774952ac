"""Scaling laws: compute accounting, fits, predictions, tables and plots."""

from metastone_jax.scaling.fits import (
  LawFit,
  LogLinearFit,
  fit_law,
  fit_log_linear,
)
from metastone_jax.scaling.laws import LAWS

__all__ = [
  'LAWS',
  'LawFit',
  'LogLinearFit',
  'fit_law',
  'fit_log_linear',
]
