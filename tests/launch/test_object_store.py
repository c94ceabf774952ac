"""A whole short run in a bucket: nothing is appended, renamed or half there.

Not covered: tensorstore's own gs:// driver (see object_store.py).
"""

import json

import pytest
from etils import epath

from metastone_jax import telemetry
from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.training import loop
from tests.launch import object_store
from tests.training.loop import parts

WORKDIR = 'gs://bucket/runs/small'


def _edit(config):
  config.phase_order = ('joint',)
  config.phases.joint.steps = 3
  config.phases.joint.evaluate_every = 2
  config.checkpoint.every = 2


@pytest.fixture
def store(tmp_path, monkeypatch):
  with object_store.fake_store(monkeypatch, tmp_path / 'store') as store:
    yield store


def _train():
  with parts.one_device():
    return loop.train(parts.recipe(_edit), WORKDIR)


def _rows():
  return [
    {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in telemetry.read_metrics(WORKDIR)
  ]


def test_a_run_and_its_resume(store):
  report = _train()
  assert str(report) == f'{WORKDIR}/report/report.html'
  assert not store.refused
  workdir = epath.Path(WORKDIR)
  assert '</html>' in report.read_text()
  assert 'signs' in json.loads((workdir / 'summary.json').read_text())
  names = {name.removeprefix(WORKDIR + '/') for name in store.written}
  for name in (
    'config.json',
    'model.json',
    'evaluation/joint-signs.npz',
    'evaluation/step-2.npz',
    'checkpoints/integrity/3.json',
    'metrics/segment-000000000.jsonl',
  ):
    assert name in names
  assert not [name for name in names if name.endswith('.tmp')]
  rows = _rows()
  assert [r['step'] for r in rows if 'loss/total' in r] == list(range(1, 4))
  with CheckpointManager(workdir / 'checkpoints', read_only=True) as manager:
    assert manager.good_steps() == [2, 3]

  # A preemption after step 2 and a save of step 3 that was cut short.
  record = workdir / 'checkpoints' / 'integrity' / '3.json'
  record.write_text(json.dumps({'format': 1, 'state': 'saving', 'step': 3}))
  (workdir / 'evaluation' / 'joint-signs.npz').unlink()
  _train()
  assert not store.refused
  assert _rows() == rows
  with CheckpointManager(workdir / 'checkpoints', read_only=True) as manager:
    assert manager.latest_step() == 3


def test_the_store_is_strict(store):
  path = epath.Path('gs://bucket/a/b')
  path.parent.mkdir(parents=True)
  assert not path.parent.exists()
  path.write_text('x')
  assert path.parent.is_dir() and path.read_text() == 'x'
  with pytest.raises(object_store.Refused):
    path.rename('gs://bucket/a/c')
  with pytest.raises(object_store.Refused):
    path.open('a')
  path.unlink()
  assert not path.parent.exists()
