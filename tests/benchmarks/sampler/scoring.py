"""What scoring inside the loop costs: the engine with and without it.

`off` is the same engine whose score head gives zeros without reading a feature,
and whose host finds no marks and no scores; XLA drops what nobody reads. The
tokens are the same, which is checked. At the sizes of real models the shares
are counted (tests/benchmarks/head_cost.py).
"""

import contextlib
from unittest import mock

import jax.numpy as jnp
import numpy as np

from metastone_jax.model import ReflectiveModel
from metastone_jax.sampling.engine import programs
from metastone_jax.training.loop import draws
from tests.benchmarks import head_cost
from tests.benchmarks.sampler import timing, work

TARGET, COUNTED_TARGET = 1.05, 0.01
WORKS = (
  work.Work('tiny', 16, 8, 32, 128, 32, ends=48, temperature=1.0),
  work.Work('small', 8, 8, 64, 128, 32, ends=48, temperature=1.0),
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
    f'{TARGET:.2f}; counted shares under {COUNTED_TARGET:.0%}'
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
    marks = sum(
      np.isin(token, one.sampling.step_ids).sum()
      for token, _ in scored.values()
    )
    tokens = work.count(scored)

    def off(form=engine_off):
      # The host's part; the programs are compiled.
      with mock.patch.object(draws, 'judge', _no_score):
        return work.count(form(1))

    def on(form=engine_on):
      return work.count(form(1))

    found = timing.take_turns(
      {'off': timing.timed(off), 'on': timing.timed(on)}, repeats
    )
    print(
      f'{work.describe(one.model)}\n{one}; {tokens / marks:.0f} tokens a mark'
    )
    print('\n'.join(timing.table(found, 'off')), flush=True)
  head_cost.main()
