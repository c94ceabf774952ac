"""Held-out evaluation: unbiased estimators, intervals, plots and reports.

Contract: `EvaluationSamples` in, plain JSON numbers, PNGs and one report out.
Needs numpy and matplotlib only; nothing here draws a sample or runs a model.

    samples = EvaluationSamples(task, scores_PN, correct_PN, ...)
    samples.save('run/samples.npz')
    summary = summarise(samples, ks=(1, 2, 8, 32))
    print(terminal_summary(summary))
    write_report('run/report', title=..., summaries={'final': summary}, ...)
"""

from metastone_jax.evaluation.comparison import compare, sign_flip_test
from metastone_jax.evaluation.estimators import (
  best_of_k,
  majority_at_k,
  pass_at_k,
  weighted_vote_at_k,
)
from metastone_jax.evaluation.intervals import (
  Interval,
  interval,
  paired_interval,
)
from metastone_jax.evaluation.plots import (
  plot_accuracy_against_k,
  plot_learning_curves,
  plot_score_histogram,
  plot_score_separation,
)
from metastone_jax.evaluation.report import (
  headline,
  terminal_summary,
  write_report,
)
from metastone_jax.evaluation.result_file import (
  result_output,
  write_pass_rates,
  write_results,
)
from metastone_jax.evaluation.samples import EvaluationSamples
from metastone_jax.evaluation.summary import (
  DEFAULT_KS,
  summarise,
  summary_metrics,
)
from metastone_jax.evaluation.tables import summary_markdown

__all__ = [
  'DEFAULT_KS',
  'EvaluationSamples',
  'Interval',
  'best_of_k',
  'compare',
  'headline',
  'interval',
  'majority_at_k',
  'paired_interval',
  'pass_at_k',
  'plot_accuracy_against_k',
  'plot_learning_curves',
  'plot_score_histogram',
  'plot_score_separation',
  'result_output',
  'sign_flip_test',
  'summarise',
  'summary_markdown',
  'summary_metrics',
  'terminal_summary',
  'weighted_vote_at_k',
  'write_pass_rates',
  'write_report',
  'write_results',
]
