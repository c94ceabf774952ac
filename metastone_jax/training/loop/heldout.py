"""Held-out evaluation: draw, verify, keep everything the estimators need.

The draws of candidate n to held-out problem i depend on (seed, i, n) only, so
a larger evaluation contains the smaller one, on any machine and after any
restart. Pieces have the shape of a training rollout, whose program is reused.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.tasks import Problem, build_mixture, score_responses
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
    problems_per_call: P of the sampling program.
    samples_per_call: N of the sampling program.
    sampler: the program; made from the setup's evaluation draws if None.
  """

  setup: Setup
  problems_per_call: int
  samples_per_call: int
  sampler: Callable | None = None

  def __post_init__(self):
    self.sampler = self.sampler or self.setup.sampler(
      self.setup.evaluation_sampling
    )
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
  ) -> EvaluationSamples:
    """As `draw`, without the responses themselves."""
    samples, _ = self.draw(
      params,
      task,
      num_problems=num_problems,
      num_samples=num_samples,
      progress=progress,
    )
    return samples

  def draw(
    self,
    params,
    task: str,
    *,
    num_problems: int,
    num_samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep_token_ids: bool = False,
  ) -> tuple[EvaluationSamples, Responses]:
    """Draws num_samples responses to each of num_problems problems.

    Args:
      params: parameters.
      task: a task of the mixture.
      num_problems: held-out problems, from the first.
      num_samples: responses to each.
      progress: called with (responses done, responses in all).
      keep_token_ids: also return the ids of every response.

    Returns:
      Scores, correctness, answers, lengths, for the estimators; and the
      responses.

    Raises:
      UserError: fewer than 1 problem or sample, or an unknown task.
    """
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
    P, N = self.problems_per_call, self.samples_per_call
    shape = (num_problems, num_samples)
    result = {
      'scores_PN': np.zeros(shape),
      'correct_PN': np.zeros(shape, bool),
      'finished_PN': np.zeros(shape, bool),
      'tokens_PN': np.zeros(shape, np.int64),
    }
    started = time.monotonic()
    texts = np.empty(shape, object)
    token_ids = [[None] * num_samples for _ in range(num_problems)]
    done = 0
    for first in range(0, num_problems, P):
      # The last piece is filled up with repetitions, dropped again below.
      index_P = np.minimum(np.arange(first, first + P), num_problems - 1)
      keep = min(P, num_problems - first)
      for start in range(0, num_samples, N):
        width = min(N, num_samples - start)
        drawn = jax.device_get(
          self.sampler(
            params,
            *jax.device_put(
              (
                prompt_PS[index_P],
                length_P[index_P],
                np.int32(self.setup.recipe.seed),
                (index_P + DRAW_OFFSET).astype(np.int32),
                np.arange(start, start + N, dtype=np.int32),
              )
            ),
          )
        )
        rows = slice(first, first + keep), slice(start, start + width)
        result['scores_PN'][rows] = drawn.score_PN[:keep, :width]
        result['finished_PN'][rows] = drawn.finished_PN[:keep, :width]
        result['tokens_PN'][rows] = drawn.length_PN[:keep, :width]
        decoded = self.setup.tokenizer.decode_rows(
          drawn.token_PNR[:keep, :width].reshape(keep * width, -1),
          drawn.length_PN[:keep, :width].reshape(-1),
        )
        texts[rows] = np.array(decoded, object).reshape(keep, width)
        if keep_token_ids:
          for p in range(keep):
            for n in range(width):
              token_ids[first + p][start + n] = drawn.token_PNR[
                p, n, : drawn.length_PN[p, n]
              ].copy()
        done += keep * width
        progress(done, num_problems * num_samples)
    seconds = time.monotonic() - started
    # Verified together: answer ids must agree over all samples of a problem.
    scores = score_responses(
      self.setup.mixture.tasks,
      problems,
      [self.setup.chat.canonical(text) for text in texts.reshape(-1)],
      result['finished_PN'].reshape(-1),
    )
    # A truncated response is wrong, whatever its text (SPEC 5).
    result['correct_PN'] = (scores.reward_B.reshape(shape) > 0.5) & result[
      'finished_PN'
    ]
    samples = EvaluationSamples(
      task=task,
      answers_PN=scores.answer_id_B.reshape(shape),
      problem_ids=[problem.id for problem in problems],
      **result,
    )
    for place, text in np.ndenumerate(texts):
      texts[place] = self.setup.chat.without_end(text)
    return samples, Responses(
      tuple(problems), texts, token_ids if keep_token_ids else None, seconds
    )
