"""Held-out evaluation: which draw goes where, and what is dropped."""

import functools

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.model import init_params
from metastone_jax.tasks import Scores
from metastone_jax.training import loop
from metastone_jax.training.loop import heldout as heldout_lib
from tests.tasks.hostile import Told
from tests.training.loop import parts

FIELDS = ('scores_PN', 'correct_PN', 'answers_PN', 'finished_PN', 'tokens_PN')


def _kind(problem: int, candidate: int) -> str:
  """What the fake policy writes; no two problems have the same row."""
  return ('right', 'wrong', 'unparsed', 'cut')[
    (problem * (candidate + 1) + candidate // 2) % 4
  ]


@pytest.fixture(scope='module')
def setup():
  return parts.setup()


@pytest.fixture(scope='module')
def heldout(setup):
  data = setup.problems('heldout')
  return data.batch_at(data.start(), 7)


def _fake(setup, heldout, slots=6):
  """Answers as `_kind` says."""

  def write(request):
    p = request.draw - 2**30
    length = heldout[2][p]
    assert request.prompt == tuple(heldout[1][p, :length])
    texts = [
      parts.written(setup, heldout[0][p], _kind(p, n))
      for n in request.candidates
    ]
    return parts.rollout(setup, [texts], np.random.default_rng(0))

  return parts.FakeSampler(setup, write, slots)


def _evaluate(setup, heldout, problems, samples, slots=6):
  sampler = _fake(setup, heldout, slots)
  evaluator = loop.Evaluator(setup, sampler)
  calls, pauses = [], []
  found = evaluator.evaluate(
    'params',
    'signs',
    num_problems=problems,
    num_samples=samples,
    progress=lambda *now: calls.append(now),
    pause=lambda: pauses.append(len(calls)),
  )
  ((params, _),) = sampler.asked
  assert params == 'params'
  total = problems * samples
  assert calls == [(done, total) for done in range(1, total + 1)]
  # Where a stop request is heard: as often, whatever ended when.
  piece = min(slots, 32)
  assert pauses == [min(n, total) for n in range(piece, total + piece, piece)]
  return found


@pytest.mark.parametrize(
  ('problems', 'samples', 'slots'),
  [(7, 5, 6), (7, 5, 35), (2, 1, 6), (6, 4, 6)],
)
def test_every_place_holds_its_own_response(
  setup, heldout, problems, samples, slots
):
  found = _evaluate(setup, heldout, problems, samples, slots)
  assert found.shape == (problems, samples)
  assert found.problem_ids == [p.id for p in heldout[0][:problems]]
  for p, n in np.ndindex(problems, samples):
    kind = _kind(p, n)
    text = parts.written(setup, heldout[0][p], kind)
    # A cut response is wrong, though its text would be right.
    assert found.correct_PN[p, n] == (kind == 'right')
    assert found.finished_PN[p, n] == (kind != 'cut')
    assert found.tokens_PN[p, n] == len(setup.tokenizer.encode(text))
    assert (found.answers_PN[p, n] == -1) == (kind == 'unparsed')
    for m in range(n):
      same = found.answers_PN[p, m] == found.answers_PN[p, n]
      read = {'right': 0, 'cut': 0, 'wrong': 1, 'unparsed': 2}
      assert same == (read[_kind(p, m)] == read[kind])


def test_smaller_evaluation_is_a_part_of_the_larger(setup, heldout):
  large = _evaluate(setup, heldout, 7, 5)
  small = _evaluate(setup, heldout, 4, 3)
  for name in ('correct_PN', 'answers_PN', 'finished_PN', 'tokens_PN'):
    np.testing.assert_array_equal(
      getattr(small, name), getattr(large, name)[:4, :3], err_msg=name
    )
  assert small.problem_ids == large.problem_ids[:4]


def _real(setup):
  return loop.Sampler.build(
    setup, setup.evaluation_sampling, problems=2, samples=2
  )


def test_same_with_the_real_sampler(setup):
  """Bit-equal scores and draws, though the slots' companions differ."""
  params = jax.jit(functools.partial(init_params, setup.model_config))(
    jax.random.key(1)
  )
  evaluator = loop.Evaluator(setup, _real(setup))
  large, small = (
    evaluator.evaluate(params, 'signs', num_problems=p, num_samples=n)
    for p, n in ((5, 4), (3, 3))
  )
  assert large.tokens_PN.min() > 0
  for name in FIELDS:
    np.testing.assert_array_equal(
      getattr(small, name), getattr(large, name)[:3, :3], err_msg=name
    )
  # Problems and candidates differ in their draws, repetitions do not.
  assert len(np.unique(large.scores_PN)) == 20
  again = evaluator.evaluate(params, 'signs', num_problems=5, num_samples=4)
  np.testing.assert_array_equal(again.scores_PN, large.scores_PN)


def test_bad_requests(setup):
  evaluator = loop.Evaluator(setup, None)
  for problems, samples in ((0, 4), (4, 0)):
    with pytest.raises(UserError, match='at least 1 problem and 1 sample'):
      evaluator.evaluate(
        None, 'signs', num_problems=problems, num_samples=samples
      )
  with pytest.raises(UserError, match="task 'sings' is not in this run"):
    evaluator.evaluate(None, 'sings', num_problems=1, num_samples=1)


def test_main_task_is_the_one_with_the_largest_share():
  def edit(config):
    config.data.tasks = dict(chain_sum=1.0, signs=3.0)

  evaluator = loop.Evaluator(parts.setup(edit), None)
  assert evaluator.task_names() == ('signs', 'chain_sum')
  # What has nothing to be evaluated on is not.
  evaluator.setup.mixture.tasks['signs'].num_heldout = 0
  assert evaluator.task_names() == ('chain_sum',)
  assert evaluator.count('chain_sum', 7) == 7


def test_responses_are_what_was_drawn_and_scored(setup, heldout):
  evaluator = loop.Evaluator(setup, _fake(setup, heldout))
  samples, drawn = evaluator.draw(
    {}, 'signs', num_problems=4, num_samples=3, keep_token_ids=True
  )
  assert [problem.id for problem in drawn.problems] == samples.problem_ids
  for p in range(4):
    for n in range(3):
      text = drawn.texts_PN[p, n]
      ids = drawn.token_ids[p][n]
      assert setup.tokenizer.decode(ids).removesuffix('<|im_end|>') == text
      kind = _kind(p, n)
      assert text == parts.written(setup, drawn.problems[p], kind).removesuffix(
        '<|im_end|>'
      )


def test_failures_of_verifiers_are_named(heldout, caplog):
  """They are finished and wrong, vote for nothing, and are counted."""

  def edit(config):
    config.verify = dict(workers=2, deadline_s=4.0)

  setup = parts.setup(edit)
  said = {}
  for p, n in np.ndindex(3, 2):
    text = parts.written(setup, heldout[0][p], _kind(p, n))
    what = ('right:a', 'hang', 'exit:1')[p]
    if n:
      what = ('right:b', 'wrong_for:program/timeout', 'right:b')[p]
    said.setdefault(setup.chat.canonical(text), what)
  setup.mixture.tasks['signs'].verifier = Told(said)
  evaluator = loop.Evaluator(setup, _fake(setup, heldout))
  try:
    samples, _ = evaluator.draw({}, 'signs', num_problems=3, num_samples=2)
  finally:
    setup.verifiers.close()
  assert samples.failures == {'timeout': 1, 'crash': 1}
  assert '1 (timeout), 1 (crash) of 6 responses' in caplog.text
  assert samples.reasons == {'program/timeout': 1}
  np.testing.assert_array_equal(samples.failed_PN, [[0, 0], [1, 0], [1, 0]])
  assert not samples.correct_PN[1:, 0].any()
  np.testing.assert_array_equal(samples.answers_PN[1:, 0], [-1, -1])
  np.testing.assert_array_equal(
    samples.finished_PN,
    [[_kind(p, n) != 'cut' for n in range(2)] for p in range(3)],
  )


class _Slow:
  """Scoring of six responses, whose verdicts come after some looks."""

  def __init__(self, *left):
    self.left = list(left)

  def wait(self, seconds):
    assert 0 < seconds < 5
    return self.left.pop(0)

  def collect(self, rows, finished):
    assert not self.left and rows == list(np.ndindex(2, 3))
    zero = np.zeros(6, np.int32)
    return Scores(np.ones(6), zero > 0, zero, zero, zero, zero + 1)


def test_verdicts_are_waited_for_with_an_eye_on_the_user():
  finished = np.array([[True, False, True]] * 2)
  told, pauses = [], []

  def judge(*left, stop=False):
    def pause():
      pauses.append(len(told))
      if stop:
        raise loop.Interrupted('SIGTERM')

    return heldout_lib.judge(
      _Slow(*left), finished, lambda *now: told.append(now), pause
    )

  found = judge(5, 2, 0)
  assert told == [(1, 6), (4, 6)] and pauses == [1, 2]
  np.testing.assert_array_equal(found['correct'], finished)
  assert (found['reason'] == 1).all()
  judge(0)
  assert len(pauses) == 2
  with pytest.raises(loop.Interrupted):
    judge(5, 5, stop=True)


def test_only_what_is_not_kept_is_drawn(setup, heldout):
  """An interrupted evaluation and its second half are the whole one."""
  numbers = dict(num_problems=5, num_samples=4)
  whole, texts = loop.Evaluator(setup, _fake(setup, heldout)).draw(
    'params', 'signs', **numbers
  )
  kept = {}

  def keep(response):
    kept[response.problem, response.number] = response

  seen = []
  with pytest.raises(loop.Interrupted):
    loop.Evaluator(setup, _fake(setup, heldout)).draw(
      'params',
      'signs',
      **numbers,
      keep=keep,
      progress=lambda done, total: seen.append(done),
      # Asked to stop after the ninth response: no further one is waited for.
      hurry=lambda: len(seen) == 9,
      pause=lambda: _stop_at(seen, 9),
    )
  assert len(kept) == len(seen) == 9
  there = dict(kept)
  sampler = _fake(setup, heldout)
  calls = []
  again, rest = loop.Evaluator(setup, sampler).draw(
    'params',
    'signs',
    **numbers,
    kept=there,
    keep=keep,
    progress=lambda *now: calls.append(now),
  )
  assert calls == [(done, 20) for done in range(10, 21)]
  assert len(kept) == 20
  ((_, asked),) = sampler.asked
  drawn = {
    (request.draw - 2**30, n) for request in asked for n in request.candidates
  }
  assert drawn == {(p, n) for p in range(5) for n in range(4)} - set(there)
  for name in (*FIELDS, 'thinking_PN', 'write_flops_PN', 'score_flops_PN'):
    np.testing.assert_array_equal(
      getattr(again, name), getattr(whole, name), err_msg=name
    )
  np.testing.assert_array_equal(rest.texts_PN, texts.texts_PN)
  # The time of both halves, not of the last one.
  np.testing.assert_allclose(
    rest.seconds, sum(response.seconds for response in kept.values())
  )
  assert rest.seconds > sum(response.seconds for response in there.values()) > 0


def _stop_at(seen, number):
  if len(seen) >= number:
    raise loop.Interrupted('SIGINT')


def test_tokens_and_flops_are_counted(setup, heldout):
  found = _evaluate(setup, heldout, 4, 3)
  model = setup.model_config
  for p, n in np.ndindex(4, 3):
    text = parts.written(setup, heldout[0][p], _kind(p, n))
    head = text.split('</think>')[0] + '</think>'
    assert found.thinking_PN[p, n] == len(setup.tokenizer.encode(head))
    np.testing.assert_allclose(
      found.write_flops_PN[p, n],
      model.decode_flops(int(found.tokens_PN[p, n]), int(heldout[2][p])),
    )
    np.testing.assert_allclose(
      found.score_flops_PN[p, n],
      model.score_flops(head.count('.\n\n')),
      err_msg=text,
    )
    np.testing.assert_allclose(
      found.read_flops_P[p], model.prefill_flops(int(heldout[2][p]))
    )
  assert found.subjects is None and found.split == 'heldout'


def test_the_training_split_can_be_measured(setup):
  evaluator = loop.Evaluator(setup, None, 'train')
  problems, _, _ = evaluator.batch('signs', 5)
  data = setup.problems('train')
  want, _, _ = data.batch_at(data.start(), 5)
  assert problems == want
  assert evaluator.limit('signs') is None


def test_a_set_with_an_end_says_so(setup, monkeypatch):
  evaluator = loop.Evaluator(setup, None)
  monkeypatch.setattr(
    setup.mixture.tasks['signs'], 'num_heldout', 30, raising=False
  )
  assert evaluator.limit('signs') == 30
