"""Best of k through the engine: the winners of the one compiled program."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import best_of_k
from metastone_jax.sampling.engine import best_of
from tests import quick
from tests.sampling import tiny
from tests.sampling.engine import served
from tests.sampling.tiny import SEED, R

P, K, A = 6, 4, 5


def _requests():
  return served.requests(P, K, max_tokens=R)


def _engine(config):
  # The engine's responses hold the answer too.
  longer = dataclasses.replace(config, max_response_length=R + A)
  return served.engine(longer, num_slots=5, turns=3)


@pytest.mark.parametrize('released', [False, True])
@pytest.mark.parametrize('form', ['complete', 'trace'])
def test_winners_and_answers_are_those_of_one_program(form, released):
  config = tiny.sampling_config(temperature=0.8, released_selection=released)
  prompt, length = tiny.prompts(P)
  program = functools.partial(
    best_of_k,
    k=K,
    model_config=tiny.model_config(),
    config=config,
    form=form,
    answer_length=A if form == 'trace' else 0,
    sharder=Sharder(),
  )
  with jax.enable_x64(True):
    wanted = jax.device_get(
      quick.jit(program)(
        served.params(),
        prompt,
        length,
        np.int32(SEED),
        np.arange(P, dtype=np.int32),
      )
    )
    found = list(
      best_of(_engine(config), _requests(), form=form, answer_length=A)
    )
  assert sorted(a.request.draw for a in found) == list(range(P))
  for answer in found:
    p = answer.request.draw
    assert answer.best == wanted.best_P[p]
    count = wanted.answer_length_P[p]
    np.testing.assert_array_equal(answer.token_A, wanted.answer_PA[p, :count])
    assert answer.finished == wanted.answer_finished_P[p]
    drawn = wanted.candidates
    for n, candidate in enumerate(answer.candidates):
      assert candidate.number == n
      size = drawn.length_PN[p, n]
      np.testing.assert_array_equal(
        candidate.token_R, drawn.token_PNR[p, n, :size]
      )
      np.testing.assert_allclose(
        candidate.score, drawn.score_PN[p, n], rtol=1e-9
      )
    extra = count - len(answer.candidates[answer.best].token_R)
    assert answer.tokens == drawn.length_PN[p].sum() + extra


def test_bad_calls_are_named():
  engine = _engine(tiny.sampling_config())
  for options, message in (
    (dict(form='some'), "form='some'; use one of complete, trace"),
    (dict(form='trace'), 'answer_length=0 must be at least 1'),
  ):
    with pytest.raises(UserError, match=message):
      next(best_of(engine, _requests(), **options))
  # The answer does not fit: said before anything is drawn.
  with pytest.raises(UserError, match='max_tokens=16 must lie in'):
    next(best_of(engine, _requests(), form='trace', answer_length=A + 1))
  assert engine.turns == 0
  with pytest.raises(UserError, match='one draw index'):
    next(best_of(engine, [*_requests(), _requests()[0]]))
