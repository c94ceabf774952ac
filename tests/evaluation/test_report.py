"""Pictures and reports: files exist, hold what they must, refuse the rest."""

import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib.backends import backend_agg

from metastone_jax import evaluation
from metastone_jax.errors import UserError
from metastone_jax.evaluation import answer_plots, plots, series, style
from tests.evaluation import synthetic

_PNG = b'\x89PNG\r\n\x1a\n'


def _summary(samples, ks=(1, 2, 8)):
  return evaluation.summarise(samples, ks, resamples=200)


@pytest.fixture(scope='module')
def stages():
  return {
    'after head': synthetic.make_samples(gap=0.4),
    'after joint': synthetic.make_samples(gap=1.5),
  }


@pytest.fixture(scope='module')
def report(stages, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run') / 'report'
  path = evaluation.write_report(
    folder,
    title='Tiny <run>',
    # The order of the summaries counts, not that of the samples.
    summaries={name: _summary(s) for name, s in stages.items()},
    samples=dict(reversed(stages.items())),
    metrics=synthetic.make_metrics(),
    config_text='a = 1 < 2',
    command='python -m launch.train',
    seconds={'joint': 12.5},
    versions={'jax': '0.0.1'},
  )
  assert path == folder / 'report.html'
  return folder


def test_report_is_whole_and_self_contained(report):
  page = (report / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 8
  assert not re.search(r'(src|href)="(?!data:)', page)
  assert 'Tiny &lt;run&gt;' in page and '1 &lt; 2' in page
  assert 'prefers-color-scheme: dark' in page
  text = (report / 'report.md').read_text()
  for name in re.findall(r'\]\((plots/\w+\.png)\)', text):
    assert (report / name).read_bytes().startswith(_PNG)
  for content in (page, text):
    assert 'SPRM best-of-8 answers' in content
    assert 'after head → after joint' in content
    assert 'python -m launch.train' in content
    assert 'jax 0.0.1' in content and '12.5' in content
  assert list(json.loads((report / 'summary.json').read_text())) == [
    'after head',
    'after joint',
  ]


def test_report_without_samples_and_metrics_says_so(tmp_path, stages):
  stale = tmp_path / 'plots' / 'learning_curves.png'
  stale.parent.mkdir()
  stale.write_bytes(_PNG)
  evaluation.write_report(
    tmp_path,
    title='one',
    summaries={'final': _summary(stages['after joint'])},
  )
  text = (tmp_path / 'report.md').read_text()
  assert 'No picture "Learning curves": no training metrics' in text
  assert not stale.exists()
  assert text.count('](plots/') == 3


def test_checkpoints_are_compared_with_the_first(tmp_path):
  several = {
    'base': synthetic.make_samples(P=60, skill=0.3),
    'other': synthetic.make_samples(P=60, skill=0.3, seed=1),
    'tuned': synthetic.make_samples(P=60, skill=0.8, seed=2),
  }
  evaluation.write_report(
    tmp_path,
    title='three',
    summaries={name: _summary(s) for name, s in several.items()},
    samples=several,
    to_first=True,
  )
  text = (tmp_path / 'report.md').read_text()
  assert 'other shows no difference to base: pass@1' in text
  assert 'tuned is better than base: pass@1 +' in text
  assert 'Checkpoint by checkpoint' in text and 'base → tuned' in text
  assert 'other → tuned' not in text
  assert 'sign flips, 19,999 draws' in text
  assert (tmp_path / 'plots' / 'comparison.png').read_bytes().startswith(_PNG)
  found = json.loads((tmp_path / 'differences.json').read_text())
  assert {d['before'] for d in found} == {'base'} and len(found) == 10


def test_traces_have_their_own_words(tmp_path):
  samples = dataclasses.replace(synthetic.make_samples(N=3), traces=8)
  result = _summary(samples, (1,))
  assert 'written from the best of 8 traces is right on' in evaluation.headline(
    result
  )
  evaluation.write_report(
    tmp_path, title='t', summaries={'final': result}, samples=samples
  )
  text = (tmp_path / 'report.md').read_text()
  assert '3 answers each, written from the best of 8 traces' in text


def test_report_refuses_nonsense(tmp_path, stages):
  with pytest.raises(UserError, match='no summary'):
    evaluation.write_report(tmp_path, title='t', summaries={})
  with pytest.raises(UserError, match="samples of 'x'"):
    evaluation.write_report(
      tmp_path,
      title='t',
      summaries={'a': _summary(stages['after head'])},
      samples={'x': stages['after head']},
    )


def test_headline_is_honest():
  wins = evaluation.headline(_summary(synthetic.make_samples(P=200, gap=2.0)))
  assert 'picks better answers' in wins
  loses = evaluation.headline(_summary(synthetic.make_samples(P=200, gap=-2.0)))
  assert 'picks WORSE answers' in loses
  chance = evaluation.headline(
    _summary(synthetic.make_samples(P=200, gap=0.0, skill=0.2), ks=(1,))
  )
  assert chance.startswith('One sample answers')


def test_terminal_summary_is_plain_text(stages):
  text = evaluation.terminal_summary(_summary(stages['after joint']))
  assert '\x1b' not in text
  assert 'SPRM best-of-k' in text and 'AUC within a problem' in text
  assert max(map(len, text.splitlines())) <= 110


def test_one_problem_has_no_interval_but_a_report(tmp_path):
  samples = synthetic.make_samples(P=1)
  evaluation.write_report(
    tmp_path,
    title='one problem',
    summaries={'final': _summary(samples)},
    samples=samples,
  )
  assert 'cannot tell' in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize('restart', [False, True])
def test_phases_share_one_axis(restart):
  run = series.read_run(synthetic.make_metrics(restart=restart))
  assert [name for name, _, _ in run.phases] == ['warmup', 'head', 'joint']
  x = np.concatenate([x for x, _ in run.series('loss/spr')])
  assert (np.diff(x) >= 0).all()
  first = 149 if restart else 150
  np.testing.assert_array_equal(x[[0, 1]], [first, first + 1])
  assert not list(run.series('note'))


def test_smooth_is_a_centred_mean():
  y = np.arange(90.0)
  y[4] = np.nan
  got = series.smooth(y)
  want = [np.nanmean(y[max(i - 3, 0) : i + 4]) for i in range(90)]
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
  'rows',
  [
    [{'step': 0, 'phase': 'joint', 'loss/spr': 0.5}],
    [{'step': 0, 'phase': 'a', 'eval/pass_at_1': 0.5, 'loss/x': None}],
    [{'step': i, 'loss/kl': 0.0, 'reward/mean': 0.1} for i in range(3)],
  ],
)
def test_short_runs_have_curves(tmp_path, rows):
  path = plots.plot_learning_curves(rows, tmp_path / 'p.png')
  assert path.read_bytes().startswith(_PNG)


def test_separation_uses_measured_spread(tmp_path):
  rows = [
    {
      'step': i,
      'phase': 'head',
      'score/mean_correct': 0.6,
      'score/mean_wrong': 0.4 if i else None,
      'score/std_correct': 0.1,
      'score/std_wrong': 0.1 if i else None,
    }
    for i in range(5)
  ]
  path = plots.plot_score_separation(rows, tmp_path / 'p.png')
  assert path.read_bytes().startswith(_PNG)


def test_empty_metrics_are_refused(tmp_path):
  with pytest.raises(UserError, match='no rows'):
    plots.plot_learning_curves([], tmp_path / 'p.png')
  with pytest.raises(UserError, match='no loss'):
    plots.plot_learning_curves([{'step': 1, 'phase': 'x'}], tmp_path / 'p.png')
  with pytest.raises(UserError, match='no step'):
    plots.plot_learning_curves([{'loss/spr': 1}], tmp_path / 'p.png')
  with pytest.raises(UserError, match='no score/mean_correct'):
    plots.plot_score_separation([{'step': 1}], tmp_path / 'p.png')


@pytest.mark.parametrize(
  'task', ['signs', 'LIVECODEBENCH_RELEASE_V6_HARD', 'x' * 90]
)
def test_titles_stay_in_the_picture(task, tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(style, 'write_png', lambda fig, path: figures.append(fig))
  samples = synthetic.make_samples(task=task)
  summary = _summary(samples)
  answer_plots.plot_reliability(summary, tmp_path / 'a.png')
  answer_plots.plot_pass_rates(samples, tmp_path / 'b.png')
  plots.plot_accuracy_against_k(summary, tmp_path / 'c.png')
  for figure in figures:
    canvas = backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    ax = figure.get_axes()[0]
    title = ax.get_title(loc='left')
    assert ''.join(title.split()).startswith(f'{task}:')
    box = ax._left_title.get_window_extent(canvas.get_renderer())
    assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
  assert len(figures) == 3
