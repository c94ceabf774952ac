"""Held-out evaluation: draw, verify, keep everything the estimators need.

A response is verified from the moment in which it has ended, while the devices
write the others.

The draws of candidate n to held-out problem i depend on (seed, i, n) only, so
a larger evaluation contains the smaller one, on any machine and after any
restart. Where draws are those of training, its compiled programs are reused.
With several processes each draws and verifies a contiguous share of the
problems on its own devices, and all get all results.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.parallel import distributed
from metastone_jax.tasks import (
  Problem,
  Scoring,
  build_mixture,
  count_failures,
)
from metastone_jax.training.loop.collect import add_response
from metastone_jax.training.loop.draws import Sampler, requests, stack
from metastone_jax.training.loop.setup import Setup

# Keeps evaluation draws apart from those of training.
DRAW_OFFSET = 2**30


@dataclasses.dataclass(frozen=True)
class Responses:
  """What was drawn, P problems x N samples, for result files.

  Attributes:
    problems: the problems.
    texts_PN: response texts as the model wrote them, without the end token.
    token_ids: their ids, P lists of N int32 arrays; None if not asked for.
    seconds: of drawing all of them.
    failures: how many the verifier could not judge, by why ('timeout', ...);
      they count as wrong.
  """

  problems: tuple[Problem, ...]
  texts_PN: np.ndarray
  token_ids: list[list[np.ndarray]] | None
  seconds: float
  failures: Mapping[str, int]


@dataclasses.dataclass
class Evaluator:
  """Evaluates parameters on the held-out problems of each task.

  Attributes:
    setup: of the run.
    sampler: held-out draws.
  """

  setup: Setup
  sampler: Sampler

  def __post_init__(self):
    self._problems = {}

  def task_names(self) -> tuple[str, ...]:
    """Tasks of the mixture, the largest share first."""
    tasks = self.setup.recipe.data.tasks
    return tuple(sorted(tasks, key=lambda name: (-tasks[name], name)))

  def batch(self, task: str, count: int):
    """The first `count` held-out problems of one task, encoded once."""
    found = self._problems.get(task)
    if found is None or len(found[0]) < count:
      data = self.setup.recipe.data
      options = data.task_options.get(task, {})
      mixture = build_mixture(
        {task: 1.0}, seed=data.seed, options={task: options}
      )
      dataset = self.setup.problems('heldout', mixture)
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
  ) -> EvaluationSamples:
    """As `draw`, without the responses themselves."""
    return self._draw(params, task, num_problems, num_samples, progress, pause)[
      0
    ]

  def draw(
    self,
    params,
    task: str,
    *,
    num_problems: int,
    num_samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    pause: Callable[[], None] = lambda: None,
    keep_token_ids: bool = False,
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
      keep_token_ids: also return the ids of every response.

    Returns:
      Scores, correctness, answers, lengths, for the estimators; and the
      responses.

    Raises:
      UserError: fewer than 1 problem or sample, or an unknown task.
    """
    samples, texts, ids, seconds, failures = self._draw(
      params, task, num_problems, num_samples, progress, pause
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
      failures,
    )

  def _draw(self, params, task, num_problems, num_samples, progress, pause):
    """(samples of all; texts, token ids of this host; seconds; failures)."""
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
      'correct': np.zeros(shape, bool),
      'answers': np.full(shape, -1, np.int32),
      'failure': np.zeros(shape, np.int32),
    }
    started = time.monotonic()
    texts = [[''] * num_samples for _ in range(own)]
    ids = [[None] * num_samples for _ in range(own)]
    wanted = slice(first_own, first_own + own)
    drawn = self.sampler.draw(
      params,
      requests(
        prompt_PS[wanted],
        length_P[wanted],
        np.arange(first_own, first_own + own) + DRAW_OFFSET,
        num_samples,
      ),
    )
    scoring = Scoring(self.setup.mixture.tasks, self.setup.verifiers)
    done, total = 0, num_problems * num_samples
    # As many responses as are drawn at a time; the same number of pieces for
    # every process, though the last ones may be empty for some.
    piece = self.sampler.shape.num_slots
    for _ in range(-(-most * num_samples // piece)):
      part = []
      for candidate in itertools.islice(drawn, piece):
        part.append(candidate)
        p, n = (
          candidate.request.draw - DRAW_OFFSET - first_own,
          candidate.number,
        )
        texts[p][n] = add_response(
          scoring, self.setup, (p, n), problems[first_own + p], candidate
        )
        ids[p][n] = candidate.token_R
        done += hosts.count
        progress(min(done, total), total)
      if part:
        rows = stack(part, 1, self.sampler.config)
        for i, candidate in enumerate(part):
          p, n = candidate.request.draw - DRAW_OFFSET, candidate.number
          p -= first_own
          found['scores'][p, n] = rows.score_PN[0, i]
          found['finished'][p, n] = candidate.finished
          found['tokens'][p, n] = len(candidate.token_R)
      pause()
    seconds = time.monotonic() - started
    # Together: answer ids must agree over all samples of a problem.
    finished = found['finished'][:own]
    scores = scoring.collect(
      list(np.ndindex(finished.shape)), finished.reshape(-1)
    )
    # A truncated response is wrong, whatever its text (SPEC 5).
    found['correct'][:own] = (
      scores.reward_B.reshape(finished.shape) > 0.5
    ) & finished
    found['answers'][:own] = scores.answer_id_B.reshape(finished.shape)
    found['failure'][:own] = scores.failure_B.reshape(finished.shape)
    found = distributed.all_gather(found)
    failures = count_failures(found.pop('failure')[:num_problems])
    if failures:
      logging.warning(
        '%s: the verifier could not judge %s of %d responses; they count as '
        'wrong',
        task,
        ', '.join(f'{count} ({name})' for name, count in failures.items()),
        total,
      )
    samples = EvaluationSamples(
      task=task,
      problem_ids=[problem.id for problem in problems],
      **{f'{name}_PN': x[:num_problems] for name, x in found.items()},
    )
    return samples, texts, ids, seconds, failures
