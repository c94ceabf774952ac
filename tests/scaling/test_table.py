"""The table of a sweep: marked once, in order, the same whoever worked."""

import json
import math
import threading

import pytest
from etils import epath
from pyarrow import parquet

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan as plan_lib
from metastone_jax.scaling import table
from tests.launch import object_store

ROWS = {
  'a': [{'k': 1, 'score': 0.5, 'name': 'x,"y"'}, {'k': 2, 'score': 1}],
  'b': [{'late': True, 'k': None, 'score': 0.1 + 0.2}],
  'c': [],
}


@pytest.fixture(params=['disk', 'bucket'])
def workdir(request, tmp_path, monkeypatch):
  if request.param == 'disk':
    yield epath.Path(tmp_path)
    return
  with object_store.fake_store(monkeypatch, tmp_path) as store:
    yield epath.Path('gs://bucket/sweep')
    assert not store.refused


def _plan(workdir, names='abc'):
  plan = plan_lib.Plan.of([dict(name=name, kind=f'k{name}') for name in names])
  plan_lib.keep(plan, workdir)
  return plan


def _finish(workdir, name, seconds=1.0):
  folder = plan_lib.point_folder(workdir, name)
  return table.finish_point(folder, ROWS[name], {'seconds': seconds})


def test_table(workdir):
  plan = _plan(workdir)
  for name in 'cba':
    assert not table.is_done(plan_lib.point_folder(workdir, name))
    assert _finish(workdir, name, seconds=ord(name))
    assert table.is_done(plan_lib.point_folder(workdir, name))
  paths = table.write(plan, workdir)
  assert [path.name for path in paths] == [
    'table.csv',
    'times.csv',
    'table.parquet',
  ]
  assert paths[0].read_text() == (
    'point,kind,k,score,name,late\n'
    'a,ka,1,0.5,"x,""y""",\n'
    'a,ka,2,1,,\n'
    'b,kb,,0.30000000000000004,,True\n'
  )
  assert paths[1].read_text() == 'point,seconds\na,97\nb,98\nc,99\n'
  found = parquet.read_table(paths[2].open('rb')).to_pydict()
  assert found == {
    'point': ['a', 'a', 'b'],
    'kind': ['ka', 'ka', 'kb'],
    'k': [1, 2, None],
    'score': [0.5, 1.0, 0.1 + 0.2],
    'name': ['x,"y"', None, None],
    'late': [None, None, True],
  }


def test_the_table_does_not_know_who_was_first(tmp_path):
  found = []
  for order, seconds in (('abc', 1.0), ('cab', 2.5)):
    workdir = epath.Path(tmp_path / order)
    plan = _plan(workdir)
    for name in order:
      _finish(workdir, name, seconds)
    paths = table.write(plan, workdir)
    found.append([path.read_bytes() for path in paths])
  assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
  assert found[0][1] != found[1][1]  # the times


def test_points_that_are_not_done_are_left_out(tmp_path):
  workdir = epath.Path(tmp_path)
  plan = _plan(workdir)
  assert table.rows_of(plan, workdir) == []
  table.write(plan, workdir)
  _finish(workdir, 'b')
  assert [row['point'] for row in table.rows_of(plan, workdir)] == ['b']


def test_a_point_is_done_once(workdir):
  _plan(workdir)
  assert _finish(workdir, 'a')
  folder = plan_lib.point_folder(workdir, 'a')
  assert not table.finish_point(folder, [{'k': 9}], {'seconds': 9.0})
  assert json.loads((folder / 'rows.json').read_text()) == ROWS['a']
  assert json.loads((folder / 'times.json').read_text()) == {'seconds': 1.0}


def test_of_many_at_once_one_marks_a_point(tmp_path, monkeypatch):
  """All have seen that it is not done, then all write."""
  many = 8
  barrier = threading.Barrier(many)
  monkeypatch.setattr(table, 'is_done', lambda folder: barrier.wait() < 0)
  folder = epath.Path(tmp_path)
  mine = []

  def finish(number):
    if table.finish_point(folder, [{'k': number}], {}):
      mine.append(number)

  threads = [threading.Thread(target=finish, args=(i,)) for i in range(many)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert json.loads((folder / 'rows.json').read_text()) == [{'k': mine[0]}]
  assert len(mine) == 1
  assert not list(tmp_path.glob('.*'))


def test_what_is_no_cell_is_refused(tmp_path):
  folder = epath.Path(tmp_path / 'p')
  with pytest.raises(UserError, match=r'point p: ks=\[1\] is a list'):
    table.finish_point(folder, [{'k': 1}, {'ks': [1]}], {})
  assert not folder.exists()


def test_numbers_that_are_not_finite_survive(tmp_path):
  workdir = epath.Path(tmp_path)
  plan = _plan(workdir, 'a')
  folder = plan_lib.point_folder(workdir, 'a')
  table.finish_point(folder, [{'x': math.inf}, {'x': math.nan}], {})
  path = table.write(plan, workdir)[0]
  assert path.read_text() == 'point,kind,x\na,ka,inf\na,ka,nan\n'
