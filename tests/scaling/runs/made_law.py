"""A made-up sweep: what its sample points leave, without a model."""

import itertools

import numpy as np
from etils import epath

from metastone_jax.scaling.runs.law import LawValues
from metastone_jax.scaling.strategies import STRATEGIES

KS = (1, 2, 4, 8, 16, 32, 64)
FIRST = 10
WIDTHS = {48: 117_456, 96: 450_000, 144: 960_624}
BUDGETS = (16, 0)
SEEDS = (0, 1)


def values(width, seed, budget, problems=60):
  """LawValues whose accuracy rises in ln k and flattens at the end."""
  rng = np.random.default_rng([width, seed, budget])
  hard_P = np.random.default_rng(7).random(problems)  # of all models
  columns = []
  for k in KS:
    for name in STRATEGIES:
      if name == 'single' and k > 1:
        continue
      gain = {'oracle': 1.3, 'best_of_k': 1.0, 'pruned': 0.9}.get(name, 0.6)
      level = -1.5 + 0.01 * width + gain * np.log(k) / (1 + 0.05 * np.log(k))
      level += 0.2 * (budget == 0) + 0.02 * seed
      logit_P = level + 3 * (0.5 - hard_P) + 0.1 * rng.standard_normal(problems)
      share = 0.6 if name == 'pruned' and k > 1 else 1.0
      columns.append(
        (
          name,
          k,
          FIRST if name == 'pruned' else 0,
          1 / (1 + np.exp(-logit_P)),
          np.full(problems, share * k * (budget or 24)),
          np.full(problems, share * 2e6 * k),
        )
      )
  names, ks, firsts, *parts = zip(*columns, strict=True)
  return LawValues(
    np.array(names),
    np.array(ks),
    np.array(firsts),
    *(np.stack(part, axis=1) for part in parts),
    np.array([f'signs/{p}' for p in range(problems)]),
  )


def points():
  """Of the config: sample points alone."""
  return [
    {
      'name': f'sample-w{width}-s{seed}-b{budget}',
      'kind': 'sample',
      'width': width,
      'seed': seed,
      'budget': budget,
    }
    for seed, width, budget in itertools.product(SEEDS, WIDTHS, BUDGETS)
  ]


def write(workdir, some=None):
  """Leaves what these points leave; rows of the table."""
  rows = []
  for point in points() if some is None else some:
    made = values(point['width'], point['seed'], point['budget'])
    folder = epath.Path(workdir) / 'points' / point['name']
    folder.mkdir(parents=True)
    made.save(folder / 'values.npz')
    fixed = {k: v for k, v in point.items() if k not in ('name', 'kind')}
    parameters = WIDTHS[point['width']]
    rows += [
      {
        'point': point['name'],
        **fixed,
        'parameters': parameters,
        **row,
        'samples': 128,
      }
      for row in made.rows(parameters)
    ]
  return rows
