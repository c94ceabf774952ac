"""launch.sweep as a command: table and page, going on, every refusal."""

import csv
import re

import pytest

from tests.launch import pods_fakes as fakes
from tests.scaling.runs import cheap

CONFIG = 'tests/launch/sweep_small.py'


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  launcher = fakes.Launcher('launch.sweep', tmp_path_factory.mktemp('sweep'))
  yield launcher
  launcher.close()


@pytest.fixture
def sweep(server, tmp_path):
  """sweep('ARG', '--flag', ...) -> (exit status, stdout, stderr)."""

  def run(arg='', *flags):
    config = f'--config={CONFIG}' + f':{arg}' * bool(arg)
    return server(
      config,
      f'--workdir={tmp_path / "work"}',
      f'--page={tmp_path / "page.md"}',
      *flags,
    )

  return run


def _rows(tmp_path):
  with open(tmp_path / 'work' / 'table.csv') as file:
    return list(csv.DictReader(file))


def _tries(tmp_path):
  points = tmp_path / 'work' / 'points'
  return {
    folder.name: cheap.tries(folder)
    for folder in points.iterdir()
    if (folder / 'tries').exists()
  }


def test_a_done_point_that_would_come_out_otherwise_is_refused(sweep, tmp_path):
  assert sweep()[0] == 0
  tries = _tries(tmp_path)
  (tmp_path / 'work' / 'points' / 'p0-1' / 'stale').write_text('')
  code, _, err = sweep()
  assert code == 2 and 'point p0-1: its recipe has changed' in err
  assert _tries(tmp_path) == tries
  # What is there can still be seen.
  assert sweep('', '--finish')[0] == 0


def test_a_sweep_to_its_page_and_again(sweep, tmp_path):
  code, out, err = sweep()
  assert code == 0, err
  rows = _rows(tmp_path)
  # p0-0 = 4, p0-1 = 6, p1-0 = 4 + 2 * 4, p1-1 = 6 + 6 + 4.
  assert [(row['point'], row['number']) for row in rows[::2]] == [
    ('p0-0', '4'),
    ('p0-1', '6'),
    ('p1-0', '12'),
    ('p1-1', '16'),
  ]
  assert len(rows) == 8
  page = (tmp_path / 'page.md').read_text()
  # The command of a reader: folders and what a launcher adds are not in it.
  assert (
    page == f'small_sweep: 8 rows\npython -m launch.sweep --config={CONFIG}\n'
  )
  for name in ('table.csv', 'table.parquet', 'times.csv'):
    assert f'written: {tmp_path / "work" / name}' in out
  table = (tmp_path / 'work' / 'table.csv').read_bytes()

  assert sweep()[0] == 0
  assert (tmp_path / 'work' / 'table.csv').read_bytes() == table
  assert set(_tries(tmp_path).values()) == {1}

  code, out, err = sweep('more')
  assert code == 0 and _tries(tmp_path)['more'] == 1, err
  assert len(_rows(tmp_path)) == 10

  before = sorted(p for p in tmp_path.rglob('*'))
  code, out, err = sweep('changed,more')
  assert code == 2
  (line,) = err.splitlines()
  assert line.startswith('error: point p1-1 of ') and 'pieces=6, now 7' in line
  assert sorted(p for p in tmp_path.rglob('*')) == before


def test_a_bad_point_is_named_and_the_others_are_done(sweep, tmp_path):
  code, out, err = sweep('bad')
  assert code == 2
  (line,) = err.splitlines()
  assert line.startswith(
    'error: 2 of 6 points were not done: bad: bad: no such'
  )
  assert 'after-bad: needs bad, which failed' in line
  assert len(_rows(tmp_path)) == 8
  assert (tmp_path / 'page.md').read_text().startswith('small_sweep: 8 rows')


def test_finish_writes_what_is_done(sweep, tmp_path):
  code, _, err = sweep('', '--finish')
  assert code == 2 and 'has no points of a sweep' in err
  assert sweep('bad')[0] == 2
  (tmp_path / 'work' / 'table.csv').unlink()
  (tmp_path / 'work' / 'points' / 'p1-1' / 'rows.json').unlink()
  code, out, err = sweep('bad', '--finish')
  assert code == 0, err
  assert len(_rows(tmp_path)) == 6
  assert _tries(tmp_path)['p1-1'] == 1
  page = (tmp_path / 'page.md').read_text()
  assert '6 rows' in page and '--finish' not in page


def test_dry_run_lists_the_points_and_writes_nothing(sweep, tmp_path):
  code, out, err = sweep('', '--dry_run')
  assert (code, err) == (0, '') and not list(tmp_path.glob('work*'))
  assert re.findall(r'^(\w+)  (\S+)', out, re.M) == [
    ('left', f'p{layer}-{i}') for layer in range(2) for i in range(2)
  ]
  assert 'p1-1  tests.scaling.runs.cheap:add  needs p0-1, p0-0' in out
  assert sweep()[0] == 0
  assert sweep('', '--dry_run')[1].startswith('done  p0-0')


@pytest.mark.crash
def test_a_worker_that_dies_is_replaced_by_the_others(sweep, tmp_path):
  """Two processes; the kernel ends one of them in the middle of a point."""
  code, out, err = sweep('dies', '--workers', '2')
  assert code == 0, err
  assert [row['point'] for row in _rows(tmp_path)][0] == 'dies'
  assert len(_rows(tmp_path)) == 9
  found = set(re.findall(r'^\[worker (\d)\] (\S+): done in', out, re.M))
  assert {name for _, name in found} == {'dies', 'p0-0', 'p0-1', 'p1-0', 'p1-1'}
  page = (tmp_path / 'page.md').read_text()
  assert page.endswith(f'--config={CONFIG}:dies --workers 2\n')


def test_a_page_that_cannot_be_written_says_so(sweep, tmp_path):
  """Its place went while the points were done."""
  assert sweep()[0] == 0
  (tmp_path / 'file').write_text('')
  code, _, err = sweep('', '--finish', f'--page={tmp_path}/file/page.md')
  (line,) = err.splitlines()
  assert code == 2 and f'{tmp_path}/file/page.md cannot be written' in line


@pytest.mark.parametrize(
  'flags, message',
  [
    ([], '--config is missing'),
    (['--config=configs/tiny.py'], 'kind is missing; a sweep has name'),
    (
      [f'--config={CONFIG}:odd'],
      "kind of a point: 'trian' is unknown; use one",
    ),
    ([f'--config={CONFIG}', '--workers=0'], '--workers'),
    ([f'--config={CONFIG}', '--executor=moon'], '--executor'),
    ([f'--config={CONFIG}', '--executor=gke', '--gke=moon'], '--gke=moon'),
    ([f'--config={CONFIG}', '--config.kind=low'], "kind of a sweep: 'low' is"),
    (['--config=configs/none.py'], 'No such file'),
    ([f'--config={CONFIG}', '--table=x.csv'], 'give one of them'),
    ([f'--config={CONFIG}:text'], "point 4 of the sweep: 'p4' must be a dict"),
    ([f'--config={CONFIG}:number'], 'point number of the sweep: kind=3 must'),
    (
      [f'--config={CONFIG}', '--config.options.a=-1'],
      '--config.options.a=-1: must be positive',
    ),
    (
      [f'--config={CONFIG}', f'--workdir={CONFIG}/work'],
      'sweep_small.py is no folder): no point was begun',
    ),
    ([f'--config={CONFIG}', '--workdir=/proc/none'], 'no point was begun'),
    (
      [f'--config={CONFIG}', f'--page={CONFIG}/page.md'],
      f'--page: {CONFIG} cannot be made',
    ),
    ([f'--config={CONFIG}', '--page=docs'], '--page=docs: is a folder'),
  ],
)
def test_refusals(server, tmp_path, flags, message):
  code, out, err = server(f'--workdir={tmp_path / "work"}', *flags)
  (line,) = err.splitlines()
  assert code == 2 and line.startswith('error: ') and message in line
  assert not (tmp_path / 'work').exists()
