"""A worker: order, failures, tries again, stops, points that it loses."""

import json
import threading

import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import leases as leases_lib
from metastone_jax.scaling import plan as plan_lib
from metastone_jax.scaling import table
from metastone_jax.scaling.runs import runners
from metastone_jax.scaling.runs import worker as worker_lib
from metastone_jax.training import loop
from tests.launch import object_store
from tests.scaling.runs import cheap

HERE = 'tests.scaling.runs.cheap'


@pytest.fixture
def kinds(monkeypatch):
  """Sets kind -> function of the point; points call what is set."""
  functions = {}
  for name in ('one', 'two'):
    monkeypatch.setitem(
      runners.RUNNERS, name, f'tests.scaling.runs.cheap:_{name}'
    )
    monkeypatch.setattr(
      cheap,
      f'_{name}',
      lambda point, job, name=name: functions[name](point, job),
      raising=False,
    )
  return functions


def _sweep(tmp_path, *points, **options):
  workdir = epath.Path(tmp_path)
  plan = plan_lib.Plan.of(points)
  plan_lib.keep(plan, workdir)
  return worker_lib.Worker(plan, workdir, pause=0.02, **options)


def _folder(worker, name):
  return plan_lib.point_folder(worker.workdir, name)


def _claims(worker, name):
  return leases_lib.files.children(_folder(worker, name) / 'claims')


def _point(name, kind='one', needs=(), **more):
  return dict(name=name, kind=kind, needs=needs, **more)


@pytest.mark.parametrize('where', ['disk', 'bucket'])
def test_points_are_done_in_order(where, tmp_path, monkeypatch, capsys):
  points = [
    _point('b', f'{HERE}:add', ('a',), pieces=3),
    _point('a', f'{HERE}:add', pieces=2),
  ]

  def check(root):
    worker = _sweep(root, *points, label='[w] ')
    assert worker.run() == {}
    rows = table.rows_of(worker.plan, worker.workdir)
    assert [(row['point'], row['number']) for row in rows] == [
      *[('a', 2)] * 2,
      *[('b', 5)] * 2,
    ]
    (times, _) = table.times_of(worker.plan, worker.workdir)
    assert times['point'] == 'a' and times['seconds'] >= 0 and times['host']
    assert not _claims(worker, 'a') and not _claims(worker, 'b')
    assert worker.run() == {}
    assert cheap.tries(_folder(worker, 'a')) == 1

  if where == 'disk':
    check(tmp_path)
  else:
    with object_store.fake_store(monkeypatch, tmp_path) as store:
      check('gs://bucket/sweep')
      assert not store.refused
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == '[w] a (1 of 2): begins'
  assert lines[1].startswith('[w] a: done in ')


def test_what_a_runner_gets(tmp_path, kinds):
  seen = []

  def run(point, job):
    assert job.folder.exists()
    assert job.folder_of('a') == epath.Path(tmp_path) / 'points' / 'a'
    job.cache.setdefault('loaded', point['name'])
    seen.append((dict(point), job.name, job.cache['loaded']))
    return []

  kinds['one'] = run
  _sweep(tmp_path, _point('a', ks=(1, 2)), _point('b')).run()
  assert seen == [
    (dict(_point('a', needs=[], ks=[1, 2])), 'a', 'a'),
    (dict(_point('b', needs=[])), 'b', 'a'),
  ]


def test_bad_input_ends_a_point_and_those_that_need_it(tmp_path, capsys):
  worker = _sweep(
    tmp_path,
    _point('bad', f'{HERE}:refuse'),
    _point('next', f'{HERE}:add', ('bad',), pieces=1),
    _point('last', f'{HERE}:add', ('next',), pieces=1),
    _point('good', f'{HERE}:add', pieces=1),
    _point('typo', 'no.such:thing'),
  )
  failed = worker.run()
  assert failed['bad'] == 'bad: no such file'  # one line
  assert failed['next'] == 'needs bad, which failed'
  assert failed['last'] == 'needs next, which failed'
  assert 'no.such:thing' in failed['typo'] and len(failed) == 4
  assert table.is_done(_folder(worker, 'good'))
  assert 'bad: error: bad: no such file' in capsys.readouterr().out
  assert worker.run() == failed  # not tried again ...
  worker_lib.forget_failures(worker.plan, worker.workdir)
  assert worker_lib.failures(worker.plan, worker.workdir) == {}  # ... unasked


@pytest.mark.parametrize('bad_tries', [1, 2, 3])
def test_other_errors_are_tried_again(tmp_path, kinds, bad_tries, capsys):
  tries = []

  def run(point, job):
    tries.append(0)
    if len(tries) <= bad_tries:
      raise ValueError('odd\nthing')
    return [{'x': 1}]

  kinds['one'], kinds['two'] = run, lambda point, job: []
  worker = _sweep(tmp_path, _point('a'), _point('b', 'two'))
  failed = worker.run()
  assert table.is_done(_folder(worker, 'b'))
  if bad_tries < worker_lib.TRIES:
    assert failed == {} and len(tries) == bad_tries + 1
  else:
    assert failed == {'a': 'ValueError: odd thing'} and len(tries) == 3
  assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize(
  'stop', [loop.Interrupted('SIGTERM'), KeyboardInterrupt]
)
def test_a_stop_leaves_the_point_to_whoever_comes_next(tmp_path, kinds, stop):
  def run(point, job):
    raise stop

  kinds['one'] = run
  worker = _sweep(tmp_path, _point('a'))
  with pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
    worker.run()
  folder = _folder(worker, 'a')
  assert not _claims(worker, 'a') and not (folder / 'failed.json').exists()
  kinds['one'] = lambda point, job: []
  assert _sweep(tmp_path, _point('a')).run() == {} and table.is_done(folder)


def test_check_stop_reaches_the_runner(tmp_path):
  calls = [0]

  def check():
    calls[0] += 1
    if calls[0] == 4:  # before the point, then before its third piece
      raise loop.Interrupted('SIGINT')

  worker = _sweep(
    tmp_path, _point('a', f'{HERE}:add', pieces=9), check_stop=check
  )
  with pytest.raises(loop.Interrupted):
    worker.run()
  assert len(list(_folder(worker, 'a').glob('piece-*'))) == 2


def _give_up(worker, name):
  """What a watcher does with a worker that has been silent for too long."""
  (path,) = _claims(worker, name)
  leases_lib.files.write_text_atomic(leases_lib._void(path), '')
  path.unlink()


def test_a_late_worker_does_not_finish(tmp_path, kinds, capsys):
  """It slept in the middle of its point; another one has done it."""
  worker = _sweep(tmp_path, _point('a'))

  def late(point, job):
    _give_up(worker, 'a')
    kinds['one'] = lambda point, job: [{'who': 'other'}]
    _sweep(tmp_path, _point('a')).run()
    return [{'who': 'late'}]

  kinds['one'] = late
  assert worker.run() == {}
  rows = json.loads((_folder(worker, 'a') / 'rows.json').read_text())
  assert rows == [{'who': 'other'}]
  assert 'a: another worker has it now' in capsys.readouterr().out


def test_a_point_done_since_it_was_looked_at_is_not_begun(
  tmp_path, kinds, monkeypatch
):
  worker = _sweep(tmp_path, _point('a'))
  claim = leases_lib.Leases.claim

  def slow(leases, folder):
    table.finish_point(folder, [{'who': 'other'}], {})
    return claim(leases, folder)

  monkeypatch.setattr(leases_lib.Leases, 'claim', slow)
  begun = []
  kinds['one'] = lambda point, job: begun.append(0) or []
  assert worker.run() == {} and not begun
  assert not _claims(worker, 'a')


def test_rows_of_a_point_that_was_lost_do_not_count(tmp_path, kinds):
  """Though nobody has finished it yet: somebody may be about to."""
  worker = _sweep(tmp_path, _point('a'))

  def late(point, job):
    _give_up(worker, 'a')
    kinds['one'] = lambda point, job: [{'try': 2}]
    return [{'try': 1}]

  kinds['one'] = late
  assert worker.run() == {}
  rows = json.loads((_folder(worker, 'a') / 'rows.json').read_text())
  assert rows == [{'try': 2}]


def test_a_late_worker_stops_at_its_next_piece(tmp_path, kinds):
  worker = _sweep(tmp_path, _point('a'), patience=0.2)
  noticed = threading.Event()

  def late(point, job):
    _give_up(worker, 'a')
    kinds['one'] = lambda point, job: [{'who': 'second'}]
    try:
      for _ in range(2000):
        job.check_stop()
        noticed.wait(0.01)
      return [{'who': 'late'}]
    except worker_lib.LeaseLost:
      noticed.set()
      raise

  kinds['one'] = late
  assert worker.run() == {} and noticed.is_set()
  rows = json.loads((_folder(worker, 'a') / 'rows.json').read_text())
  assert rows == [{'who': 'second'}]


@pytest.mark.parametrize('error', [UserError('gone'), ValueError('odd')])
def test_an_error_of_a_point_that_was_lost_does_not_count(
  tmp_path, kinds, error, capsys
):
  """Its files may have gone because another one has the point now."""
  worker = _sweep(tmp_path, _point('a'))

  def late(point, job):
    _give_up(worker, 'a')
    kinds['one'] = lambda point, job: [{'try': 2}]
    raise error

  kinds['one'] = late
  assert worker.run() == {}
  assert not (_folder(worker, 'a') / 'failed.json').exists()
  assert table.is_done(_folder(worker, 'a'))
  assert 'a: another worker has it now' in capsys.readouterr().out


def test_failures_may_be_forgotten_at_any_moment(tmp_path, monkeypatch):
  """Another command forgets them between two looks of this one."""
  worker = _sweep(tmp_path, _point('a'))
  path = _folder(worker, 'a') / 'failed.json'
  monkeypatch.setattr(
    type(path), 'exists', lambda self: self.name == 'failed.json'
  )
  assert worker_lib._fail(_folder(worker, 'a'), 'odd', final=False) == 1
  path.unlink()

  def gone(self, missing_ok=False):
    raise FileNotFoundError(self)

  monkeypatch.setattr(type(path), 'unlink', gone)
  worker_lib.forget_failures(worker.plan, worker.workdir)


def test_workers_share_points(tmp_path, kinds, capsys):
  """Both work at once, and nobody does what another one does."""
  both = threading.Barrier(2)
  begun = []

  def run(point, job):
    begun.append(point['name'])
    both.wait(20)
    return [{'x': 1}]

  kinds['one'] = run
  points = [_point(f'p{i}') for i in range(6)]
  workers = [_sweep(tmp_path, *points) for _ in range(2)]
  threads = [threading.Thread(target=worker.run) for worker in workers]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert sorted(begun) == [f'p{i}' for i in range(6)]
  assert len(table.rows_of(workers[0].plan, workers[0].workdir)) == 6


def test_registries():
  """Every line names a function; an unknown kind says what there is."""
  for kind in runners.RUNNERS:
    assert callable(runners.runner(kind)), kind
  for kind in runners.PAGES:
    assert callable(runners.page(kind)), kind
  assert runners.runner(f'{HERE}:add') is cheap.add
  for kind, known in (('tran', runners.RUNNERS), ('law', runners.PAGES)):
    with pytest.raises(UserError, match=f"'{kind}' is unknown; use one of"):
      runners.check(kind, known)
  for kind in ('no.such:thing', f'{HERE}:nothing'):
    with pytest.raises(UserError, match='cannot be loaded'):
      runners.runner(kind)
