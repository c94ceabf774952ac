"""Held-out evaluation of the paper's form: k traces, the best one answers once.

There is one answer for each k, so there are no subsets to take as with whole
responses: every k is drawn by itself, several times. Answers that are kept from
an interrupted evaluation are not drawn again.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.sampling import SamplingConfig
from metastone_jax.sampling.config import check_num_candidates
from metastone_jax.sampling.engine import Answer, EngineConfig, best_of
from metastone_jax.tasks import Scoring
from metastone_jax.training.loop.draws import Sampler, requests
from metastone_jax.training.loop.heldout import (
  DRAW_OFFSET,
  Evaluator,
  Responses,
  judge,
  num_thinking,
  subjects_of,
  verdict_counts,
)
from metastone_jax.training.loop.kept import Kept

# Between the draws of one problem; far more problems than any set has.
_DRAW_STRIDE = 2**20


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
  pause: Callable[[], None] = lambda: None,
  verified: Callable[[int, int], None] = lambda done, total: None,
  keep_token_ids: bool = False,
  kept: Mapping[tuple[int, int], Kept] | None = None,
  keep: Callable[[Kept], None] = lambda answer: None,
) -> tuple[EvaluationSamples, Responses]:
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
    pause: called after each answer, and now and then while verdicts are
      waited for; it may raise.
    verified: called meanwhile with (verdicts there, verdicts in all).
    keep_token_ids: also return the ids of every answer.
    kept: answers by (problem, number) that need not be drawn.
    keep: gets every answer that was drawn.

  Returns:
    The answers as samples: the score is that of the chosen trace, tokens and
    FLOPs are those of all k traces and the answer; and their texts.

  Raises:
    UserError: k < 1, or an unknown task.
  """
  check_num_candidates(k)
  kept = kept or {}
  setup, shape = evaluator.setup, evaluator.sampler.shape
  problems, prompt_PS, length_P = evaluator.batch(task, num_problems)
  length = sampling.max_response_length
  found = {
    (p, number): kept[p, number]
    for p in range(num_problems)
    for number in range(num_draws)
    if (p, number) in kept
  }
  wanted = [
    dataclasses.replace(request, max_tokens=length)
    for number in range(num_draws)
    for p, request in enumerate(
      requests(
        prompt_PS,
        length_P,
        np.arange(num_problems) + DRAW_OFFSET + number * _DRAW_STRIDE,
        k,
      )
    )
    if (p, number) not in found
  ]
  # Judged while the devices write the next ones.
  scoring = Scoring(setup.mixture.tasks, setup.verifiers)

  def verify(answer: Kept) -> None:
    text = setup.chat.canonical(answer.text)
    scoring.add((answer.problem, answer.number), problems[answer.problem], text)

  for answer in found.values():
    verify(answer)
  last, total = time.monotonic(), num_problems * num_draws
  if wanted:
    devices = setup.hosts.local.num_parts('batch')
    engine = Sampler(
      setup,
      dataclasses.replace(sampling, max_response_length=2 * length),
      EngineConfig(
        num_slots=min(shape.num_slots, -(-total * k // devices) * devices),
        turns=shape.turns,
        # An answer goes on from the prompt and a trace.
        positions=setup.recipe.data.max_prompt_length + length,
        columns=length,
      ),
    ).engine(params)
    for answer in best_of(engine, wanted, form='trace', answer_length=length):
      now = time.monotonic()
      response = _kept(answer, setup, sampling, now - last, keep_token_ids)
      last = now
      found[response.problem, response.number] = response
      verify(response)
      keep(response)
      progress(len(found), total)
      pause()
  places = [(p, r) for p in range(num_problems) for r in range(num_draws)]

  def array(name, dtype):
    rows = [getattr(found[place], name) for place in places]
    return np.array(rows, dtype).reshape(num_problems, num_draws)

  finished_PR = array('finished', bool)
  judged = judge(scoring, finished_PR, verified, pause)
  model = setup.model_config
  samples = EvaluationSamples(
    task=task,
    scores_PN=array('score', float),
    correct_PN=judged['correct'],
    answers_PN=judged['answers'],
    **verdict_counts(task, judged['failure'], judged['reason']),
    finished_PN=finished_PR,
    tokens_PN=array('tokens', int),
    problem_ids=[problem.id for problem in problems],
    traces=k,
    thinking_PN=array('thinking', int),
    read_flops_P=model.prefill_flops(length_P.astype(np.float64)),
    write_flops_PN=array('flops', float),
    score_flops_PN=model.score_flops(array('marks', int)),
    subjects=subjects_of(problems),
    split=evaluator.split,
  )
  texts_PR = np.empty(finished_PR.shape, object)
  for place in places:
    texts_PR[place] = setup.chat.without_end(found[place].text)
  return samples, Responses(
    tuple(problems),
    texts_PR,
    [
      [np.array(found[p, r].token_ids, np.int32) for r in range(num_draws)]
      for p in range(num_problems)
    ]
    if keep_token_ids
    else None,
    sum(found[place].seconds for place in places),
  )


def _kept(
  answer: Answer,
  setup,
  sampling: SamplingConfig,
  seconds: float,
  keep_token_ids: bool,
) -> Kept:
  number, p = divmod(answer.request.draw - DRAW_OFFSET, _DRAW_STRIDE)
  traces = answer.candidates
  # The winner's trace is a part of the answer, once.
  winner = traces[answer.best]
  own = num_thinking(answer.token_A, sampling.think_end_id)
  thinking = sum(len(c.token_R) for c in traces)
  thinking += max(0, own - len(winner.token_R))
  prompt = setup.model_config.prefill_flops(len(answer.request.prompt))
  return Kept(
    problem=p,
    number=number,
    text=setup.tokenizer.decode(answer.token_A),
    score=winner.score,
    finished=answer.finished,
    tokens=answer.tokens,
    thinking=thinking,
    marks=int(sum(c.step_mask_R.sum() for c in traces)),
    flops=answer.flops - prompt,
    seconds=seconds,
    token_ids=answer.token_A.tolist() if keep_token_ids else None,
  )
