"""Rewards of a batch of responses, checked in this process.

Verifiers here are pure parsers with linear cost in the response, so no process
pool stands between. An exception in a verifier is a bug and propagates: it
never becomes a silent zero.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from metastone_jax import errors
from metastone_jax.tasks import base

UNPARSED_ID = -1


@dataclasses.dataclass(frozen=True)
class Scores:
  """What the verifiers say of B responses.

  Attributes:
    reward_B: float32, 1.0 right or 0.0. Truncated responses are judged by
      their text like any other.
    parsed_B: bool, whether a final answer could be read.
    answer_id_B: int32, equal exactly for equal answers to the same problem,
      numbered from 0 in order of appearance in each problem; -1 if unparsed.
    score_weight_B: float32, 1.0, or 0.0 for a truncated or unparsed response:
      the score head is not trained on it (SPEC section 6).
  """

  reward_B: np.ndarray
  parsed_B: np.ndarray
  answer_id_B: np.ndarray
  score_weight_B: np.ndarray


def score_responses(
  tasks: Mapping[str, base.Task],
  problems: Sequence[base.Problem],
  responses: Sequence[str],
  finished: Sequence[bool] | np.ndarray,
) -> Scores:
  """Verifies responses, group-major: N consecutive responses a problem.

  Args:
    tasks: the tasks by name (`Mixture.tasks`).
    problems: P problems; B responses are P groups of N = B / P. Give P = B
      problems for rows in any order.
    responses: B texts, each what follows the prompt.
    finished: B flags, False where the response was cut by the length limit.

  Returns:
    The scores.

  Raises:
    UserError: B is no multiple of P, `finished` has another length, or a
      problem names a task that is not in `tasks`.
  """
  rows = len(responses)
  if len(finished) != rows:
    raise errors.UserError(
      f'{len(finished)} finished flags for {rows} responses; give one each'
    )
  if rows and (not problems or rows % len(problems)):
    raise errors.UserError(
      f'{rows} responses to {len(problems)} problems do not divide into '
      'groups; give the same number of responses to each problem'
    )
  samples = rows // len(problems) if problems else 0
  reward_B = np.zeros(rows, np.float32)
  parsed_B = np.zeros(rows, bool)
  answer_id_B = np.full(rows, UNPARSED_ID, np.int32)
  ids_of_problem: dict[str, dict[str, int]] = {}
  for b, response in enumerate(responses):
    problem = problems[b // samples]
    task = tasks.get(problem.task)
    if task is None:
      raise errors.UserError(
        f'problem {problem.id} is of task {problem.task!r}, which is not '
        f'loaded; loaded: {", ".join(sorted(tasks))}'
      )
    verdict = task.verify(problem, response)
    reward_B[b] = verdict.reward
    parsed_B[b] = verdict.parsed
    if verdict.parsed:
      ids = ids_of_problem.setdefault(problem.id, {})
      answer_id_B[b] = ids.setdefault(verdict.answer_key, len(ids))
  weight_B = parsed_B & np.asarray(finished, bool)
  return Scores(
    reward_B=reward_B,
    parsed_B=parsed_B,
    answer_id_B=answer_id_B,
    score_weight_B=weight_B.astype(np.float32),
  )
