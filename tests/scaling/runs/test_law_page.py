"""The page of a made-up sweep, its numbers by other ways."""

import re

import numpy as np
import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan
from metastone_jax.scaling.runs import law_page
from metastone_jax.scaling.strategies import STRATEGIES
from metastone_jax.telemetry import files
from tests.scaling.runs import made_law

OPTIONS = {'strategy': 'best_of_k', 'targets': (0.8,)}


def config(points):
  trained = [
    {
      'name': f'train-w{width}-s{seed}',
      'kind': 'train',
      'width': width,
      'seed': seed,
    }
    for seed in made_law.SEEDS
    for width in made_law.WIDTHS
  ]
  return {'points': (*trained, *points), 'options': OPTIONS}


def train_rows():
  return [
    {
      'point': f'train-w{width}-s{seed}',
      'kind': 'train',
      'width': width,
    }
    for seed in made_law.SEEDS
    for width in made_law.WIDTHS
  ]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """(text, paths) of the page of a whole sweep."""
  root = epath.Path(tmp_path_factory.mktemp('page'))
  rows = train_rows() + made_law.write(root)
  for row in train_rows():
    folder = plan.point_folder(root, row['point'])
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json_atomic(folder / 'train.json', {'seconds': 60.0})
  for name, seconds in (('train-w48-s0', 5.0), ('sample-w48-s0-b0', 90.0)):
    folder = plan.point_folder(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    time = {'seconds': seconds, 'host': 'here', 'device': 'cpu of a test'}
    files.write_json_atomic(folder / 'times.json', time)
  (root / 'docs').mkdir()
  (root / 'docs/law_notes.md').write_text('## What surprised\n\nNothing.\n')
  paths = law_page.write(
    config(made_law.points()),
    root,
    root / 'docs/law.md',
    rows,
    command='python -m launch.sweep',
  )
  return paths[-1].read_text(), paths


def cells(text, heading, label):
  """Of the row of a label below a heading."""
  part = text.split(f'# {heading}\n', 1)[1]
  line = next(x for x in part.splitlines() if x.startswith(f'| {label} '))
  return [cell.strip() for cell in line.strip('|').split('|')]


def mean_accuracy(width, budget, strategy):
  """Over seeds and problems, per cent, at all k."""
  found = []
  for seed in made_law.SEEDS:
    values = made_law.values(width, seed, budget)
    found.append(values.accuracy_PM[:, values.strategy_M == strategy])
  return 100 * np.mean(found, axis=(0, 1))


def test_pictures_are_there_and_linked(page):
  text, paths = page
  assert [path.name for path in paths] == [
    'law_compute.png',
    'law_k.png',
    'law_pruning.png',
    'scaling_published.png',
    'law.md',
  ]
  linked = re.findall(r'!\[[^]]*\]\(([^)]*)\)', text)
  assert sorted(linked) == sorted(path.name for path in paths[:-1])
  for path in paths[:-1]:
    assert path.read_bytes().startswith(b'\x89PNG')


def test_gains_are_those_of_a_line(page):
  text, _ = page
  compute, accuracy = [], []
  for width, parameters in made_law.WIDTHS.items():
    compute.append(parameters * 24 * np.array(made_law.KS))
    accuracy.append(mean_accuracy(width, 0, 'best_of_k'))
    slope = np.polyfit(np.log2(compute[-1]), accuracy[-1], 1)[0]
    label = f'{parameters / 1e6:.2f} M'
    assert f'- {label}: a doubling of compute gains {slope:.2f} points' in text
  x, y = np.log2(np.concatenate(compute)), np.concatenate(accuracy)
  slope = np.polyfit(x, y, 1)[0]
  r2 = np.corrcoef(x, y)[0, 1] ** 2
  assert f'- all sizes: a doubling of compute gains {slope:.2f} points' in text
  row = cells(text, 'Log-linear fit', 'all sizes')
  assert row[1] == '21' and row[6].startswith(f'{r2:.3f} (')
  assert 'believe the one over problems' in text


def test_seeds_are_shown_one_by_one(page):
  text, _ = page
  row = cells(text, 'Seeds', '0.45 M, seed 1')
  values = made_law.values(96, 1, 0)
  mine = 100 * values.accuracy_PM[:, values.strategy_M == 'best_of_k']
  assert row[1:] == [f'{x:.1f}' for x in mine.mean(axis=0)]


def test_strategies_budgets_and_pruning(page):
  text, _ = page
  row = cells(text, 'Strategies', '0.96 M')
  for cell, name in zip(
    row[1:],
    ('single', 'majority', 'weighted_vote', 'best_of_k', 'pruned', 'oracle'),
    strict=True,
  ):
    assert cell.startswith(f'{mean_accuracy(144, 0, name)[-1]:.1f} (')
  row = cells(text, 'Thinking budgets', '0.12 M')
  assert row[1:3] == ['16', '16.0']
  assert row[-1].startswith(f'{mean_accuracy(48, 16, "best_of_k")[-1]:.1f} (')
  row = cells(text, 'Tokens saved by pruning', '0.12 M')
  lost = mean_accuracy(48, 0, 'pruned') - mean_accuracy(48, 0, 'best_of_k')
  assert row[1:4] == ['10', '8', '60']
  assert row[-1].startswith(f'{lost[3]:.1f} (')


def test_the_frontier_rises_and_is_the_best(page):
  text, _ = page
  part = text.split('## Which size', 1)[1].split('A problem costs', 1)[0]
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in part.splitlines()
    if line.startswith('| ') and line[2].isdigit()
  ]
  compute = [float(row[0]) for row in rows]
  accuracy = [float(row[4].split()[0]) for row in rows]
  assert compute == sorted(compute) and accuracy == sorted(accuracy)
  every = [
    (parameters * (budget or 24) * k, mean)
    for width, parameters in made_law.WIDTHS.items()
    for budget in made_law.BUDGETS
    for k, mean in zip(
      made_law.KS, mean_accuracy(width, budget, 'best_of_k'), strict=True
    )
  ]
  for c, a in zip(compute, accuracy, strict=True):
    best = max(mean for other, mean in every if other <= c * 1.01)
    assert a == pytest.approx(best, abs=0.06)
  assert accuracy[-1] == pytest.approx(max(m for _, m in every), abs=0.06)


def test_how_it_was_made(page):
  text, _ = page
  assert '- command: `python -m launch.sweep`' in text
  assert 'points done on: cpu of a test' in text
  # A run that was resumed says itself how long it took: 6 x 60 seconds.
  assert '6 models trained in 6m00s, 1 sets of samples' in text
  assert 'evaluated in 1m30s' in text
  assert 'NOT DONE' not in text
  assert text.endswith('## What surprised\n\nNothing.\n')
  assert '## The published table' in text
  assert not re.search(r'\b(nan|inf)\b', text)


def test_a_model_without_its_own_time_is_no_set_of_samples(tmp_path):
  """Of a training that an interruption cut off before train.json, say."""
  folder = plan.point_folder(epath.Path(tmp_path), 'train-w48-s0')
  time = {'seconds': 5.0, 'host': 'here', 'device': 'cpu'}
  files.write_json_atomic(folder / 'times.json', time)
  path = tmp_path / 'law.md'
  law_page.write(config(made_law.points()), tmp_path, path, [], command='x')
  text = path.read_text()
  assert '1 models trained in 5s, 0 sets of samples' in text


@pytest.mark.parametrize(
  'options, message',
  [
    ({'strategy': 'best_of_n'}, "strategy='best_of_n': whose law it is; use"),
    ({'strategy': 'pruned'}, "strategy='pruned'"),
    ({'strategy': 'single'}, "strategy='single'"),
    ({'targets': (80,)}, r'targets=\(80,\): must be accuracies between'),
    ({'targets': 0.8}, r'targets=0\.8'),
    ({'targets': ('0.8',)}, 'targets='),
    ({'targets': (True,)}, 'targets='),
  ],
)
def test_bad_options_are_refused_before_work(options, message):
  good = config(made_law.points())
  law_page.check(good)
  with pytest.raises(UserError, match=message):
    law_page.check({**good, 'options': {**OPTIONS, **options}})
  for bad in ({}, {'options': None}, {'options': {}}):
    with pytest.raises(UserError, match='strategy=None'):
      law_page.check(bad)


def test_the_law_may_be_of_another_strategy(tmp_path):
  points = [p for p in made_law.points() if p['width'] == 48]
  rows = made_law.write(tmp_path, points)
  given = {**config(points), 'options': {'strategy': 'majority', 'targets': ()}}
  law_page.check(given)
  path = tmp_path / 'law.md'
  law_page.write(given, tmp_path, path, rows, command='x')
  assert f'## The law of {STRATEGIES["majority"]}' in path.read_text()


def test_what_is_not_done_is_named(tmp_path):
  points = made_law.points()
  # One size, one seed, both budgets: a law of a single size.
  done = [p for p in points if (p['width'], p['seed']) == (48, 0)]
  rows = made_law.write(tmp_path, done)
  *_, path = law_page.write(
    config(points), tmp_path, tmp_path / 'law.md', rows, command='x'
  )
  text = path.read_text()
  assert 'NOT DONE YET: 10 of 12 sets of samples: sample-w96-s0-b16' in text
  assert '- 0.12 M: a doubling' in text and '- all sizes: a' not in text


def test_a_sweep_that_has_only_trained_has_a_page(tmp_path):
  rows = train_rows()
  paths = law_page.write(
    config(made_law.points()),
    tmp_path,
    tmp_path / 'law.md',
    rows,
    command='x',
  )
  assert [path.name for path in paths] == ['scaling_published.png', 'law.md']
  assert 'NOT DONE YET: 12 of 12' in paths[-1].read_text()
