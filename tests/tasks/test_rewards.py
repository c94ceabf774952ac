"""Scores of a batch: rewards, votes, weights."""

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, rewards, signs


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
    def verify(self, problem, response_text):
      raise RuntimeError('bug')

  with pytest.raises(RuntimeError, match='bug'):
    rewards.score_responses({'signs': Broken()}, [P0], [''], [True])
