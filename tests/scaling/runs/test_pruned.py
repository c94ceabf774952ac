"""Replayed pruning against the engine's own, fed token by token."""

import types

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.model import preset
from metastone_jax.sampling import SamplingConfig
from metastone_jax.sampling.engine import Candidate, Request
from metastone_jax.sampling.engine.candidates import Draft
from metastone_jax.sampling.engine.pruning import Rejection
from metastone_jax.scaling import strategies
from metastone_jax.scaling.runs.pruned import StepMarks
from metastone_jax.training.loop.draws import stack

MARK, END, STOP, WORD, START = 1, 2, 3, 4, 5
R, N = 24, 8
CONFIG = SamplingConfig(
  max_response_length=R,
  eos_id=STOP,
  pad_id=0,
  step_ids=(MARK,),
  think_start_id=START,
  think_end_id=END,
)
PROMPT = (WORD, START)


def candidate(rng, draw, number):
  """Steps of 2 to 3 tokens, of which the first has 2: a mark by 4 tokens."""
  tokens = [WORD, MARK]
  for _ in range(rng.integers(0, 6)):
    tokens += [WORD] * rng.integers(1, 3) + [MARK]
  tokens += [END, WORD, STOP]
  tokens = np.array(tokens[:R], np.int32)
  judged = (tokens == MARK) | (tokens == END)
  z_R = np.where(judged, rng.standard_normal(len(tokens)), 0)
  return Candidate(
    Request(PROMPT, draw, tuple(range(N))),
    number,
    'stop',
    tokens,
    np.zeros(len(tokens)),
    np.zeros(len(tokens), bool),
    z_R,
    0.0,
    CONFIG,
  )


def drawn(seed, problems):
  rng = np.random.default_rng(seed)
  return [
    [candidate(rng, draw, number) for number in range(N)]
    for draw in range(problems)
  ]


def marks_of(candidates):
  flat = [c for row in candidates for c in row]
  rollout = stack(flat, len(candidates), CONFIG)
  prompt = np.full(len(candidates), len(PROMPT))
  return StepMarks.of_rollout(rollout, prompt, 'geometric'), rollout


def samples_of(candidates, rollout):
  P = len(candidates)
  thinking = [
    [int(np.flatnonzero(c.token_R == END)[0]) + 1 for c in row]
    for row in candidates
  ]
  shape = (P, N)
  return EvaluationSamples(
    task='made',
    scores_PN=rollout.score_PN,
    correct_PN=np.zeros(shape, bool),
    answers_PN=np.zeros(shape, int),
    finished_PN=np.ones(shape, bool),
    tokens_PN=rollout.length_PN,
    problem_ids=[str(p) for p in range(P)],
    thinking_PN=np.array(thinking),
    read_flops_P=np.zeros(P),
    write_flops_PN=np.zeros(shape),
  )


def cut(c, tokens):
  """The draft that a candidate was when it had so many tokens."""
  part = (c.token_R, c.log_prob_R, c.forced_R, c.step_logit_R)
  return Draft(
    c.request,
    c.number,
    0,
    tokens,
    [tuple(x[:tokens] for x in part)],
    c.last_logit,
  )


def by_the_engine(candidates, first):
  """Thinking tokens that `Rejection` lets each candidate draw, one by one."""
  prune = Rejection(CONFIG, first=first)
  alive, stopped = dict(enumerate(candidates)), {}
  for tokens in range(1, R):
    thinking = {
      n: cut(c, tokens)
      for n, c in alive.items()
      if END not in c.token_R[:tokens]
    }
    for draft in prune(list(thinking.values()), []):
      stopped[draft.number] = tokens
      del alive[draft.number]
  return [
    stopped.get(n, int(np.flatnonzero(c.token_R == END)[0]) + 1)
    for n, c in enumerate(candidates)
  ]


@pytest.mark.parametrize('first', [2, 3, 4])
def test_the_engine_would_have_drawn_the_same_tokens(first):
  candidates = drawn(first, 12)
  marks, rollout = marks_of(candidates)
  samples = samples_of(candidates, rollout)
  seen = marks.milestones(samples, first, preset('tiny'))
  np.testing.assert_array_equal(
    seen.tokens_J[:3], [first, 2 * first, 4 * first]
  )
  found = strategies.pruned_best_of_k(samples, seen, N)
  expected = [sum(by_the_engine(row, first)) for row in candidates]
  np.testing.assert_array_equal(found.thinking_P, expected)
  assert found.thinking_P.sum() < 0.9 * samples.thinking_PN.sum()


def test_running_scores_are_those_of_cut_candidates():
  candidates = drawn(7, 5)
  marks, _ = marks_of(candidates)
  for tokens in (1, 2, 5, 9, R):
    score_PN = marks.running_score(tokens)
    for p, row in enumerate(candidates):
      for n, c in enumerate(row):
        part = cut(c, min(tokens, len(c.token_R)))
        if tokens == 1:
          assert np.isnan(score_PN[p, n])
        else:
          assert score_PN[p, n] == pytest.approx(
            Rejection(CONFIG).running_score(part), rel=1e-6
          )


def test_costs_of_a_milestone_are_those_of_the_model():
  candidates = drawn(3, 4)
  marks, rollout = marks_of(candidates)
  config = preset('tiny')
  seen = marks.milestones(samples_of(candidates, rollout), 5, config)
  c = candidates[1][2]
  number = int((c.token_R[:5] == MARK).sum())
  assert seen.flops_PNJ[1, 2, 0] == pytest.approx(
    config.decode_flops(5, len(PROMPT)) + config.score_flops(number)
  )


def test_marks_travel_as_a_file(tmp_path):
  marks, _ = marks_of(drawn(1, 2))
  found = StepMarks.load(marks.save(tmp_path / 'marks.npz'))
  for name in ('logit_PNS', 'place_PNS', 'prompt_P', 'aggregator'):
    np.testing.assert_array_equal(getattr(found, name), getattr(marks, name))
  (tmp_path / 'half.npz').write_bytes(
    (tmp_path / 'marks.npz').read_bytes()[:100]
  )
  for name in ('half.npz', 'none.npz'):
    with pytest.raises(UserError, match=name):
      StepMarks.load(tmp_path / name)


def test_marks_of_other_samples_are_refused():
  candidates = drawn(1, 2)
  marks, _ = marks_of(candidates)
  other = types.SimpleNamespace(shape=(3, N))
  with pytest.raises(UserError, match='do not belong'):
    marks.milestones(other, 4, preset('tiny'))
