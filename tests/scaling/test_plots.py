"""Pictures of laws: what is drawn, read back from the figures."""

import matplotlib.collections as mpl_collections
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.evaluation import style
from metastone_jax.scaling import fit_law, plots, published, published_plot
from metastone_jax.scaling.curve import Curve

KS = np.array([1, 2, 4, 8, 16, 32, 64])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """The figures that were written, each checked to be a PNG, legend apart."""
  figures = []
  write = style.write_png

  def keep(fig, path):
    path = write(fig, path)
    assert path.read_bytes().startswith(b'\x89PNG')
    fig.draw_without_rendering()  # lays out at the resolution asked below
    for legend in fig.legends:
      below = legend.get_window_extent().y1
      assert all(below <= ax.get_tightbbox().y0 + 1 for ax in fig.get_axes())
      assert legend.get_window_extent().width <= fig.bbox.width
    figures.append(fig)
    return path

  monkeypatch.setattr(style, 'write_png', keep)
  figures.append(tmp_path / 'picture.png')
  return figures


def _curve(label='0.44 M', parameters=1e6, shift=0.0, **more):
  accuracy_n = 60 + shift - 40 * KS**-0.6
  return Curve(label, parameters * KS, accuracy_n, k_n=KS, **more)


def _with_limits(**options):
  curve = _curve(**options)
  y_n = curve.accuracy_n
  return Curve(curve.label, curve.compute_n, y_n, y_n - 3, y_n + 2, KS)


def _labels(fig):
  return [text.get_text() for text in fig.legends[0].get_texts()]


def _bands(ax):
  return [
    child
    for child in ax.collections
    if isinstance(child, mpl_collections.PolyCollection)
  ]


def test_points_fits_and_envelope_against_compute(drawn):
  curves = [_with_limits(), _with_limits(label='2 M', parameters=4e6, shift=5)]
  laws = {'0.44 M': 'linear', '2 M': 'saturating'}
  plots.plot_accuracy_against_compute(curves, drawn[0], laws=laws)
  (ax,) = drawn[1].get_axes()
  assert ax.get_xscale() == 'log'
  assert _labels(drawn[1]) == [
    '0.44 M (linear)',
    '2 M (saturating)',
    'envelope: best within compute',
    'band: 95 %, points independent',
  ]
  marks = [line for line in ax.lines if line.get_marker() not in ('None', '')]
  for curve, line in zip(curves, marks, strict=True):
    np.testing.assert_array_equal(line.get_xydata()[:, 1], curve.accuracy_n)
  fitted = [line for line in ax.lines if len(line.get_xdata()) > 100]
  for curve, line in zip(curves, fitted, strict=True):
    fit = fit_law(laws[curve.label], curve.compute_n, curve.accuracy_n)
    np.testing.assert_allclose(line.get_ydata(), fit.predict(line.get_xdata()))
  (stairs,) = (x for x in ax.lines if x.get_drawstyle() == 'steps-post')
  everything = np.concatenate([c.accuracy_n for c in curves])
  assert stairs.get_ydata()[0] == curves[0].accuracy_n[0]
  assert stairs.get_ydata()[-1] == everything.max()
  assert (np.diff(stairs.get_ydata()) >= 0).all()
  low, high = ax.get_ylim()
  assert low < min(c.low_n.min() for c in curves)
  assert high > max(c.high_n.max() for c in curves)


def test_a_band_is_over_problems_where_there_are_any(drawn):
  rng = np.random.default_rng(0)
  # Problems differ by 20 points: other problems move the whole curve.
  accuracy_PM = _curve().accuracy_n + rng.normal(0, 20, (50, 1))
  over = Curve('over', KS, accuracy_PM.mean(axis=0), accuracy_PM=accuracy_PM)
  without = Curve('over', KS, over.accuracy_n)
  heights = []
  for curve in (over, without):
    plots.plot_accuracy_against_compute(
      [curve], drawn[0], laws={'over': 'saturating'}
    )
    (band,) = _bands(drawn[-1].get_axes()[0])
    corner = band.get_paths()[0].vertices
    middle = np.abs(np.log(corner[:, 0]) - np.log(8)) < 0.05
    heights.append(np.ptp(corner[middle, 1]))
  assert 'band: 95 % over problems' in _labels(drawn[1])
  # 2 x 1.96 standard errors of 50 problems.
  assert heights[0] == pytest.approx(2 * 1.96 * 20 / 50**0.5, rel=0.35)
  assert heights[1] < 0.1 * heights[0]


def test_three_points_have_a_line_and_no_band_two_have_points(drawn):
  three = Curve('three', [2, 8, 32], [44.0, 53.1, 57.9])
  two = Curve('two', [2, 8], [10.0, 20.0])
  plots.plot_accuracy_against_compute([three, two], drawn[0])
  assert not _bands(drawn[1].get_axes()[0])
  assert _labels(drawn[1])[:2] == ['three (linear)', 'two']
  assert not any(label.startswith('band') for label in _labels(drawn[1]))


def test_equal_accuracies_and_one_point_can_be_drawn(drawn):
  plots.plot_accuracy_against_compute(
    [Curve('flat', [1, 2, 4, 8, 16], [50.0] * 5), Curve('one', [3], [50.0])],
    drawn[0],
  )
  low, high = drawn[1].get_axes()[0].get_ylim()
  assert low < 50 < high


def test_strategies_against_k_with_their_ceiling(drawn):
  curve = _with_limits()
  above = _with_limits(shift=8.0)
  plain = _curve(shift=-5.0)
  single = Curve('one sample', [1e6], [20.0], k_n=[1])
  panels = {
    'small': {'best_of_k': curve, 'oracle': above, 'single': single},
    'large': {'best_of_k': above, 'mine': plain},
  }
  plots.plot_accuracy_against_k(panels, drawn[0], title='All of them')
  fig = drawn[1]
  small, large = fig.get_axes()
  assert [ax.get_title('left') for ax in (small, large)] == ['small', 'large']
  assert _labels(fig) == [
    'one sample',
    'SPRM best-of-k',
    'oracle pass@k (ceiling)',
    'mine',
    'band: 95 % interval',
  ]
  assert len(_bands(small)) == 2 and len(_bands(large)) == 1
  lines = {line.get_linestyle(): line for line in small.lines}
  np.testing.assert_array_equal(lines['--'].get_ydata(), above.accuracy_n)
  np.testing.assert_array_equal(lines['-'].get_xdata(), KS)
  np.testing.assert_array_equal(lines[':'].get_ydata(), [20, 20])
  # A strategy looks alike in every panel, and others look different.
  assert lines['-'].get_color() == large.lines[0].get_color()
  assert large.lines[1].get_color() not in {x.get_color() for x in small.lines}


def test_points_against_k_are_joined_in_the_order_of_k(drawn):
  # More samples may cost less than fewer: pruned, say.
  curve = Curve('x', [30, 10, 20], [1.0, 2.0, 3.0], k_n=[1, 2, 4])
  plots.plot_accuracy_against_k({'': {'pruned': curve}}, drawn[0])
  (line,) = drawn[1].get_axes()[0].lines
  assert line.get_xydata().tolist() == [[1, 1], [2, 2], [4, 3]]


def test_tokens_saved(drawn):
  whole_n, pruned_n = np.array([50.0, 60, 65]), np.array([49.0, 58, 64.5])
  saved = plots.Saved(
    '0.44 M', [2, 8, 32], whole_n, pruned_n, [0.9, 0.6, 0.5], [-2] * 3, [0] * 3
  )
  plots.plot_tokens_saved([saved], drawn[0])
  accuracy, difference, share = drawn[1].get_axes()
  shown = [line.get_ydata().tolist() for line in accuracy.lines]
  assert shown == [whole_n.tolist(), pruned_n.tolist()]
  np.testing.assert_allclose(difference.lines[0].get_ydata(), [-1, -2, -0.5])
  np.testing.assert_allclose(share.lines[0].get_ydata(), [90, 60, 50])
  assert share.get_ylim()[0] == 0 and len(_bands(difference)) == 1
  assert _labels(drawn[1]) == [
    '0.44 M',
    'without pruning',
    'band: 95 % interval',
  ]


def test_the_published_table(drawn):
  published_plot.plot_published(drawn[0])
  axes = drawn[1].get_axes()
  assert [ax.get_title('left') for ax in axes[:4]] == [*published.BENCHMARKS]
  shown = {tuple(line.get_ydata()) for line in axes[0].lines}
  assert (44.0, 53.1, 57.9) in shown and (82.4, 85.4, 86.5) in shown
  # Bases at k = 1: of three models on AIME24.
  bases = [line for line in axes[0].lines if line.get_mfc() == 'white']
  assert [(*x.get_xdata(), *x.get_ydata()) for x in bases] == [
    (1, 43.1),
    (1, 55.5),
    (1, 79.5),
  ]
  (stairs,) = (x for x in axes[4].lines if x.get_drawstyle() == 'steps-post')
  best = [44, 53.1, 60.7, 66.3, 82.4, 85.4, 86.5]
  assert stairs.get_ydata().tolist() == best + best[-1:]


def test_labels_of_users_are_no_formulas_and_not_left_out(drawn):
  labels = ['$\\nonsense{$', '_hidden', 'long ' * 40]
  curves = [_curve(label=label, shift=i) for i, label in enumerate(labels)]
  plots.plot_accuracy_against_compute(
    curves, drawn[0], title='$\\frac$', compute_name='US$ or $\\frac$'
  )
  shown = _labels(drawn[1])[:3]
  assert shown[0].startswith(r'\$\nonsense{\$ (') and '_hidden (' in shown[1]
  assert len(shown[2]) < 80


def test_sixty_four_curves_look_different():
  assert len({plots.parts.look(i) for i in range(64)}) == 64


@pytest.mark.parametrize(
  ('draw', 'message'),
  [
    (lambda path: plots.plot_accuracy_against_compute([], path), 'no curve'),
    (lambda path: plots.plot_accuracy_against_k({}, path), 'no curve'),
    (lambda path: plots.plot_accuracy_against_k({'a': {}}, path), 'no curve'),
    (
      lambda path: plots.plot_accuracy_against_k(
        {'a': {'best_of_k': Curve('x', [1, 2], [1, 2])}}, path
      ),
      "'x' has no k_n",
    ),
    (lambda path: plots.plot_tokens_saved([], path), 'nothing to draw'),
    (
      lambda path: plots.plot_accuracy_against_compute(
        [_curve()], path, laws={'0.44 M': 'cubic'}
      ),
      "unknown law 'cubic'",
    ),
  ],
)
def test_nothing_is_written_where_nothing_can_be_drawn(draw, message, tmp_path):
  with pytest.raises(UserError, match=message):
    draw(tmp_path / 'picture.png')
  assert not list(tmp_path.iterdir())
