"""Votes against a count by hand; ending early changes no answer."""

import collections

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.sampling.engine import vote
from tests.sampling import tiny
from tests.sampling.engine import served

P, K = 6, 9
CONFIG = tiny.sampling_config(temperature=0.8)


def _answer(candidate):
  """A few frequent answers; some candidates have none."""
  kind = int(candidate.token_R[0]) % 4
  return None if kind == 3 else f'answer {min(kind, 1)}'


def _by_hand(candidates, kind):
  """(winner, weights), votes counted one by one."""
  weights = collections.defaultdict(float)
  for c in candidates:
    if _answer(c) is not None:
      weights[_answer(c)] += c.score if kind == 'weighted' else 1
  if not weights:
    return None, {}
  top = max(weights.values())
  return min(a for a, w in weights.items() if abs(w - top) < 1e-9), weights


@pytest.mark.parametrize('kind', ['majority', 'weighted'])
def test_elections(kind):
  with jax.enable_x64(True):

    def elections(**options):
      engine = served.engine(CONFIG, num_slots=5, turns=3)
      requests = served.requests(P, K)
      found = vote(engine, requests, _answer, kind=kind, **options)
      return {e.request.draw: e for e in found}

    whole, early = elections(early_stop=False), elections()
  assert sorted(whole) == sorted(early) == list(range(P))
  saved = 0
  for p, election in whole.items():
    assert [c.number for c in election.candidates] == list(range(K))
    winner, weights = _by_hand(election.candidates, kind)
    # Equal sums go to the first candidate's answer.
    top = [a for a, w in weights.items() if w > max(weights.values()) - 1e-9]
    if len(top) > 1:
      winner = next(
        _answer(c) for c in election.candidates if _answer(c) in top
      )
    assert election.answer == winner
    assert election.weights == pytest.approx(dict(weights))
    best = election.candidates[election.best]
    assert _answer(best) == winner
    assert best.score == max(
      c.score
      for c in election.candidates
      if _answer(c) == winner and c.finished == best.finished
    )
    assert election.tokens == sum(len(c.token_R) for c in election.candidates)
    assert early[p].answer == election.answer
    saved += election.tokens - early[p].tokens
    for c in early[p].candidates:
      other = election.candidates[c.number].token_R
      np.testing.assert_array_equal(c.token_R, other[: len(c.token_R)])
      assert c.reason == 'pruned' or len(c.token_R) == len(other)
  assert saved > 0


def test_no_votes_no_answer():
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, num_slots=5, turns=3)
    found = list(vote(engine, served.requests(2, 3), lambda c: None))
  for election in found:
    assert (election.answer, election.weights) == (None, {})
    assert len(election.candidates) == 3


def test_a_lead_is_final_only_if_nobody_can_catch_up():
  """Two against none of five: not decided; three: decided."""
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, num_slots=1, turns=16)
    (found,) = vote(engine, served.requests(1, 5), lambda c: 'same')
  assert len(found.candidates) == 3


def test_bad_calls_are_named():
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, num_slots=1)
    requests = served.requests(2, 2)
    with pytest.raises(UserError, match="vote='some'; use one of majority"):
      next(vote(engine, requests, _answer, kind='some'))
    with pytest.raises(UserError, match='one draw index'):
      next(vote(engine, [*requests, requests[0]], _answer))
