"""How often the intervals of fitted laws hold the truth, by simulation.

  python -m tests.evidence.law_coverage              # 4,000 runs a line
  python -m tests.evidence.law_coverage --sweeps=400   # a minute or two

A run draws accuracies (per cent) from a law with known parameters and normal
noise at computes 2 x apart (13 of them) or 4 x (7), fits the law and asks for
its 95 % intervals. Prints a Markdown table: how often (%) each parameter's
interval held the truth, the band at the middle of the data, and the band at
4 x the largest compute. With 4,000 runs a share is exact to 0.7 points.
"""

import concurrent.futures
import functools
import sys
import time

import numpy as np
from absl import app, flags

from metastone_jax.scaling import fits, laws

_RUNS = flags.DEFINE_integer('sweeps', 4000, 'Simulated sweeps a line.')
_SEED = flags.DEFINE_integer('noise_seed', 0, 'Of the noise.')
_WORKERS = flags.DEFINE_integer('processes', 2, 'That share them.')

# Lines: number of computes and noise (points of accuracy) for each law.
SPANNED = 4096  # largest compute over lowest
SIZES = (7, 13)
NOISES = {
  'linear': (0.5, 3.0),
  'saturating': (0.3, 1.0),
  'broken': (0.3, 1.0),
}
# From about 40 % to 70 %.
TRUTHS = {
  'linear': {'intercept': 40.0, 'slope': 3.6},
  'saturating': {'top': 70.0, 'span': 6.7, 'rate': 0.36},
  'broken': {
    'intercept': 40.0,
    'slope_before': 6.0,
    'bend': 4096**0.45,
    'slope_after': 1.5,
  },
}


def computes(n: int) -> np.ndarray:
  """Evenly spaced in ln C, from 1 to SPANNED."""
  return np.geomspace(1.0, SPANNED, n)


def accuracy(name: str, truth: dict, compute, centre: float) -> np.ndarray:
  """The laws once more, as written in the table of `laws`."""
  x = np.log(compute)
  if name == 'linear':
    return truth['intercept'] + truth['slope'] * x
  if name == 'saturating':
    return truth['top'] - truth['span'] * (compute / centre) ** -truth['rate']
  bend = np.log(truth['bend'])
  before = truth['intercept'] + truth['slope_before'] * np.minimum(x, bend)
  return before + truth['slope_after'] * np.maximum(x - bend, 0.0)


def held(name: str, n: int, noise: float, runs: int, seed: int) -> dict:
  """Shares of runs whose interval held the truth.

  Args:
    name: of the law.
    n: computes.
    noise: standard deviation of a point.
    runs: simulated sweeps.
    seed: of the noise.

  Returns:
    {parameter, or 'middle' / 'beyond' for the band: share}.
  """
  compute_n, truth = computes(n), TRUTHS[name]
  centre = float(np.exp(np.log(compute_n).mean()))
  asked = np.array([centre, 4 * SPANNED])
  curve_n = accuracy(name, truth, compute_n, centre)
  curve_at = accuracy(name, truth, asked, centre)
  rng = np.random.default_rng([seed, n, round(1000 * noise), *name.encode()])
  names = laws.LAWS[name].names
  inside = np.zeros(len(names) + 2)
  for noise_n in noise * rng.standard_normal((runs, n)):
    fit = fits.fit_law(name, compute_n, curve_n + noise_n)
    low, high = fit.band(asked)
    inside += [
      *(fit.intervals[p][0] <= truth[p] <= fit.intervals[p][1] for p in names),
      *((low <= curve_at) & (curve_at <= high)),
    ]
  return dict(zip((*names, 'middle', 'beyond'), inside / runs, strict=True))


def main(_) -> None:
  lines = [
    (name, n, noise)
    for name in laws.LAWS
    for n in SIZES
    for noise in NOISES[name]
  ]
  start = time.monotonic()
  print('| law | computes | noise | interval held the truth (%) |')
  print('| --- | --- | --- | --- |')
  run = functools.partial(_line, runs=_RUNS.value, seed=_SEED.value)
  with concurrent.futures.ProcessPoolExecutor(_WORKERS.value) as pool:
    for line in pool.map(run, lines):
      print(line, flush=True)
  print(f'{time.monotonic() - start:.0f} s', file=sys.stderr)


def _line(line, *, runs: int, seed: int) -> str:
  name, n, noise = line
  shares = held(name, n, noise, runs, seed)
  text = ', '.join(f'{key} {100 * share:.1f}' for key, share in shares.items())
  return f'| {name} | {n} | {noise:g} | {text} |'


if __name__ == '__main__':
  app.run(main)
