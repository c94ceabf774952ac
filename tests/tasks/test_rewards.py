"""Scores of a batch: rewards, votes, weights."""

import random

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, rewards, signs
from metastone_jax.tasks.pool import VerifierPool
from tests.tasks.hostile import Hostile


def box(content):
  return f'</think>\n\n\\boxed{{ {content} }}<|im_end|>'


def problem(name, numbers, goal):
  data = {'numbers': numbers, 'goal': goal}
  return base.Problem('signs', name, name, '', data)


TASKS = {'signs': signs.Signs(seed=0)}
P0 = problem('p0', [1, 2, 3], 0)
P1 = problem('p1', [2, 2], 0)


def test_group_major_batch():
  responses = [
    box('+ 1 + 2 - 3'),
    box('1+2-3'),
    box('- 1 - 2 + 3'),
    'never ends',
    box('+ 2 + 2'),
    box('+ 2 - 2'),
    box('hello'),
    box('+ 2 + 2'),
  ]
  finished = np.array([1, 0, 1, 0, 1, 1, 1, 1], bool)
  scores = rewards.score_responses(TASKS, [P0, P1], responses, finished)
  np.testing.assert_array_equal(scores.reward_B, [1, 1, 1, 0, 0, 1, 0, 0])
  np.testing.assert_array_equal(scores.parsed_B, [1, 1, 1, 0, 1, 1, 0, 1])
  np.testing.assert_array_equal(scores.answer_id_B, [0, 0, 1, -1, 0, 1, -1, 0])
  np.testing.assert_array_equal(scores.score_weight_B, [1, 0, 1, 0, 1, 1, 0, 1])
  assert scores.reward_B.dtype == scores.score_weight_B.dtype == np.float32
  assert scores.answer_id_B.dtype == np.int32


def test_one_problem_a_row_votes_by_problem():
  responses = [box('+ 1 + 2 - 3'), box('+ 2 - 2'), box('+ 1 + 2 - 3')]
  scores = rewards.score_responses(TASKS, [P0, P1, P0], responses, [True] * 3)
  np.testing.assert_array_equal(scores.answer_id_B, [0, 0, 0])
  np.testing.assert_array_equal(scores.reward_B, [1, 1, 1])


def test_empty_batch():
  scores = rewards.score_responses(TASKS, [], [], [])
  assert scores.reward_B.shape == (0,)


def test_bad_input():
  with pytest.raises(errors.UserError, match='do not divide'):
    rewards.score_responses(TASKS, [P0, P1], [''] * 3, [True] * 3)
  with pytest.raises(errors.UserError, match='do not divide'):
    rewards.score_responses(TASKS, [], [''], [True])
  with pytest.raises(errors.UserError, match='2 finished flags'):
    rewards.score_responses(TASKS, [P0], [''] * 3, [True] * 2)
  other = base.Problem('other', 'x', '', '', {})
  with pytest.raises(errors.UserError, match="'other'.*loaded: signs"):
    rewards.score_responses(TASKS, [other], [''], [True])


def test_a_failing_verifier_is_never_a_silent_zero():
  class Broken:
    verifier = None

    def verify(self, problem, response_text):
      raise RuntimeError('bug')

  with pytest.raises(RuntimeError, match='bug'):
    rewards.score_responses({'signs': Broken()}, [P0], [''], [True])


class Isolated:
  """A task whose verifier does what a response says."""

  verifier = Hostile()


def test_isolated_verifiers_run_in_the_pool():
  problem = base.Problem('hostile', 'h0', 'q', '', {})
  tasks = {**TASKS, 'hostile': Isolated()}
  problems = [problem] * 6 + [P0] + [problem] * 2
  responses = ['right:a', 'hang', 'wrong:b', 'exit:1', 'right:a', 'fail:odd']
  responses.append(box('+ 1 + 2 - 3'))
  responses += ['wrong_for:program/timeout', 'wrong_for:odd']
  finished = [True, True, False, True, True, True, True, True, True]
  with VerifierPool(2, deadline_s=4.0) as pool:
    scores = rewards.score_responses(tasks, problems, responses, finished, pool)
  np.testing.assert_array_equal(scores.reward_B, [1, 0, 0, 0, 1, 0, 1, 0, 0])
  np.testing.assert_array_equal(scores.parsed_B, [1, 0, 1, 0, 1, 1, 1, 1, 1])
  np.testing.assert_array_equal(
    scores.answer_id_B, [0, -1, 1, -1, 0, 2, 0, 3, 3]
  )
  # Truncated, unparsed or failed: nothing for the score head. A program that
  # ran out of its own time was judged.
  np.testing.assert_array_equal(
    scores.score_weight_B, [1, 0, 0, 0, 1, 0, 1, 1, 1]
  )
  names = ['', *rewards.FAILURES]
  assert [names[i] for i in scores.failure_B] == [
    '', 'timeout', '', 'crash', '', 'other', '', '', ''
  ]  # fmt: skip
  assert rewards.count_failures(scores.failure_B) == {
    'timeout': 1, 'crash': 1, 'other': 1
  }  # fmt: skip
  assert rewards.count_reasons(scores.reason_B) == {
    'program/timeout': 1, 'judged/other': 1
  }  # fmt: skip


def test_scores_do_not_depend_on_the_order():
  problems = [base.Problem('hostile', f'h{i}', 'q', '', {}) for i in range(3)]
  texts = [f'{"right" if i % 2 else "wrong"}:{i * i % 5}' for i in range(12)]
  finished = [i % 4 > 0 for i in range(12)]
  tasks = {'hostile': Isolated()}
  found = []
  with VerifierPool(2) as pool:
    for seed in range(3):
      order = list(range(12))
      random.Random(seed).shuffle(order)
      scoring = rewards.Scoring(tasks, pool)
      for b in order:
        scoring.add((b // 4, b % 4), problems[b // 4], texts[b])
      rows = [divmod(b, 4) for b in range(12)]
      found.append(scoring.collect(rows, finished))
    found.append(
      rewards.score_responses(tasks, problems, texts, finished, pool)
    )
  for name in (
    'reward',
    'parsed',
    'answer_id',
    'score_weight',
    'failure',
    'reason',
  ):
    for scores in found[1:]:
      np.testing.assert_array_equal(
        getattr(scores, f'{name}_B'), getattr(found[0], f'{name}_B'), name
      )
  assert len(set(found[0].answer_id_B[:4])) > 1


def test_waiting_for_verdicts_has_an_end():
  problem = base.Problem('hostile', 'h0', 'q', '', {})
  with VerifierPool(1, deadline_s=30.0) as pool:
    scoring = rewards.Scoring({**TASKS, 'hostile': Isolated()}, pool)
    scoring.add('now', P0, box('+ 1 + 2 - 3'))
    assert scoring.wait(0.0) == 0
    for i in range(2):
      scoring.add(i, problem, ('sleep:0.5', 'refuse:bad row')[i])
    assert scoring.wait(0.01) == 2
    assert scoring.wait(60.0) == 0
    assert scoring.collect(['now'], [True]).reward_B[0] == 1
    # What went wrong is told there, not here.
    with pytest.raises(errors.UserError, match='bad row'):
      scoring.collect([1], [True])
  with pytest.raises(RuntimeError, match='threads .* died'):
    VerifierPool(1).check_alive()


def test_an_isolated_verifier_needs_a_pool():
  problem = base.Problem('hostile', 'h0', 'q', '', {})
  with pytest.raises(errors.UserError, match='give a VerifierPool'):
    rewards.score_responses({'hostile': Isolated()}, [problem], ['x'], [True])


def test_what_a_verifier_refuses_is_told():
  problem = base.Problem('hostile', 'h0', 'q', '', {})
  with VerifierPool(1) as pool:
    with pytest.raises(errors.UserError, match='bad row'):
      rewards.score_responses(
        {'hostile': Isolated()}, [problem], ['refuse:bad row'], [True], pool
      )
