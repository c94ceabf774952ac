"""The engine against the one compiled program, whatever shares the slots."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling.engine import EngineConfig
from metastone_jax.sampling.engine import engine as engine_lib
from tests.sampling import tiny
from tests.sampling.engine import served

P, N = 6, 4
CONFIG = tiny.sampling_config(temperature=0.8)


@functools.cache
def _wanted():
  """(P, N) rollout of the fixed batch, in float64."""
  with jax.enable_x64(True):
    return served.fixed_batch(CONFIG, *tiny.prompts(P), N)


def _requests(problems=range(P), candidates=range(N)):
  every = served.requests(P, N)
  return [
    dataclasses.replace(every[p], candidates=tuple(candidates))
    for p in problems
  ]


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
    # A problem has four slots to itself, then two for its four candidates.
    dict(num_slots=P * N, turns=10, group=N, columns=10, positions=5),
    dict(num_slots=6, turns=3, group=2),
  ],
  ids=str,
)
def test_tokens_do_not_depend_on_the_slots(shape):
  with jax.enable_x64(True):
    found = list(served.engine(CONFIG, **shape).run(_requests()))
  _check(found, _wanted(), range(P), range(N))


def test_any_order_any_part():
  """After a restart: what is missing, in another order."""
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, num_slots=4, turns=3)
    found = list(engine.run(_requests([4, 1], [3, 1])))
    again = list(engine.run(_requests([0], [0, 1, 2, 3])))
  _check(found, _wanted(), [1, 4], [1, 3])
  _check(again, _wanted(), [0], range(N))


@pytest.mark.parametrize(
  ('mesh', 'shape'),
  [
    (dict(data=8), dict(num_slots=8)),
    (dict(data=4, tensor=2), dict(num_slots=8)),
    (dict(data=4, tensor=2), dict(num_slots=32, group=4)),
  ],
  ids=str,
)
def test_on_eight_devices(mesh, shape):
  sharder = Sharder(make_mesh(mesh))
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, sharder, turns=3, **shape)
    found = list(engine.run(_requests()))
  _check(found, _wanted(), range(P), range(N))


def test_caches_grow_and_go_round(monkeypatch):
  """Columns double while candidates are written, and are used again."""
  monkeypatch.setattr(
    engine_lib, 'bucket', lambda size, least=1: 1 << (size - 1).bit_length()
  )
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, num_slots=3, turns=2)
    widths = []
    widen = engine._run['widen']
    engine._run = engine._run | {
      'widen': lambda slots, columns: (
        widths.append(columns) or widen(slots, columns)
      )
    }
    found = list(engine.run(_requests()))
  _check(found, _wanted(), range(P), range(N))
  assert widths == [4, 8, 16]
  assert engine.turns > 16  # more than there are columns


def test_nothing_moves_or_compiles_once_shapes_are_given():
  """Prompts of other lengths and numbers; the caches are as they began."""
  shape = dict(num_slots=6, turns=3, columns=10, positions=5)
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, **shape)
    kept = {'empty', 'prefill', 'admit', 'order', 'chunk'}
    engine._run = {name: engine._run[name] for name in kept}
    list(engine.run(_requests()))
    sizes = {name: engine._run[name]._cache_size() for name in kept}
    other = served.engine(CONFIG, **shape)
    short = [dataclasses.replace(r, prompt=(5, 2)) for r in _requests()]
    assert len(list(other.run(short))) == P * N
  assert {name: other._run[name]._cache_size() for name in kept} == sizes


@pytest.mark.parametrize('mesh', [None, dict(data=4, tensor=2)], ids=str)
def test_rows_of_the_store_are_added(mesh):
  """The first problem opens few rows; more come while it is written."""
  sharder = Sharder() if mesh is None else Sharder(make_mesh(mesh))
  first, *rest = _requests(candidates=[0, 1])
  queue = collections.deque([first])
  found, rows = [], []
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, sharder, num_slots=8, turns=2)
    for candidate in engine.run(queue):
      if not found:
        rows.append(engine._num_prompts)
        queue.extend(rest)
      found.append(candidate)
  rows.append(engine._num_prompts)
  _check(found, _wanted(), range(P), [0, 1])
  assert rows == ([1, 8] if mesh is None else [4, 8])


def test_one_problem_uses_every_device():
  """Its candidates are shared out; nothing waits for slots of one device."""
  request = served.requests(1, 8)
  with jax.enable_x64(True):
    alone = served.engine(CONFIG, num_slots=8, turns=2)
    wanted = {c.number: c.token_R.tolist() for c in alone.run(request)}
    sharder = Sharder(make_mesh(dict(data=8)))
    spread = served.engine(CONFIG, sharder, num_slots=8, turns=2)
    found = {c.number: c.token_R.tolist() for c in spread.run(request)}
  assert found == wanted
  assert spread.turns == alone.turns


def test_a_problem_given_up_before_it_began_takes_no_row():
  requests = _requests()
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, num_slots=1, num_prompts=1, turns=4)
    found = []
    for candidate in engine.run(requests):
      if not found:
        engine.give_up(3)
      found.append(candidate)
  _check(found, _wanted(), [0, 1, 2, 4, 5], range(N))
  assert not engine.pending(3)


def test_budgets_and_limits_are_the_requests():
  """Each candidate as in a fixed batch configured like its request."""
  prompt, length = tiny.prompts(P)
  changed = dict(max_response_length=6, thinking_budget=3)
  config = dataclasses.replace(CONFIG, **changed)
  with jax.enable_x64(True):
    _, wanted = tiny.loop(config, N, served.params(), prompt, length)
    requests = [
      dataclasses.replace(r, max_tokens=6, thinking_budget=3)
      if r.draw % 2
      else r
      for r in _requests()
    ]
    found = list(served.engine(CONFIG, num_slots=5, turns=3).run(requests))
  odd = [c for c in found if c.request.draw % 2]
  even = [c for c in found if not c.request.draw % 2]
  _check(odd, wanted, [1, 3, 5], range(N))
  _check(even, _wanted(), [0, 2, 4], range(N))
  assert any(c.forced_R.any() for c in odd)


def test_repetition_penalty_counts_prompt_and_response():
  """Greedy, token by token, from the naive model's logits."""
  config = dataclasses.replace(CONFIG, temperature=0.0, repetition_penalty=1.6)
  with jax.enable_x64(True):
    found = list(
      served.engine(config, num_slots=2, turns=3).run(_requests(range(3), [0]))
    )
    plain = dataclasses.replace(config, repetition_penalty=1.0)
    other = list(
      served.engine(plain, num_slots=2, turns=3).run(_requests(range(3), [0]))
    )
    tokens = lambda all_: {c.request.draw: c.token_R.tolist() for c in all_}  # noqa: E731
    assert tokens(found) != tokens(other)
    for c in found:
      prompt = np.array(c.request.prompt)
      logits, _ = tiny.reread(
        served.params(),
        prompt[None],
        np.array([len(prompt)]),
        c.token_R[None, None],
      )
      seen = set(prompt.tolist())
      for r, token in enumerate(c.token_R):
        row = logits[0, 0, r].copy()
        for i in seen:
          row[i] = row[i] / 1.6 if row[i] > 0 else row[i] * 1.6
        assert token == row.argmax()
        seen.add(int(token))


def test_pruned_candidates_are_handed_out_as_they_are():
  """What is given up frees its slot; the others are untouched."""
  wanted = _wanted()
  given_up = []

  def prune(drafts, ended):
    del ended
    chosen = [d for d in drafts if d.number == 2 and d.drawn >= 3]
    given_up.extend((d.request.draw, d.number) for d in chosen)
    return chosen

  with jax.enable_x64(True):
    found = list(
      served.engine(CONFIG, num_slots=5, turns=3).run(_requests(), prune)
    )
  pruned = [c for c in found if c.reason == 'pruned']
  assert len(found) == P * N
  assert sorted((c.request.draw, c.number) for c in pruned) == sorted(given_up)
  assert pruned
  for c in pruned:
    p, n = c.request.draw, c.number
    count = len(c.token_R)
    assert count < wanted.length_PN[p, n]
    np.testing.assert_array_equal(c.token_R, wanted.token_PNR[p, n, :count])
  rest = [c for c in found if c.reason != 'pruned' and c.number != 2]
  _check(rest, wanted, range(P), [0, 1, 3])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(prompt=()), 'draw index 3: the prompt is empty'),
    (dict(candidates=()), 'draw index 3: k = 0 candidates'),
    (dict(candidates=(1, 0, 1)), r'candidates=\(1, 0, 1\) names one twice'),
    (dict(prompt=(5, tiny.V)), r'lie in \[0, 12\), the vocabulary'),
    (dict(thinking_budget=0), 'thinking_budget=0 must be at least 1'),
    (
      dict(ends='trace', max_tokens=6, thinking_budget=6),
      'thinking_budget=6 must be at least 1 and below the 6 tokens of a trace',
    ),
    (dict(max_tokens=0), r'draw index 3: max_tokens=0 must lie in \[1, 10\]'),
    (dict(max_tokens=11), 'max_tokens=11 must lie in'),
    (dict(prompt=(5,) * 7), 'a prompt of 7 tokens and a response of up to 10'),
  ],
)
def test_a_request_that_cannot_be_served_is_named(change, message):
  requests = _requests()
  requests[3] = dataclasses.replace(requests[3], **change)
  with pytest.raises(UserError, match=message):
    next(served.engine(CONFIG, context=16).run(requests))


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    (dict(num_slots=0), 'engine.num_slots must be at least 1'),
    (dict(turns=0), 'engine.turns must be at least 1'),
    (dict(num_prompts=0), 'engine.num_prompts must be at least 1'),
    (dict(refill=0), 'engine.refill must be in'),
    (dict(num_slots=6, group=4), '0 or a divisor of num_slots=6: got 4'),
    (dict(num_slots=6, group=3, num_prompts=2), 'None where slots have groups'),
    (dict(columns=-1), 'engine.columns must be at least 0'),
    (dict(positions=-1), 'engine.positions must be at least 0'),
  ],
)
def test_a_shape_that_cannot_be_is_named(shape, message):
  with pytest.raises(UserError, match=message):
    EngineConfig(**shape)


def test_a_score_head_of_nan_is_named():
  weights = served.params()
  broken = weights | {
    'score_head': jax.tree.map(lambda x: x * np.nan, weights['score_head'])
  }
  with jax.enable_x64(True):
    engine = served.engine(CONFIG, weights=broken, num_slots=2, turns=3)
    with pytest.raises(UserError, match='a step logit of draw 0, candidate 0'):
      list(engine.run(_requests()))


def test_nan_weights_are_named():
  broken = jax.tree.map(lambda x: x * np.nan, served.params())
  with jax.enable_x64(True):
    with pytest.raises(UserError, match='candidate 0 is nan: the weights hold'):
      list(
        served.engine(CONFIG, weights=broken, num_slots=2, turns=3).run(
          _requests()
        )
      )


def test_a_response_goes_on_where_it_was_left():
  """The first tokens read back: the rest is what it would have been."""
  wanted = _wanted()
  requests, whole = [], {}
  for request in _requests():
    p = request.draw
    for n in range(N):
      count = wanted.length_PN[p, n]
      if count > 3:
        first = tuple(wanted.token_PNR[p, n, :3].tolist())
        requests.append(
          dataclasses.replace(request, candidates=(n,), written=first)
        )
        whole[p, n] = wanted.token_PNR[p, n, :count]
  assert len(requests) > 10
  with jax.enable_x64(True):
    found = list(served.engine(CONFIG, num_slots=5, turns=3).run(requests))
  assert len(found) == len(requests)
  for c in found:
    np.testing.assert_array_equal(
      c.token_R, whole[c.request.draw, c.number][3:]
    )
