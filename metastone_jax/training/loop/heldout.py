"""Held-out evaluation: draw, verify, keep everything the estimators need.

The draws of candidate n to held-out problem i depend on (seed, i, n) only, so
a larger evaluation contains the smaller one, on any machine and after any
restart. Where draws are those of training, its compiled programs are reused.
With several processes each draws and verifies a contiguous share of the
problems on its own devices, and all get all results. Responses that are kept
from an interrupted evaluation are not drawn again.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.parallel import distributed
from metastone_jax.tasks import (
  Mixture,
  Problem,
  Scoring,
  count_failures,
  count_reasons,
)
from metastone_jax.training.loop.draws import Sampler, requests, stack
from metastone_jax.training.loop.kept import Kept
from metastone_jax.training.loop.setup import Setup

# Keeps evaluation draws apart from those of training.
DRAW_OFFSET = 2**30
# Responses between two looks at a stop request, at most.
_PIECE = 32
# And seconds, while verdicts are waited for.
_POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Responses:
  """What was drawn, P problems x N samples, for result files.

  Attributes:
    problems: the problems.
    texts_PN: response texts as the model wrote them, without the end token.
    token_ids: their ids, P lists of N int32 arrays; None if not asked for.
    seconds: of drawing all of them, also in earlier calls.
  """

  problems: tuple[Problem, ...]
  texts_PN: np.ndarray
  token_ids: list[list[np.ndarray]] | None
  seconds: float


@dataclasses.dataclass
class Evaluator:
  """Evaluates parameters on the held-out problems of each task.

  Attributes:
    setup: of the run.
    sampler: held-out draws.
    split: of the problems; 'train' to measure how hard those are.
  """

  setup: Setup
  sampler: Sampler
  split: str = 'heldout'

  def __post_init__(self):
    self._problems = {}

  def task_names(self) -> tuple[str, ...]:
    """Tasks of the mixture that can be evaluated, the largest share first."""
    tasks = self.setup.recipe.data.tasks
    names = sorted(tasks, key=lambda name: (-tasks[name], name))
    return tuple(name for name in names if self.limit(name) != 0)

  def limit(self, task: str) -> int | None:
    """How many problems of the split a task has; None = no end."""
    found = self.setup.mixture.tasks[task]
    return found.num_heldout if self.split == 'heldout' else found.num_train

  def dataset(self, task: str):
    """The problems of one task, encoded."""
    # The task itself: its files are read already.
    mixture = Mixture({task: self.setup.mixture.tasks[task]}, {task: 1.0})
    # Of a file all problems are measured, also those that are imitated.
    finite = self.limit(task) is not None
    return self.setup.problems(
      self.split, mixture, num_demonstrations=0 if finite else None
    )

  def count(self, task: str, wanted: int) -> int:
    """How many problems an evaluation on so many can have."""
    limit = self.limit(task)
    return wanted if limit is None else min(wanted, limit)

  def batch(self, task: str, count: int):
    """The first `count` problems of one task, encoded once."""
    found = self._problems.get(task)
    if found is None or len(found[0]) < count:
      dataset = self.dataset(task)
      found = dataset.batch_at(dataset.start(), count)
      self._problems[task] = found
    return tuple(part[:count] for part in found)

  def evaluate(
    self,
    params,
    task: str,
    *,
    num_problems: int,
    num_samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    pause: Callable[[], None] = lambda: None,
    verified: Callable[[int, int], None] = lambda done, total: None,
  ) -> EvaluationSamples:
    """As `draw`, without the responses themselves."""
    return self._draw(
      params, task, num_problems, num_samples, progress, pause, verified
    )[0]

  def draw(
    self,
    params,
    task: str,
    *,
    num_problems: int,
    num_samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    pause: Callable[[], None] = lambda: None,
    verified: Callable[[int, int], None] = lambda done, total: None,
    keep_token_ids: bool = False,
    kept: Mapping[tuple[int, int], Kept] | None = None,
    keep: Callable[[Kept], None] = lambda response: None,
    hurry: Callable[[], bool] = lambda: False,
  ) -> tuple[EvaluationSamples, Responses]:
    """Draws num_samples responses to each of num_problems problems.

    Args:
      params: parameters.
      task: a task of the mixture.
      num_problems: held-out problems, from the first.
      num_samples: responses to each.
      progress: called with (responses done, responses in all) whenever one
        is done; of several processes each speaks for all of them.
      pause: called now and then, equally often by every process; it may raise.
      verified: as `progress`, of verdicts, while they are waited for.
      keep_token_ids: also return the ids of every response.
      kept: responses by (problem, candidate) that need not be drawn.
      keep: gets every response that was drawn, soon after it ended.
      hurry: whether `pause` should come after the next response; of one
        process alone.

    Returns:
      Scores, correctness, answers, lengths, for the estimators; and the
      responses.

    Raises:
      UserError: fewer than 1 problem or sample, or an unknown task.
    """
    samples, texts, ids, seconds = self._draw(
      params,
      task,
      num_problems,
      num_samples,
      progress,
      pause,
      verified,
      keep_token_ids,
      kept or {},
      keep,
      hurry,
    )
    responses = distributed.gather_json(
      [texts, ids if keep_token_ids else None]
    )
    texts_PN = np.empty((num_problems, num_samples), object)
    all_ids = []
    first = 0
    for some_texts, some_ids in responses:
      for p, row in enumerate(some_texts):
        texts_PN[first + p] = [self.setup.chat.without_end(x) for x in row]
      first += len(some_texts)
      all_ids += some_ids or []
    return samples, Responses(
      tuple(self.batch(task, num_problems)[0]),
      texts_PN,
      [[np.array(x, np.int32) for x in row] for row in all_ids]
      if keep_token_ids
      else None,
      seconds,
    )

  def _draw(
    self,
    params,
    task,
    num_problems,
    num_samples,
    progress,
    pause,
    verified,
    keep_token_ids=False,
    kept=(),
    keep=lambda response: None,
    hurry=lambda: False,
  ):
    """(samples of all; texts, token ids of this host's problems; seconds)."""
    if num_problems < 1 or num_samples < 1:
      raise UserError(
        f'an evaluation needs at least 1 problem and 1 sample, got '
        f'{num_problems} and {num_samples}'
      )
    if task not in self.setup.recipe.data.tasks:
      raise UserError(
        f'task {task!r} is not in this run; it has '
        f'{", ".join(self.task_names())}'
      )
    problems, prompt_PS, length_P = self.batch(task, num_problems)
    hosts = self.setup.hosts
    # Every host has the same number of rows, the last ones perhaps too many.
    most = -(-num_problems // hosts.count)
    first_own = min(hosts.index * most, num_problems)
    own = min(most, num_problems - first_own)
    shape = (most, num_samples)
    found = {
      'scores': np.zeros(shape),
      'finished': np.zeros(shape, bool),
      'tokens': np.zeros(shape, np.int64),
      'thinking': np.zeros(shape, np.int64),
      'marks': np.zeros(shape, np.int64),
      'flops': np.zeros(shape),
      'seconds': np.zeros(shape),
      'correct': np.zeros(shape, bool),
      'answers': np.full(shape, -1, np.int32),
      'failure': np.zeros(shape, np.int32),
      'reason': np.zeros(shape, np.int32),
    }
    texts = [[''] * num_samples for _ in range(own)]
    ids = [[None] * num_samples for _ in range(own)]
    wanted = slice(first_own, first_own + own)
    asked = requests(
      prompt_PS[wanted],
      length_P[wanted],
      np.arange(first_own, first_own + own) + DRAW_OFFSET,
      num_samples,
    )

    # Verified while the devices write the next ones.
    scoring = Scoring(self.setup.mixture.tasks, self.setup.verifiers)

    def place(response: Kept) -> None:
      p, n = response.problem - first_own, response.number
      scoring.add(
        (p, n),
        problems[response.problem],
        self.setup.chat.canonical(response.text),
      )
      for name, array in _KEPT_ARRAYS.items():
        found[array][p, n] = getattr(response, name)
      texts[p][n], ids[p][n] = response.text, response.token_ids

    left = []
    for p, request in enumerate(asked, first_own):
      there = [n for n in request.candidates if (p, n) in kept]
      for n in there:
        place(kept[p, n])
      missing = tuple(n for n in request.candidates if n not in set(there))
      if missing:
        left.append(dataclasses.replace(request, candidates=missing))
    last = time.monotonic()
    drawn = self.sampler.draw(params, left)
    total = num_problems * num_samples
    done = hosts.count * (
      own * num_samples - sum(len(r.candidates) for r in left)
    )
    # Often enough to stop in time; the same number of pieces for every
    # process, though the last ones may be empty for some.
    piece = min(self.sampler.shape.num_slots, _PIECE)
    config, model = self.sampler.config, self.setup.model_config
    for _ in range(-(-most * num_samples // piece)):
      part = []
      for candidate in itertools.islice(drawn, piece):
        part.append(candidate)
        done += hosts.count
        progress(min(done, total), total)
        if hurry():
          break
      if part:
        now = time.monotonic()
        # The hosts draw beside each other.
        share = (now - last) / len(part) / hosts.count
        last = now
        rows = stack(part, 1, config)
        decoded = self.setup.tokenizer.decode_rows(
          rows.token_PNR[0], rows.length_PN[0]
        )
        for i, candidate in enumerate(part):
          token_R = candidate.token_R
          response = Kept(
            problem=candidate.request.draw - DRAW_OFFSET,
            number=candidate.number,
            text=decoded[i],
            score=float(rows.score_PN[0, i]),
            finished=candidate.finished,
            tokens=len(token_R),
            thinking=num_thinking(token_R, config.think_end_id),
            marks=int(rows.step_mask_PNR[0, i].sum()),
            flops=model.decode_flops(
              len(token_R), len(candidate.request.prompt)
            ),
            seconds=share,
            token_ids=token_R.tolist() if keep_token_ids else None,
          )
          place(response)
          keep(response)
      pause()
    judged = judge(scoring, found['finished'][:own], verified, pause)
    for name, array in judged.items():
      found[name][:own] = array
    found = {
      name: x[:num_problems]
      for name, x in distributed.all_gather(found).items()
    }
    seconds = float(found.pop('seconds').sum())
    samples = EvaluationSamples(
      task=task,
      problem_ids=[problem.id for problem in problems],
      write_flops_PN=found.pop('flops'),
      score_flops_PN=model.score_flops(found.pop('marks')),
      read_flops_P=model.prefill_flops(length_P.astype(np.float64)),
      subjects=subjects_of(problems),
      split=self.split,
      **verdict_counts(task, found.pop('failure'), found.pop('reason')),
      **{f'{name}_PN': x for name, x in found.items()},
    )
    return samples, texts, ids, seconds


# Of a response -> where it goes.
_KEPT_ARRAYS = {
  'score': 'scores',
  'finished': 'finished',
  'tokens': 'tokens',
  'thinking': 'thinking',
  'marks': 'marks',
  'flops': 'flops',
  'seconds': 'seconds',
}


def judge(
  scoring: Scoring,
  finished_PN: np.ndarray,
  verified: Callable[[int, int], None],
  pause: Callable[[], None],
) -> dict[str, np.ndarray]:
  """The verdicts on responses (p, n), waited for.

  Args:
    scoring: has all of them.
    finished_PN: whether each ended by itself; a truncated response is wrong,
      whatever its text (SPEC 5).
    verified: called with (verdicts there, verdicts in all), of all processes.
    pause: called about once a second, equally often by every process; it may
      raise, and then the verdicts are lost.

  Returns:
    Arrays 'correct' and 'answers', see `EvaluationSamples`, and 'failure' and
    'reason', see `Scores`.
  """
  shape = finished_PN.shape
  while True:
    # Of all processes, so that all of them go on together.
    counts = distributed.gather_json(
      [scoring.wait(_POLL_SECONDS), finished_PN.size]
    )
    left, total = (sum(numbers) for numbers in zip(*counts, strict=True))
    if not left:
      break
    verified(total - left, total)
    pause()
  scores = scoring.collect(list(np.ndindex(shape)), finished_PN.reshape(-1))
  return {
    'correct': (scores.reward_B.reshape(shape) > 0.5) & finished_PN,
    'answers': scores.answer_id_B.reshape(shape),
    'failure': scores.failure_B.reshape(shape),
    'reason': scores.reason_B.reshape(shape),
  }


def verdict_counts(
  task: str, failure_PN: np.ndarray, reason_PN: np.ndarray
) -> dict[str, Any]:
  """Which samples have no verdict and why; failures are said in the log, too.

  Args:
    task: for the message.
    failure_PN: see `Scores`.
    reason_PN: likewise.

  Returns:
    Fields failed_PN, failures and reasons of `EvaluationSamples`.
  """
  failures = count_failures(failure_PN)
  if failures:
    logging.warning(
      '%s: the verifier could not judge %s of %d responses; they count as '
      'wrong',
      task,
      ', '.join(f'{count} ({name})' for name, count in failures.items()),
      failure_PN.size,
    )
  return {
    'failed_PN': failure_PN > 0,
    'failures': failures,
    'reasons': count_reasons(reason_PN),
  }


def num_thinking(token_R: np.ndarray, think_end_id: int) -> int:  # noqa: N803
  """Tokens up to the first </think>, itself included; all, where none is."""
  ends = np.flatnonzero(np.asarray(token_R) == think_end_id)
  return int(ends[0]) + 1 if len(ends) else len(token_R)


def subjects_of(problems: Sequence[Problem]) -> list[str] | None:
  """The subject of each problem, where all have one (`data['sub']`)."""
  found = [problem.data.get('sub') for problem in problems]
  return None if None in found else [str(subject) for subject in found]
