"""Segments, the open object, resume, and the optional mirrors."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.telemetry import MetricWriter, read_metrics


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def _rows(writer, first, last):
  for step in range(first, last):
    phase = 'warm-up' if step < 4 else 'joint'
    writer.write(step, phase, {'loss': step / 7, 'n': step})


def _names(directory):
  return sorted(path.name for path in (directory / 'metrics').iterdir())


def test_rows_keep_numbers_and_write_null_for_nan(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(
      np.int64(3),
      'joint',
      {
        'loss': jnp.float32(0.1),
        'half': jnp.bfloat16(0.5),
        'nan': np.float32('nan'),
        'inf': float('-inf'),
        'count': jnp.int32(7),
        'flag': True,
        'note': 'text',
      },
    )
  assert read_metrics(tmp_path) == [
    {
      'step': 3,
      'phase': 'joint',
      'loss': float(np.float32(0.1)),
      'half': 0.5,
      'nan': None,
      'inf': None,
      'count': 7,
      'flag': True,
      'note': 'text',
    }
  ]
  text = (tmp_path / 'metrics' / 'segment-000000000.jsonl').read_text()
  assert '"nan": null' in text and 'NaN' not in text


def test_bad_rows_are_refused_by_name(tmp_path):
  writer = MetricWriter(tmp_path)
  with pytest.raises(ValueError, match="'loss' must be a scalar.*(2,)"):
    writer.write(0, 'a', {'loss': np.zeros(2)})
  with pytest.raises(ValueError, match="'step' is a reserved"):
    writer.write(0, 'a', {'step': 1})
  assert writer.num_rows == 0


def test_open_rows_appear_at_once_and_then_every_few_seconds(tmp_path):
  clock = Clock()
  writer = MetricWriter(tmp_path, refresh_seconds=5, clock=clock)
  _rows(writer, 0, 1)
  assert len(read_metrics(tmp_path)) == 1
  clock.now += 4.9
  _rows(writer, 1, 2)
  assert len(read_metrics(tmp_path)) == 1
  clock.now += 0.1
  _rows(writer, 2, 3)
  assert len(read_metrics(tmp_path)) == 3
  assert _names(tmp_path) == ['open.jsonl']
  writer.flush()
  assert _names(tmp_path) == ['segment-000000000.jsonl']
  writer.flush()  # Nothing new: no object.
  _rows(writer, 3, 4)
  assert _names(tmp_path) == ['open.jsonl', 'segment-000000000.jsonl']
  assert [row['step'] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
  writer.close()
  assert _names(tmp_path) == [
    'segment-000000000.jsonl',
    'segment-000000003.jsonl',
  ]


def test_rows_of_one_step_survive_a_flush_between_them(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(5, 'joint', {'loss': 1})
    writer.flush()
    writer.write(5, 'evaluation', {'pass': 2})
  assert [row['phase'] for row in read_metrics(tmp_path)] == [
    'joint',
    'evaluation',
  ]


@pytest.mark.parametrize('ending', ['killed', 'flushed', 'closed'])
@pytest.mark.parametrize('extra_flush', [False, True])
def test_resumed_metrics_equal_the_undisturbed(tmp_path, ending, extra_flush):
  undisturbed, resumed = tmp_path / 'a', tmp_path / 'b'
  with MetricWriter(undisturbed) as writer:
    for start in range(0, 12, 4):
      _rows(writer, start, start + 4)
      writer.state()

  writer = MetricWriter(resumed, refresh_seconds=0)
  _rows(writer, 0, 4)
  writer.state()
  _rows(writer, 4, 6)
  if extra_flush:
    writer.flush()
  _rows(writer, 6, 8)
  state = json.loads(json.dumps(writer.state()))
  assert state == {'rows': 8}
  _rows(writer, 8, 11)
  if ending == 'flushed':
    writer.flush()
    _rows(writer, 11, 12)
  if ending == 'closed':
    writer.close()

  writer = MetricWriter(resumed)
  writer.restore(state)
  assert len(read_metrics(resumed)) == 8
  _rows(writer, 8, 12)
  writer.close()
  assert read_metrics(resumed) == read_metrics(undisturbed)


def test_a_checkpoint_inside_a_segment_cuts_it(tmp_path):
  writer = MetricWriter(tmp_path)
  _rows(writer, 0, 6)
  writer.flush()
  writer.truncate_after(4)
  assert [row['step'] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
  _rows(writer, 4, 6)
  writer.close()
  assert [row['step'] for row in read_metrics(tmp_path)] == list(range(6))


def test_starting_again_empties_and_reopening_continues(tmp_path):
  writer = MetricWriter(tmp_path)
  _rows(writer, 0, 3)
  writer.close()
  writer = MetricWriter(tmp_path)
  assert writer.num_rows == 3
  _rows(writer, 3, 4)
  writer.close()
  assert len(read_metrics(tmp_path)) == 4
  writer.restore(None)
  assert read_metrics(tmp_path) == []


def test_missing_segments_are_reported(tmp_path, caplog):
  writer = MetricWriter(tmp_path)
  writer.restore({'rows': 5})
  assert 'have 0 rows where the checkpoint counts 5' in caplog.text
  _rows(writer, 5, 6)
  writer.close()
  assert _names(tmp_path) == ['segment-000000005.jsonl']


def test_other_processes_count_but_write_nothing(tmp_path):
  writer = MetricWriter(tmp_path, primary=False, sinks=['tensorboard'])
  _rows(writer, 0, 3)
  assert writer.state() == {'rows': 3}
  writer.restore({'rows': 1})
  writer.close()
  assert not (tmp_path / 'metrics').exists()
  assert read_metrics(tmp_path) == []


def test_a_damaged_line_is_named(tmp_path):
  (tmp_path / 'metrics').mkdir()
  path = tmp_path / 'metrics' / 'segment-000000000.jsonl'
  path.write_text('{"step": 0}\n{"ste')
  with pytest.raises(UserError, match=r'segment-000000000\.jsonl .* line 2'):
    read_metrics(tmp_path)


@pytest.mark.parametrize(
  'name, package', [('tensorboard', 'tensorboardX'), ('wandb', 'wandb')]
)
def test_a_missing_sink_says_how_to_install_it(
  tmp_path, monkeypatch, name, package
):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UserError, match=f'pip install {package}'):
    MetricWriter(tmp_path, sinks=[name])


def test_an_unknown_sink_is_refused(tmp_path):
  with pytest.raises(UserError, match="unknown metric sink 'mlflow'"):
    MetricWriter(tmp_path, sinks=['mlflow'])


def test_sinks_receive_finite_scalars_by_phase(tmp_path, monkeypatch):
  calls = []

  class SummaryWriter:
    def __init__(self, logdir):
      calls.append(('open', logdir))

    def add_text(self, name, text, step):
      calls.append((name, step))

    def add_scalar(self, name, value, global_step):
      calls.append((name, value, global_step))

    def close(self):
      calls.append('close')

  class Run:
    def define_metric(self, name, step_metric):
      calls.append((name, step_metric))

    def log(self, values, step):
      calls.append((values, step))

    def finish(self):
      calls.append('finish')

  ids = []

  def init(**options):
    ids.append(options['id'])
    assert options['resume'] == 'allow' and options['config'] == {'w': 1}
    return Run()

  monkeypatch.setitem(
    sys.modules,
    'tensorboardX',
    types.SimpleNamespace(SummaryWriter=SummaryWriter),
  )
  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  for _ in range(2):
    with MetricWriter(
      tmp_path, sinks=['tensorboard', 'wandb'], config={'w': 1}
    ) as writer:
      writer.write(9, 'joint', {'loss': 0.5, 'bad': np.nan, 'note': 'x'})
  assert ids[0] == ids[1]
  assert calls[:8] == [
    ('open', str(tmp_path / 'tensorboard')),
    ('config', 0),
    ('*', 'step'),
    ('joint/loss', 0.5, 9),
    ({'step': 9, 'joint/loss': 0.5}, 0),
    'close',
    'finish',
    ('open', str(tmp_path / 'tensorboard')),
  ]
  assert calls[-3] == ({'step': 9, 'joint/loss': 0.5}, 1)
