"""Held-out evaluation: draw, verify, keep everything the estimators need.

The draws of candidate n to held-out problem i depend on (seed, i, n) only, so
a larger evaluation contains the smaller one, on any machine and after any
restart. Pieces have the shape of a training rollout, whose program is reused.
With several processes each draws and verifies a contiguous share of the
problems on its own devices, and all get all results.
"""

import dataclasses
import json
import time
import zlib
from collections.abc import Callable

import jax
import numpy as np

from metastone_jax.errors import UserError
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.parallel import distributed
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
    return self._draw(params, task, num_problems, num_samples, progress)[0]

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
    samples, texts, ids, seconds = self._draw(
      params, task, num_problems, num_samples, progress
    )
    responses = _gather_json([texts, ids if keep_token_ids else None])
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

  def _draw(self, params, task, num_problems, num_samples, progress):
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
    P, N = self.problems_per_call, self.samples_per_call
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
    }
    started = time.monotonic()
    texts = [[''] * num_samples for _ in range(own)]
    ids = [[None] * num_samples for _ in range(own)]
    done = 0
    params = self.setup.decode_params(params)
    for first in range(0, most, P):
      # The last piece is filled up with repetitions, dropped again below.
      index_P = np.minimum(
        first_own + np.arange(first, first + P), num_problems - 1
      )
      keep = max(0, min(P, own - first))
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
        found['scores'][rows] = drawn.score_PN[:keep, :width]
        found['finished'][rows] = drawn.finished_PN[:keep, :width]
        found['tokens'][rows] = drawn.length_PN[:keep, :width]
        decoded = self.setup.tokenizer.decode_rows(
          drawn.token_PNR[:keep, :width].reshape(
            keep * width, drawn.token_PNR.shape[-1]
          ),
          drawn.length_PN[:keep, :width].reshape(-1),
        )
        for p, n in np.ndindex(keep, width):
          texts[first + p][start + n] = decoded[p * width + n]
          ids[first + p][start + n] = drawn.token_PNR[
            p, n, : drawn.length_PN[p, n]
          ].copy()
        done += keep * width * hosts.count
        total = num_problems * num_samples
        progress(min(done, total), total)
    seconds = time.monotonic() - started
    # Verified together: answer ids must agree over all samples of a problem.
    finished = found['finished'][:own]
    scores = score_responses(
      self.setup.mixture.tasks,
      problems[first_own : first_own + own],
      [self.setup.chat.canonical(text) for row in texts for text in row],
      finished.reshape(-1),
    )
    # A truncated response is wrong, whatever its text (SPEC 5).
    found['correct'][:own] = (
      scores.reward_B.reshape(finished.shape) > 0.5
    ) & finished
    found['answers'][:own] = scores.answer_id_B.reshape(finished.shape)
    found = distributed.all_gather(found)
    samples = EvaluationSamples(
      task=task,
      problem_ids=[problem.id for problem in problems],
      **{f'{name}_PN': x[:num_problems] for name, x in found.items()},
    )
    return samples, texts, ids, seconds


def _gather_json(value) -> list:
  """A JSON value (arrays as lists) of every host, by host."""
  if not distributed.several():
    return [value]
  text = json.dumps(value, default=lambda x: x.tolist())
  packed = np.frombuffer(zlib.compress(text.encode()), np.uint8)
  sizes = distributed.all_gather(np.array([len(packed)]))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(packed)] = packed
  pieces = distributed.all_gather(padded).reshape(len(sizes), -1)
  return [
    json.loads(zlib.decompress(piece[:size].tobytes()))
    for piece, size in zip(pieces, sizes, strict=True)
  ]
