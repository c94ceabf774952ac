"""Pruning against a simulation over complete responses."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.sampling.engine import Rejection, best_of
from metastone_jax.sampling.engine.candidates import score_of
from tests.sampling import tiny
from tests.sampling.engine import served

P, K, TURNS = 4, 6, 2
CONFIG = tiny.sampling_config(temperature=0.8)


def _simulated(candidates, first, keep, least):
  """Tokens that each candidate keeps, from the complete ones of a problem."""
  kept, milestone, t, best = {}, first, 0, -math.inf
  live = {c.number: c for c in candidates}
  while live:
    t += TURNS
    for number, c in list(live.items()):
      if len(c.token_R) <= t:
        del live[number]
        best = max(best, c.score) if c.finished else best
    running = {n: _running(c, t) for n, c in live.items()}
    order = sorted(live, key=lambda n: -running[n])
    closed = [n for n in order if tiny.UNTHINK in live[n].token_R[:t]]
    thinking = [n for n in order if n not in closed]
    gone = closed
    if closed and running[closed[0]] > best:
      gone = closed[1:]
    if milestone and thinking and t >= milestone:
      milestone *= 2
      gone = gone + thinking[max(least, math.ceil(keep * len(thinking))) :]
    for number in gone:
      kept[number] = t
      del live[number]
  return {c.number: kept.get(c.number, len(c.token_R)) for c in candidates}


def _running(candidate, t):
  """Score of its first t tokens."""
  token_R = candidate.token_R[:t]
  last = served.last_logit(candidate.request, token_R)
  z_R = candidate.step_logit_R[:t]
  return score_of(candidate.request.read, token_R, z_R, last, CONFIG)[1]


@pytest.mark.parametrize(
  'rule',
  [
    dict(first=0),
    dict(first=2),
    dict(first=4, keep=0.3),
    dict(first=2, least=3),
  ],
)
def test_the_worst_are_given_up(rule):
  with jax.enable_x64(True):
    whole = list(
      served.engine(CONFIG, num_slots=P * K).run(served.requests(P, K))
    )
    engine = served.engine(CONFIG, num_slots=P * K, turns=TURNS)
    found = list(engine.run(served.requests(P, K), Rejection(CONFIG, **rule)))
    pruned = 0
    for p in range(P):
      mine = [c for c in whole if c.request.draw == p]
      wanted = _simulated(mine, **{'keep': 0.5, 'least': 1} | rule)
      got = {c.number: c for c in found if c.request.draw == p}
      assert {n: len(c.token_R) for n, c in got.items()} == wanted
      for c in mine:
        cut = wanted[c.number] < len(c.token_R)
        pruned += cut
        assert (got[c.number].reason == 'pruned') == cut
        np.testing.assert_array_equal(
          got[c.number].token_R, c.token_R[: wanted[c.number]]
        )
  assert pruned > P


def test_beaten_traces_cost_no_winner():
  """Unless the better trace is cut off before it has answered."""
  with jax.enable_x64(True):

    def answers(prune):
      engine = served.engine(CONFIG, num_slots=P * K, turns=TURNS)
      found = best_of(engine, served.requests(P, K), prune=prune)
      return {answer.request.draw: answer for answer in found}

    whole, pruned = answers(None), answers(Rejection(CONFIG))
  same = 0
  for p, answer in whole.items():
    closed = [c for c in answer.candidates if tiny.UNTHINK in c.token_R]
    winner = answer.candidates[answer.best]
    if all(c.finished or c.score <= winner.score for c in closed):
      same += 1
      assert pruned[p].best == answer.best
      np.testing.assert_array_equal(pruned[p].token_A, answer.token_A)
  assert same > 1
  assert sum(a.tokens for a in pruned.values()) < sum(
    a.tokens for a in whole.values()
  )


def test_the_answer_after_the_best_trace_is_not_pruned():
  """It is written to its end, behind whatever trace was chosen."""
  requests = served.requests(P, K, max_tokens=tiny.R)
  config = dataclasses.replace(CONFIG, max_response_length=tiny.R + 20)

  def answers(prune):
    engine = served.engine(config, num_slots=P * K, turns=TURNS)
    found = best_of(
      engine, requests, form='trace', answer_length=20, prune=prune
    )
    return {a.request.draw: a.token_A.tolist() for a in found}

  with jax.enable_x64(True):
    assert answers(Rejection(config)) == answers(None)


@pytest.mark.parametrize('released', [False, True])
def test_a_candidate_given_up_does_not_win(released):
  config = dataclasses.replace(CONFIG, released_selection=released)
  with jax.enable_x64(True):
    engine = served.engine(config, num_slots=K, turns=TURNS)
    answers = list(
      best_of(engine, served.requests(P, K), prune=Rejection(config, first=2))
    )
  assert len(answers) == P
  for answer in answers:
    assert any(c.reason == 'pruned' for c in answer.candidates)
    assert answer.candidates[answer.best].reason != 'pruned'


@pytest.mark.parametrize(
  'rule', [dict(first=-1), dict(first=1, keep=1.0), dict(first=1, least=0)]
)
def test_rules_that_cannot_be_are_named(rule):
  with pytest.raises(UserError, match='pruning needs first >= 0'):
    Rejection(CONFIG, **rule)
