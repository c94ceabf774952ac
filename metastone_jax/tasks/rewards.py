"""Rewards of a batch of responses, whatever order they come in.

Pure parsers (`Task.verify` of a task without an isolated verifier) run here:
an exception in one is a bug and propagates, never a silent zero. Isolated
verifiers run in the processes of a `VerifierPool` while the caller goes on:
give a response to `Scoring` as soon as it is written, and collect at the end.
"""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from metastone_jax import errors
from metastone_jax.tasks import base, sandbox
from metastone_jax.tasks.pool import VerifierPool

UNPARSED_ID = -1

# Names of Verdict.failure, in metrics verify/<name>; the last one is any other.
FAILURES = ('timeout', 'crash', 'memory', 'other')
# And of Verdict.reason, likewise.
REASONS = (
  *(f'program/{name}' for name in sandbox.FAILURES if name != 'exception'),
  'judged/other',
)


@dataclasses.dataclass(frozen=True)
class Scores:
  """What the verifiers say of B responses.

  Attributes:
    reward_B: float32, 1.0 right or 0.0. Truncated responses are judged by
      their text like any other.
    parsed_B: bool, whether a final answer could be read.
    answer_id_B: int32, equal exactly for equal answers to the same problem,
      numbered from 0 in order of appearance in each problem; -1 if unparsed.
    score_weight_B: float32, 1.0, or 0.0 for a truncated, unparsed or failed
      response: the score head is not trained on it (SPEC section 6).
    failure_B: int32, why there is no verdict: place in `FAILURES`, counted
      from 1; 0 where there is one. See `count_failures`.
    reason_B: int32, what a judged response did beyond being wrong: place in
      `REASONS`, likewise. See `count_reasons`.
  """

  reward_B: np.ndarray
  parsed_B: np.ndarray
  answer_id_B: np.ndarray
  score_weight_B: np.ndarray
  failure_B: np.ndarray
  reason_B: np.ndarray


def count_failures(failure_B: np.ndarray) -> dict[str, int]:
  """How often each failure occurred, by name; those that did not are absent.

  Args:
    failure_B: of `Scores`, perhaps of several hosts.
  """
  return _count(failure_B, FAILURES)


def count_reasons(reason_B: np.ndarray) -> dict[str, int]:
  """How often judged responses had each reason, as `count_failures`.

  Args:
    reason_B: of `Scores`, perhaps of several hosts.
  """
  return _count(reason_B, REASONS)


def _count(place_B: np.ndarray, names: Sequence[str]) -> dict[str, int]:
  counts = np.bincount(np.ravel(place_B), minlength=len(names) + 1)
  return {
    name: int(count)
    for name, count in zip(names, counts[1:], strict=True)
    if count
  }


class Scoring:
  """Verifies responses one by one; the scores do not depend on their order.

  Args:
    tasks: the tasks by name (`Mixture.tasks`).
    pool: for isolated verifiers; None = there are none.
  """

  def __init__(
    self, tasks: Mapping[str, base.Task], pool: VerifierPool | None = None
  ):
    self._tasks, self._pool = tasks, pool
    self._found: dict[Hashable, tuple[base.Problem, object]] = {}

  def add(self, row: Hashable, problem: base.Problem, response: str) -> None:
    """Has a response verified: here and now, or in the pool from now on.

    Args:
      row: what it is called in `collect`.
      problem: that it answers.
      response: what follows the prompt.

    Raises:
      UserError: the problem names a task that is not loaded, or a verifier
        that needs a pool where there is none.
    """
    task = self._tasks.get(problem.task)
    if task is None:
      raise errors.UserError(
        f'problem {problem.id} is of task {problem.task!r}, which is not '
        f'loaded; loaded: {", ".join(sorted(self._tasks))}'
      )
    verifier = task.verifier
    if verifier is None or not verifier.isolated:
      found = task.verify(problem, response)
    elif self._pool is None:
      raise errors.UserError(
        f'task {problem.task!r} has the verifier {verifier.name!r}, which runs '
        'in processes of its own; give a VerifierPool'
      )
    else:
      found = self._pool.submit(verifier, problem, response)
    self._found[row] = problem, found

  def wait(self, seconds: float) -> int:
    """Waits until all verdicts are there, or as long as it may.

    Args:
      seconds: at most.

    Returns:
      How many are not there.

    Raises:
      RuntimeError: nothing works on them any more.
    """
    end = time.monotonic() + seconds
    left = [found for _, found in self._found.values() if _is_open(found)]
    for future in left:
      with contextlib.suppress(concurrent.futures.CancelledError):
        try:
          # Of its errors `collect` tells.
          future.exception(timeout=max(0.0, end - time.monotonic()))
        except concurrent.futures.TimeoutError:
          break
    left = [future for future in left if _is_open(future)]
    if left:
      self._pool.check_alive()
    return len(left)

  def collect(
    self, rows: Sequence[Hashable], finished: Sequence[bool] | np.ndarray
  ) -> Scores:
    """Waits for the verdicts.

    Args:
      rows: B of those that were added, in the order of the scores.
      finished: B flags, False where the response was cut by the length limit.

    Returns:
      The scores.

    Raises:
      UserError: a verifier refuses its options or a problem.
    """
    verdicts = []
    for row in rows:
      _, found = self._found[row]
      if not isinstance(found, base.Verdict):
        found = self._pool.result(found)
      verdicts.append(found)
    B = len(verdicts)
    answer_id_B = np.full(B, UNPARSED_ID, np.int32)
    ids_of_problem: dict[str, dict[str, int]] = {}
    for b, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
      if verdict.parsed:
        ids = ids_of_problem.setdefault(self._found[row][0].id, {})
        answer_id_B[b] = ids.setdefault(verdict.answer_key, len(ids))
    parsed_B = np.array([verdict.parsed for verdict in verdicts], bool)
    failure_B = _places([v.failure for v in verdicts], FAILURES)
    weight_B = parsed_B & np.asarray(finished, bool) & (failure_B == 0)
    return Scores(
      reward_B=np.array([v.reward for v in verdicts], np.float32),
      parsed_B=parsed_B,
      answer_id_B=answer_id_B,
      score_weight_B=weight_B.astype(np.float32),
      failure_B=failure_B,
      reason_B=_places([v.reason for v in verdicts], REASONS),
    )


def _is_open(found) -> bool:
  return not isinstance(found, base.Verdict) and not found.done()


def _places(found: Sequence[str], names: Sequence[str]) -> np.ndarray:
  """Places in `names`, counted from 1; 0 for ''. The last is any other."""
  places = {name: i for i, name in enumerate(names, 1)} | {'': 0}
  return np.array([places.get(x, len(names)) for x in found], np.int32)


def score_responses(
  tasks: Mapping[str, base.Task],
  problems: Sequence[base.Problem],
  responses: Sequence[str],
  finished: Sequence[bool] | np.ndarray,
  pool: VerifierPool | None = None,
) -> Scores:
  """Verifies responses, group-major: N consecutive responses a problem.

  Args:
    tasks: the tasks by name (`Mixture.tasks`).
    problems: P problems; B responses are P groups of N = B / P. Give P = B
      problems for rows in any order.
    responses: B texts, each what follows the prompt.
    finished: B flags, False where the response was cut by the length limit.
    pool: see `Scoring`.

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
  scoring = Scoring(tasks, pool)
  for b, response in enumerate(responses):
    scoring.add(b, problems[b // samples], response)
  return scoring.collect(range(rows), finished)
