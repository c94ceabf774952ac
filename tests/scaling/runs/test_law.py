"""A small model is trained and sampled; its rows against the estimators."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from metastone_jax.data import Tokenizer
from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples, best_of_k, pass_at_k
from metastone_jax.sampling.engine import Engine
from metastone_jax.scaling.runs import law
from metastone_jax.scaling.runs.pruned import StepMarks
from metastone_jax.training import loop
from tests.training.loop.parts import one_device

RECIPE = 'tests/launch/small.py'
KS = (1, 2, 4)


@dataclasses.dataclass
class Job:
  """What a runner needs of a sweep's job."""

  root: epath.Path
  name: str
  stop_at: int = -1  # which look at the signals finds one
  looks: int = 0
  cache: dict = dataclasses.field(default_factory=dict)
  said: list = dataclasses.field(default_factory=list)

  @property
  def folder(self):
    folder = self.folder_of(self.name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder

  def folder_of(self, name):
    return self.root / 'points' / name

  def status(self, text):
    self.said.append(text)

  def check_stop(self):
    self.looks += 1
    if self.looks == self.stop_at:
      raise loop.Interrupted('SIGTERM')


def sample_point(**changes):
  return {
    'name': 's',
    'kind': 'sample',
    'train': 't',
    'task': 'signs',
    'budget': 6,
    'problems': 5,
    'samples': 8,
    'ks': KS,
    'first_milestones': (4, 5),
    'slots': 16,
    **changes,
  }


TRAIN = {
  'name': 't',
  'kind': 'train',
  'recipe': RECIPE,
  'changes': {
    'seed': 4,
    'phase_order': ('warmup',),
    'phases.warmup.steps': 30,
  },
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  root = epath.Path(tmp_path_factory.mktemp('law'))
  with one_device():
    yield root, law.train(TRAIN, Job(root, 't'))


def test_train_says_what_the_model_is(trained):
  root, rows = trained
  (row,) = rows
  config = json.loads((root / 'points/t/run/config.json').read_text())
  assert config['seed'] == row['seed'] == 4
  assert row['width'] == 16 and row['steps'] == 30
  # 2 blocks (q, k, v, o; SwiGLU; norms of width and of heads), the tied
  # embedding, the final norm.
  block = 16 * 8 * (2 * 2 + 2 * 1) + 3 * 16 * 32 + 2 * 16 + 2 * 8
  assert row['parameters'] == 2 * block + Tokenizer.tiny().vocab_size * 16 + 16
  assert row['head_parameters'] == 2 * 16 * 16 + 4 * 16 + 1
  spent = json.loads((root / 'points/t/train.json').read_text())
  assert 0 < spent['seconds'] < 300


def test_rows_are_the_estimators_of_what_is_kept(trained):
  root, (model,) = trained
  job = Job(root, 's')
  point = sample_point()
  rows = law.sample(point, job)
  samples = EvaluationSamples.load(job.folder / 'samples.npz')
  marks = StepMarks.load(job.folder / 'marks.npz')
  values = law.LawValues.load(job.folder / 'values.npz')
  assert samples.shape == (5, 8)
  # The budget holds; </think> is counted too.
  assert samples.thinking_PN.max() <= 7
  assert any('40 of 40' in text for text in job.said)
  # All strategies, k and first milestones, each once.
  found = {
    (row['strategy'], row['k'], row['first_milestone']): row for row in rows
  }
  plain = ('majority', 'weighted_vote', 'best_of_k', 'oracle')
  wanted = {('single', 1, None)}
  wanted |= {(name, k, None) for name in plain for k in KS}
  wanted |= {('pruned', k, first) for k in KS for first in (4, 5)}
  assert set(found) == wanted and len(rows) == len(wanted)
  thinking = samples.thinking_PN.mean()
  for k in KS:
    row = found['best_of_k', k, None]
    assert row['accuracy'] == pytest.approx(
      best_of_k(
        samples.scores_PN,
        samples.correct_PN,
        k,
        finished_PN=samples.eligible_PN,
      )
    )
    assert found['oracle', k, None]['accuracy'] == pytest.approx(
      pass_at_k(samples.correct_PN, k)
    )
    assert row['low'] <= row['accuracy'] <= row['high']
    assert row['thinking_tokens'] == pytest.approx(k * thinking)
    assert row['compute'] == pytest.approx(k * thinking * model['parameters'])
    # Twice the products of parameters and tokens, to a factor: embeddings
    # of the head, attention, the answer and the prompt.
    assert row['flops'] > 2 * k * samples.tokens_PN.mean() * 5000
    assert row['drawn_share'] == 1.0
    for first in (4, 5):
      share = found['pruned', k, first]['drawn_share']
      assert share == 1.0 if k == 1 else share <= 1.0
  for row in rows:
    assert row['width'] == 16 and row['seed'] == 4 and row['budget'] == 6
    assert row['problems'] == 5 and row['samples'] == 8
  json.dumps(rows)
  # The same, a problem.
  np.testing.assert_allclose(
    values.accuracy_PM.mean(axis=0), [row['accuracy'] for row in rows]
  )
  assert list(values.problem_ids) == samples.problem_ids
  # What is scored at the end of the thinking is the whole trace.
  whole = marks.running_score(10**6)
  marked = ~np.isnan(whole)
  assert marked.any()
  np.testing.assert_allclose(
    whole[marked], samples.scores_PN[marked], rtol=1e-5
  )


def test_what_is_drawn_is_not_drawn_again(trained):
  root, _ = trained
  point = sample_point(name='again', budget=0)
  # The first look at signals is after the first piece of responses, the last
  # before the largest k: the samples are kept by then.
  job = Job(root, 'again')
  rows = law.sample(point, job)
  stopped = Job(root, 'stopped', stop_at=job.looks)
  with pytest.raises(loop.Interrupted):
    law.sample({**point, 'name': 'stopped'}, stopped)
  assert not (stopped.folder / 'values.npz').exists()
  resumed = Job(root, 'stopped')
  assert law.sample({**point, 'name': 'stopped'}, resumed) == rows
  assert not resumed.said
  # Others are asked for.
  more = Job(root, 'stopped')
  assert law.sample({**point, 'problems': 6}, more) != rows
  assert more.said


def test_a_recipe_that_has_changed_is_named(trained, tmp_path):
  root, _ = trained
  folder = root / 'points' / 't'
  law.check_done(TRAIN, folder)
  changed = {**TRAIN, 'recipe': str(tmp_path / 'other.py')}
  text = pathlib.Path(RECIPE).read_text()
  (tmp_path / 'other.py').write_text(
    text
    + '\n\n_first = get_config\n\n\ndef get_config(arg=""):\n'
    + "  config = _first()\n  config.data.step_marks = ('\\n',)\n"
    + '  return config\n'
  )
  message = r'data.step_marks\[0\] was .* is .*workdir'
  with pytest.raises(UserError, match=message):
    law.check_done(changed, folder)
  law.check_done(changed, folder / 'nothing')  # no run there


def test_how_a_run_draws(trained):
  root, _ = trained
  folder = root / 'points' / 't'
  assert law.draws_of([folder, folder, root]) == [
    'Samples are drawn at temperature 1, top-p 1.'
  ]


def test_an_interrupted_drawing_goes_on(trained, monkeypatch):
  """With the same rows, samples and marks, and without drawing twice."""
  root, _ = trained
  point = sample_point(name='whole', slots=8)
  rows = law.sample(point, Job(root, 'whole'))
  drawn = []
  run = Engine.run

  def counted(self, requests):
    for candidate in run(self, requests):
      drawn.append((candidate.request.draw, candidate.number))
      yield candidate

  monkeypatch.setattr(Engine, 'run', counted)
  for _ in range(2):  # each after a piece of 8 responses
    with pytest.raises(loop.Interrupted):
      law.sample({**point, 'name': 'cut'}, Job(root, 'cut', stop_at=1))
  assert 8 <= len(drawn) < 40
  cut = Job(root, 'cut')
  assert any((cut.folder / 'candidates').iterdir())
  assert law.sample({**point, 'name': 'cut'}, cut) == rows
  assert len(drawn) == len(set(drawn)) == 40
  for name in ('marks.npz', 'values.npz'):
    one, two = (root / 'points' / n / name for n in ('whole', 'cut'))
    with np.load(one) as a, np.load(two) as b:
      for key in a.files:
        if key == 'logit_PNS':  # other responses beside it: a last bit
          np.testing.assert_allclose(a[key], b[key], atol=1e-5)
        else:
          np.testing.assert_array_equal(a[key], b[key])
  assert not (cut.folder / 'candidates').exists()


def test_a_broken_segment_of_candidates_is_named(trained):
  root, _ = trained
  job = Job(root, 'broken')
  (job.folder / 'candidates').mkdir()
  (job.folder / 'candidates' / 'x.npz').write_bytes(b'no')
  with pytest.raises(UserError, match='x.npz: not a whole segment'):
    law.sample(sample_point(name='broken'), job)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(samples=3), 'k=4 needs'),
    (dict(budget=28), 'budget=28'),
    (dict(train='other'), 'config.json'),
    (dict(first_milestones=(0,), budget=0), 'first=0'),
  ],
)
def test_bad_sample_points_are_named(trained, change, message):
  root, _ = trained
  with pytest.raises(UserError, match=message):
    law.sample(
      sample_point(name='bad', **change),
      Job(root, 'bad'),
    )


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(recipe='configs/nothing.py'), 'configs/nothing.py: no such file'),
    (dict(recipe='tests/launch/__init__.py'), 'get_config'),
    (dict(changes={'modle.width': 8}), 'no modle'),
    (dict(changes={'model.widht': 8}), 'widht'),
    (dict(changes={'seed': 'x'}), 'seed'),
  ],
)
def test_bad_train_points_are_named(tmp_path, change, message):
  job = Job(epath.Path(tmp_path), 't')
  with pytest.raises(UserError, match=message):
    law.train({**TRAIN, **change}, job)


def test_a_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert law.recipe_of({**TRAIN, 'recipe': 'configs/tiny.py', 'changes': {}})
