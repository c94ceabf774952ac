"""The engine against the one compiled program, whatever shares the slots."""

import functools

import jax
import numpy as np
import pytest

from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import sample
from metastone_jax.sampling.engine import Engine, EngineConfig, Request
from tests import quick
from tests.model import naive
from tests.sampling import tiny
from tests.sampling.tiny import SEED

P, N = 6, 4
CONFIG = tiny.sampling_config(temperature=0.8)


@pytest.fixture(scope='module')
def params():
  with jax.enable_x64(True):
    return naive.random_params(tiny.model_config(), seed=1)


@functools.cache
def _wanted():
  """(P, N) rollout of the fixed batch, in float64."""
  prompt, length = tiny.prompts(P)
  with jax.enable_x64(True):
    program = functools.partial(
      sample,
      model_config=tiny.model_config(),
      config=CONFIG,
      sharder=Sharder(),
    )
    return jax.device_get(
      quick.jit(program)(
        naive.random_params(tiny.model_config(), seed=1),
        prompt,
        length,
        np.int32(SEED),
        np.arange(P, dtype=np.int32),
        np.arange(N, dtype=np.int32),
      )
    )


def _requests(problems=range(P), candidates=range(N)):
  prompt, length = tiny.prompts(P)
  return [
    Request(
      prompt=tuple(prompt[p, : length[p]].tolist()),
      draw=p,
      candidates=tuple(candidates),
    )
    for p in problems
  ]


def _engine(params, sharder=None, config=CONFIG, **shape):
  return Engine(
    params,
    SEED,
    model_config=tiny.model_config(),
    config=config,
    engine_config=EngineConfig(**shape),
    sharder=sharder or Sharder(),
  )


def _check(found, wanted, problems, candidates):
  assert sorted((c.request.draw, c.number) for c in found) == [
    (p, n) for p in problems for n in candidates
  ]
  for c in found:
    p, n = c.request.draw, c.number
    count = wanted.length_PN[p, n]
    assert len(c.token_R) == count
    np.testing.assert_array_equal(c.token_R, wanted.token_PNR[p, n, :count])
    assert c.finished == wanted.finished_PN[p, n]
    assert c.reason == ('stop' if c.finished else 'length')
    np.testing.assert_array_equal(
      c.step_mask_R, wanted.step_mask_PNR[p, n, :count]
    )
    for name in ('log_prob', 'forced', 'step_logit'):
      np.testing.assert_allclose(
        getattr(c, f'{name}_R'),
        getattr(wanted, f'{name}_PNR')[p, n, :count],
        rtol=1e-9,
        atol=1e-12,
      )
    np.testing.assert_allclose(c.score, wanted.score_PN[p, n], rtol=1e-9)


@pytest.mark.parametrize(
  'shape',
  [
    dict(num_slots=P * N, turns=16),  # all at once
    dict(num_slots=5, turns=3),  # refills in the middle of groups
    dict(num_slots=5, turns=2, num_prompts=2),  # slots wait for a prompt row
    dict(num_slots=1, turns=4),  # one after the other
  ],
  ids=str,
)
def test_tokens_do_not_depend_on_the_slots(params, shape):
  with jax.enable_x64(True):
    found = list(_engine(params, **shape).run(_requests()))
  _check(found, _wanted(), range(P), range(N))


def test_any_order_any_part(params):
  """After a restart: what is missing, in another order."""
  with jax.enable_x64(True):
    engine = _engine(params, num_slots=4, turns=3)
    found = list(engine.run(_requests([4, 1], [3, 1])))
    again = list(engine.run(_requests([0], [0, 1, 2, 3])))
  _check(found, _wanted(), [1, 4], [1, 3])
  _check(again, _wanted(), [0], range(N))


@pytest.mark.parametrize('mesh', [dict(data=8), dict(data=4, tensor=2)])
def test_on_eight_devices(params, mesh):
  sharder = Sharder(make_mesh(mesh))
  with jax.enable_x64(True):
    engine = _engine(params, sharder, num_slots=8, turns=3)
    found = list(engine.run(_requests()))
  _check(found, _wanted(), range(P), range(N))
