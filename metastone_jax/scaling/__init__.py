"""Scaling laws: compute accounting, fits, predictions, tables and plots."""
