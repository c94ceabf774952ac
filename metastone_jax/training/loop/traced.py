"""Held-out evaluation of the paper's form: k traces, the best one answers once.

There is one answer for each k, so there are no subsets to take as with whole
responses: every k is drawn by itself, several times.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from metastone_jax.sampling import SamplingConfig
from metastone_jax.sampling.config import check_num_candidates
from metastone_jax.sampling.engine import EngineConfig, best_of
from metastone_jax.tasks import Scoring
from metastone_jax.training.loop.draws import Sampler, requests
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
    evaluator: gives the problems, and how many responses are drawn at a time.
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
  check_num_candidates(k)
  setup, shape = evaluator.setup, evaluator.sampler.shape
  problems, prompt_PS, length_P = evaluator.batch(task, num_problems)
  length = sampling.max_response_length
  traces = num_problems * num_draws * k
  devices = setup.hosts.local.num_parts('batch')
  engine = Sampler(
    setup,
    dataclasses.replace(sampling, max_response_length=2 * length),
    EngineConfig(
      num_slots=min(shape.num_slots, -(-traces // devices) * devices),
      turns=shape.turns,
      # An answer goes on from the prompt and a trace.
      positions=setup.recipe.data.max_prompt_length + length,
      columns=length,
    ),
  ).engine(params)
  wanted = [
    dataclasses.replace(request, max_tokens=length)
    for number in range(num_draws)
    for request in requests(
      prompt_PS,
      length_P,
      np.arange(num_problems) + DRAW_OFFSET + number * _DRAW_STRIDE,
      k,
    )
  ]
  scoring = Scoring(setup.mixture.tasks, setup.verifiers)
  finished_PR = np.zeros((num_problems, num_draws), bool)
  tokens_PR = np.zeros((num_problems, num_draws), np.int64)
  answers = best_of(engine, wanted, form='trace', answer_length=length)
  for done, answer in enumerate(answers, 1):
    number, p = divmod(answer.request.draw - DRAW_OFFSET, _DRAW_STRIDE)
    text = setup.tokenizer.decode(answer.token_A)
    # Judged while the devices write the next ones.
    scoring.add((p, number), problems[p], setup.chat.canonical(text))
    finished_PR[p, number] = answer.finished
    tokens_PR[p, number] = answer.tokens
    progress(done, len(wanted))
  scores = scoring.collect(
    list(np.ndindex(finished_PR.shape)), finished_PR.reshape(-1)
  )
  correct_PR = (scores.reward_B.reshape(finished_PR.shape) > 0.5) & finished_PR
  return TracedAnswers(k, correct_PR, tokens_PR)
