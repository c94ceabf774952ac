"""What scoring costs: none, in the loop, by a separate reward model.

`off` is the same engine whose score head gives zeros without reading a feature,
and whose host finds no marks and no scores; XLA drops what nobody reads. The
tokens are the same, which is checked. `prm` draws as `off` does; then a second
copy of the backbone reads what was drawn (`prm.RewardModel`), and its scores
must be those of the loop. At the sizes of real models the shares are counted
(tests/benchmarks/head_cost.py, metastone_jax/scaling/runs/head_cost.py).
"""

import contextlib
from unittest import mock

import jax.numpy as jnp
import numpy as np

from metastone_jax.model import ReflectiveModel
from metastone_jax.sampling.engine import programs
from metastone_jax.scaling.runs import head_cost as against_prm
from metastone_jax.training.loop import draws
from tests.benchmarks import head_cost
from tests.benchmarks.sampler import prm, timing, work

TARGET, COUNTED_TARGET = 1.05, 0.01
WORKS = (
  work.Work('tiny', 16, 8, 32, 128, 32, ends=48, temperature=1.0),
  work.Work('small', 8, 8, 64, 128, 32, ends=48, temperature=1.0),
  # Traces that are long beside their prompt, all of one length.
  work.Work('small', 4, 8, 32, 256, 32, temperature=1.0),
)


def _no_score(row_BT, read_B, length_B, step_logit_BR, *_):
  return np.zeros(step_logit_BR.shape, bool), np.zeros(len(length_B))


@contextlib.contextmanager
def unscored():
  """Programs that are traced in here do not score."""

  def nothing(self, feature, *_, **__):
    zero = jnp.zeros(feature.shape[:2], jnp.float32)
    return zero, zero

  def no_logit(self, feature):
    return jnp.zeros(feature.shape[:2], jnp.float32)

  programs.jitted.cache_clear()
  with (
    mock.patch.object(ReflectiveModel, 'step_scores', nothing),
    mock.patch.object(ReflectiveModel, 'score', no_logit),
    mock.patch.object(draws, 'judge', _no_score),
  ):
    yield
  programs.jitted.cache_clear()


def run(repeats: int) -> None:
  """Prints the tables."""
  print(
    'Scoring in the loop: on over off, target: upper end under '
    f'{TARGET:.2f}; counted shares under {COUNTED_TARGET:.0%}. prm: a separate '
    'reward model of the same backbone reads every finished trace'
  )
  for one in WORKS:
    engine_on = work.engine_form(one)
    scored = engine_on(1)
    with unscored():
      engine_off = work.engine_form(one)
      drawn = engine_off(1)
    for key, (token, _) in scored.items():
      np.testing.assert_array_equal(drawn[key][0], token)
    assert not any(score for _, score in drawn.values())
    reward_model = prm.RewardModel(one)
    work.check_same(scored, reward_model.judge(drawn))
    marks = sum(
      np.isin(token, one.sampling.step_ids).sum()
      for token, _ in scored.values()
    )
    tokens = work.count(scored)

    def draw(form=engine_off):
      # The host's part; the programs are compiled.
      with mock.patch.object(draws, 'judge', _no_score):
        return form(1)

    forms = {
      'off': lambda draw=draw: draw(),
      'on': lambda form=engine_on: form(1),
      'prm': lambda draw=draw, judge=reward_model.judge: judge(draw()),
    }
    found = timing.take_turns(
      {
        name: timing.timed(lambda form=form: work.count(form()))
        for name, form in forms.items()
      },
      repeats,
    )
    print(
      f'{work.describe(one.model)}\n{one}; {tokens / marks:.0f} tokens a mark'
    )
    print('\n'.join(timing.table(found, 'off')))
    ratio = timing.median(timing.ratios(found, 'prm', 'on'))
    head, separate = prm.counted(one, scored)
    print(
      f'  prm {ratio} x on; counted FLOPs of judging over drawing: head '
      f'{head:.2%}, prm {separate:.1%}',
      flush=True,
    )
  head_cost.main()
  print('\n'.join(against_prm.table(against_prm.head_against_prm())))
