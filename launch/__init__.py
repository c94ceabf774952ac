"""Entry points: one absl command a job."""
