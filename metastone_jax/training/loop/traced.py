"""Held-out evaluation of the paper's form: k traces, the best one answers once.

There is one answer for each k, so there are no subsets to take as with whole
responses: every k is drawn by itself, several times.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from metastone_jax.sampling import SamplingConfig, best_of_k
from metastone_jax.tasks import score_responses
from metastone_jax.training.loop.heldout import DRAW_OFFSET, Evaluator

# Between the draws of one problem; far more problems than any set has.
_DRAW_STRIDE = 2**20


@dataclasses.dataclass(frozen=True)
class TracedAnswers:
  """R answers to each of P problems, each from the best of k traces.

  Attributes:
    k: traces an answer.
    correct_PR: bool, the verifier's word.
    tokens_PR: tokens drawn for it, all k traces and the answer.
  """

  k: int
  correct_PR: np.ndarray
  tokens_PR: np.ndarray


def answer_from_traces(
  evaluator: Evaluator,
  params,
  task: str,
  sampling: SamplingConfig,
  *,
  k: int,
  num_problems: int,
  num_draws: int,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> TracedAnswers:
  """Draws k traces, picks one, answers; num_draws times a problem.

  Args:
    evaluator: gives the problems, and how many one program call takes.
    params: parameters.
    task: a task of the run.
    sampling: the draws; an answer may be as long as a response.
    k: traces an answer, at least 1.
    num_problems: held-out problems, from the first.
    num_draws: answers to each.
    progress: called with (answers done, answers in all).

  Raises:
    UserError: k < 1, or an unknown task.
  """
  setup = evaluator.setup
  problems, prompt_PS, length_P = evaluator.batch(task, num_problems)
  draw = jax.jit(
    functools.partial(
      best_of_k,
      k=k,
      model_config=setup.model_config,
      config=sampling,
      form='trace',
      answer_length=sampling.max_response_length,
      sharder=setup.sharder,
    )
  )
  P = evaluator.problems_per_call
  correct_PR = np.zeros((num_problems, num_draws), bool)
  tokens_PR = np.zeros((num_problems, num_draws), np.int64)
  done = 0
  for number in range(num_draws):
    for first in range(0, num_problems, P):
      index_P = np.minimum(np.arange(first, first + P), num_problems - 1)
      keep = min(P, num_problems - first)
      drawn = jax.device_get(
        draw(
          params,
          *jax.device_put(
            (
              prompt_PS[index_P],
              length_P[index_P],
              np.int32(setup.recipe.seed),
              (index_P + DRAW_OFFSET + number * _DRAW_STRIDE).astype(np.int32),
            )
          ),
        )
      )
      texts = setup.tokenizer.decode_rows(
        drawn.answer_PA[:keep], drawn.answer_length_P[:keep]
      )
      finished = drawn.answer_finished_P[:keep]
      scores = score_responses(
        setup.mixture.tasks,
        problems[first : first + keep],
        [setup.chat.canonical(text) for text in texts],
        finished,
      )
      rows = slice(first, first + keep)
      correct_PR[rows, number] = (scores.reward_B > 0.5) & finished
      traces = drawn.candidates.length_PN[:keep]
      best = np.take_along_axis(traces, drawn.best_P[:keep, None], axis=1)[:, 0]
      tokens_PR[rows, number] = (
        traces.sum(axis=1) + drawn.answer_length_P[:keep] - best
      )
      done += keep
      progress(done, num_problems * num_draws)
  return TracedAnswers(k, correct_PR, tokens_PR)
