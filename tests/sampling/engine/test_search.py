"""The search against brute force: a model that re-reads, token by token."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import strategies
from metastone_jax.sampling.engine import (
  Engine,
  EngineConfig,
  Request,
  SearchConfig,
  best_of,
  search,
)
from tests.model import naive
from tests.sampling import tiny
from tests.sampling.tiny import EOS, MARK, SEED, THINK, UNTHINK, S

P, R = 4, 18
MARKS = (MARK, 5, 6)  # so that there are several steps
TEMPERATURE = 0.8
PLAIN = tiny.sampling_config(
  temperature=TEMPERATURE, max_response_length=R, step_ids=MARKS
)
BUDGET = dataclasses.replace(PLAIN, thinking_budget=7)


@pytest.fixture(scope='module')
def params():
  with jax.enable_x64(True):
    return naive.random_params(tiny.model_config(), seed=1)


def _requests(problems=range(P), **options):
  prompt, length = tiny.prompts(P)
  return [
    Request(tuple(prompt[p, : length[p]].tolist()), p, (0,), **options)
    for p in problems
  ]


def _engine(params, config=PLAIN, **shape):
  return Engine(
    params,
    SEED,
    model_config=tiny.model_config(),
    config=config,
    engine_config=EngineConfig(**{'num_slots': 5, 'turns': 3} | shape),
    sharder=Sharder(),
  )


@functools.cache
def _draw():
  return jax.jit(
    lambda logits, draw, number, place: strategies.draw_tokens(
      logits,
      strategies.keys(np.int32(SEED), draw, number),
      place,
      greedy=False,
    )
  )


class BruteForce:
  """One problem, on lists; a beam is (number, tokens, their z, last z)."""

  def __init__(self, params, config, request, scores):
    self.params, self.config, self.request = params, config, request
    self.scores = scores
    self.used, self.tokens, self.read, self.flops = set(), 0, 0, 0.0
    self.rounds = 0

  def search(self, kind, N, W, step_tokens):
    if kind == 'beam':
      trees = [self.tree(range(N), 1, N, W, N // W, step_tokens)]
    else:
      T = N // W
      trees = [
        self.tree(range(t, N, T), T, N + t, W, 1, step_tokens) for t in range(T)
      ]
    # The trees read their prompt together.
    self.count_read(len(self.request.read), 1 - len(trees))
    final = sorted((b for tree in trees for b in tree), key=lambda b: b[0])
    return final, max(
      range(len(final)),
      key=lambda i: (self.complete(final[i]), self.score(final[i])),
    )

  def tree(self, numbers, stride, fresh, W, keep, step_tokens):
    self.count_read(len(self.request.read))
    beams = [(number, [], [], None) for number in numbers]
    waiting, rounds = [], 0
    while beams:
      rounds += 1
      beams = self.write(beams, step_tokens)
      ranked = sorted(
        waiting + beams,
        key=lambda b: (self.cut(b), -self.score(b), b[0]),
      )
      kept = sorted(ranked[:keep], key=lambda b: b[0])
      waiting = [b for b in kept if self.cut(b) or self.over(b)]
      beams = []
      for number, *written in kept:
        if any(b[0] == number for b in waiting):
          continue
        self.count_read(len(self.request.read) + len(written[0]))
        beams.append((number, *written))
        for _ in range(W - 1):
          beams.append((fresh, *written))
          fresh += stride
    self.rounds = max(self.rounds, rounds)
    short = [b for b in waiting if not self.complete(b) and not self.cut(b)]
    for beam in short:
      self.count_read(len(self.request.read) + len(beam[1]))
    done = [b for b in waiting if b not in short]
    return done + (self.write(short, None) if short else [])

  def write(self, beams, step_tokens):
    """Each to the end of its step, or of its answer (None)."""
    beams = [(n, list(t), list(z), last) for n, t, z, last in beams]
    count = {b[0]: 0 for b in beams}
    live = [b[0] for b in beams]
    while live:
      logits, z = self.reread(beams)
      for i, (number, tokens, logit, _) in enumerate(beams):
        beams[i] = (number, tokens, logit, z[i])
        if number not in live:
          continue
        token = int(self.drawn(logits[i], number, len(tokens)))
        assert (number, len(tokens)) not in self.used
        self.used.add((number, len(tokens)))
        budget = self.config.thinking_budget
        if budget and self.num_thinking(tokens) >= budget:
          token = UNTHINK
        self.tokens += 1
        self.flops += tiny.model_config().forward_flops(
          1, len(self.request.read) + len(tokens) + 1
        )
        tokens.append(token)
        logit.append(z[i])
        count[number] += 1
        ends = {EOS} if step_tokens is None else {EOS, UNTHINK, *MARKS}
        if (
          token in ends
          or count[number] == step_tokens
          or len(tokens) == self.config.max_response_length
        ):
          live.remove(number)
    _, z = self.reread(beams)
    return [(*b[:3], z[i]) for i, b in enumerate(beams)]

  def reread(self, beams):
    token = np.zeros((1, 8, R), np.int32)
    for i, beam in enumerate(beams):
      token[0, i, : len(beam[1])] = beam[1]
    prompt = np.zeros((1, S), np.int32)
    prompt[0, : len(self.request.read)] = self.request.read
    length = np.array([len(self.request.read)])
    logits, z = tiny.reread(self.params, prompt, length, token)
    at = [len(beam[1]) for beam in beams]
    return (
      [logits[0, i, a] for i, a in enumerate(at)],
      [float(z[0, i, a]) for i, a in enumerate(at)],
    )

  def drawn(self, logits, number, place):
    arguments = (self.request.draw, number, place)
    return _draw()(
      logits[None] / TEMPERATURE,
      *(np.array([x], np.int32) for x in arguments),
    )[0]

  def num_thinking(self, tokens):
    """-1 where no <think> is open."""
    inside, count = False, 0
    for i, token in enumerate([*self.request.prompt, *tokens]):
      inside &= token != UNTHINK
      count += inside and i >= len(self.request.prompt)
      inside |= token == THINK
    return count if inside else -1

  def count_read(self, tokens, times=1):
    self.read += times * tokens
    head = 2 * tokens * tiny.model_config().width * tiny.V
    for place in range(tokens):
      self.flops += times * tiny.model_config().forward_flops(1, place + 1)
    self.flops -= times * head

  def complete(self, beam):
    return beam[1][-1] == EOS

  def over(self, beam):
    return self.complete(beam) or UNTHINK in beam[1]

  def cut(self, beam):
    return not self.complete(beam) and len(beam[1]) == R

  def score(self, beam):
    """Over the marks between <think>, in the prompt, and the last </think>."""
    _, tokens, z, last = beam
    closed = UNTHINK in tokens
    end = len(tokens) - tokens[::-1].index(UNTHINK) if closed else len(tokens)
    row = [THINK, *tokens]
    p = [
      1 / (1 + np.exp(-z[i]))
      for i, token in enumerate(tokens[:end])
      if token in MARKS and row[i] not in (THINK, *MARKS)
    ]
    if not p:
      return 1 / (1 + np.exp(-(z[end - 1] if closed else last)))
    return self.scores(p)


SCORES = {
  'geometric': lambda p: np.exp(np.mean(np.log(p))),
  'arithmetic': np.mean,
  'product': np.prod,
  'min': min,
  'last': lambda p: p[-1],
}


@pytest.mark.parametrize(
  ('kind', 'N', 'W', 'step_tokens', 'aggregator', 'config'),
  [
    ('beam', 8, 2, R, 'geometric', PLAIN),
    ('beam', 6, 6, 2, 'product', PLAIN),
    ('beam', 8, 4, 3, 'last', BUDGET),
    ('dvts', 8, 4, R, 'min', PLAIN),
    ('dvts', 6, 2, 4, 'arithmetic', BUDGET),
  ],
)
def test_search_is_brute_force(
  params, kind, N, W, step_tokens, aggregator, config
):
  with jax.enable_x64(True):
    engine = _engine(params, config)
    # Scores are the host's: the compiled programs are those of `config`.
    engine.config = dataclasses.replace(config, aggregator=aggregator)
    found = list(
      search(engine, _requests(), SearchConfig(kind, N, W, step_tokens))
    )
    assert sorted(a.request.draw for a in found) == list(range(P))
    for answer in found:
      force = BruteForce(params, config, answer.request, SCORES[aggregator])
      wanted, best = force.search(kind, N, W, step_tokens)
      assert [c.number for c in answer.candidates] == [b[0] for b in wanted]
      for candidate, beam in zip(answer.candidates, wanted, strict=True):
        assert candidate.token_R.tolist() == beam[1]
        assert candidate.finished == force.complete(beam)
        np.testing.assert_allclose(
          candidate.score, force.score(beam), rtol=1e-9
        )
      assert answer.best == best
      assert answer.token_A.tolist() == wanted[best][1]
      assert answer.finished == force.complete(wanted[best])
      assert answer.rounds == force.rounds
      assert (answer.tokens, answer.read) == (force.tokens, force.read)
      np.testing.assert_allclose(answer.flops, force.flops, rtol=1e-9)
  # It was a search: some beams were dropped, and some problem took a while.
  assert max(a.rounds for a in found) > 2
  assert sum(a.tokens for a in found) > sum(
    len(c.token_R) for a in found for c in a.candidates
  )


def _plain(answer):
  """All of an answer but the request, comparable."""
  return (
    answer.best,
    answer.finished,
    answer.tokens,
    answer.rounds,
    answer.read,
    [(c.number, c.reason, c.token_R.tolist()) for c in answer.candidates],
    [c.forced_R.tolist() for c in answer.candidates],
    [c.step_mask_R.tolist() for c in answer.candidates],
  )


def test_neither_slots_nor_other_problems_matter(params):
  config = SearchConfig('dvts', 6, 3, 5)
  with jax.enable_x64(True):
    wanted = {
      a.request.draw: _plain(a)
      for a in search(_engine(params), _requests(), config)
    }
    alone = search(_engine(params), _requests([2]), config)
    assert [_plain(a) for a in alone] == [wanted[2]]
    for shape in (
      dict(num_slots=1, turns=2),
      dict(num_slots=24, num_prompts=2, turns=16),
    ):
      found = search(_engine(params, **shape), _requests()[::-1], config)
      assert {a.request.draw: _plain(a) for a in found} == wanted


@pytest.mark.parametrize('kind', ['beam', 'dvts'])
def test_one_child_each_is_best_of_n(params, kind):
  k = 4
  whole = [
    dataclasses.replace(r, candidates=tuple(range(k))) for r in _requests()
  ]
  with jax.enable_x64(True):
    wanted = {a.request.draw: a for a in best_of(_engine(params), whole)}
    found = list(
      search(_engine(params), _requests(), SearchConfig(kind, k, 1, 4))
    )
  for answer in found:
    want = wanted.pop(answer.request.draw)
    assert (answer.best, answer.tokens) == (want.best, want.tokens)
    np.testing.assert_array_equal(answer.token_A, want.token_A)
    for candidate, other in zip(
      answer.candidates, want.candidates, strict=True
    ):
      assert candidate.number == other.number
      assert candidate.reason == other.reason
      np.testing.assert_array_equal(candidate.token_R, other.token_R)
      for name in ('log_prob_R', 'step_logit_R', 'score'):
        np.testing.assert_allclose(
          getattr(candidate, name), getattr(other, name), rtol=1e-9
        )
  assert not wanted


def test_a_response_that_is_half_written(params):
  """What exists already counts in limits; the search goes on behind it."""
  config = SearchConfig('beam', 4, 2, 5)
  written = (7, 8, MARK, 9)
  (request,) = _requests([1], written=written, max_tokens=10)
  with jax.enable_x64(True):
    (answer,) = search(_engine(params), [request], config)
    (prompt,) = _requests([1])
    longer = dataclasses.replace(
      prompt, prompt=prompt.prompt + written, max_tokens=6
    )
    (other,) = search(_engine(params), [longer], config)
    closed = dataclasses.replace(request, written=(7, UNTHINK))
    (after,) = search(_engine(params), [closed], config)
  assert all(len(c.token_R) <= 6 for c in answer.candidates)
  # Positions, and so the noise, are those of the response.
  assert answer.token_A.tolist() != other.token_A.tolist()
  assert answer.read > len(request.read)
  # There is no thinking left to search.
  assert after.rounds == 0


def test_bad_calls_are_named(params):
  for options, message in (
    (dict(kind='mcts'), "search.kind must be one of beam, dvts: got 'mcts'"),
    (dict(beams=0), 'search.beams must be at least 1: got 0'),
    (dict(beams=6, width=4), 'search.width must be a divisor of the 6 beams'),
    (dict(step_tokens=0), 'search.step_tokens must be at least 1'),
  ):
    with pytest.raises(UserError, match=message):
      SearchConfig(**options)
  config = SearchConfig('beam', 4, 2)
  engine = _engine(params, context=S + 8)
  with pytest.raises(UserError, match='do not fit the context'):
    next(search(engine, _requests(), config))
  engine = _engine(params)
  with pytest.raises(UserError, match='one draw index'):
    next(search(engine, [*_requests(), _requests()[0]], config))
  with pytest.raises(UserError, match="ends='some'; use one of response"):
    list(engine.run(_requests(ends='some')))
