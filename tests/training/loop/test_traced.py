"""One answer from the best of k traces, over the held-out problems."""

import dataclasses
import functools

import jax
import numpy as np

from metastone_jax.model import init_params
from metastone_jax.sampling import best_of_k
from metastone_jax.tasks import base
from metastone_jax.training import loop
from tests import quick
from tests.training.loop import parts


def test_each_answer_is_that_of_its_problem_alone(monkeypatch):
  setup = parts.setup()

  def verify(problem, text):
    """Right by chance, so that which text was judged shows."""
    return base.Verdict(float(len(text) % 3 > 0), True, text)

  monkeypatch.setattr(setup.mixture.tasks['signs'], 'verify', verify)
  # Many tokens end an answer, as a random model seldom finds the one.
  sampling = dataclasses.replace(
    setup.evaluation_sampling, more_eos_ids=tuple(range(100, 120))
  )
  params = init_params(setup.model_config, jax.random.key(2))
  sampler = loop.Sampler.build(setup, sampling, problems=2, samples=2)
  evaluator = loop.Evaluator(setup, sampler)
  calls, kept = [], {}
  answer = functools.partial(
    loop.answer_from_traces,
    evaluator,
    params,
    'signs',
    sampling,
    k=3,
    num_problems=3,
    num_draws=4,
  )
  found, drawn = answer(
    progress=lambda *now: calls.append(now),
    keep=lambda a: kept.update({(a.problem, a.number): a}),
  )
  assert calls == [(done, 12) for done in range(1, 13)]
  # What an interruption left is not drawn again, and the result is the same.
  calls.clear()
  some = {place: kept[place] for place in sorted(kept)[:7]}
  again, rest = answer(progress=lambda *now: calls.append(now), kept=some)
  assert calls == [(done, 12) for done in range(8, 13)]
  np.testing.assert_array_equal(again.correct_PN, found.correct_PN)
  np.testing.assert_array_equal(again.tokens_PN, found.tokens_PN)
  np.testing.assert_array_equal(rest.texts_PN, drawn.texts_PN)

  @quick.jit
  def alone(params, prompt, length, draw):
    return best_of_k(
      params,
      prompt,
      length,
      np.int32(setup.recipe.seed),
      draw,
      k=3,
      model_config=setup.model_config,
      config=sampling,
      form='trace',
      answer_length=sampling.max_response_length,
      sharder=setup.sharder,
    )

  _, prompt, length = evaluator.batch('signs', 3)
  counts = set()
  for p in range(3):
    for r in range(4):
      draw = np.array([2**30 + p + r * 2**20], np.int32)
      one = jax.device_get(
        alone(params, prompt[p : p + 1], length[p : p + 1], draw)
      )
      traces = one.candidates.length_PN[0]
      answer = one.answer_length_P[0] - traces[one.best_P[0]]
      assert found.tokens_PN[p, r] == traces.sum() + answer
      counts.add(int(found.tokens_PN[p, r]))
      (text,) = setup.tokenizer.decode_rows(one.answer_PA, one.answer_length_P)
      right = len(text) % 3 > 0 and one.answer_finished_P[0]
      assert found.correct_PN[p, r] == right
  assert len(counts) > 1 and 0 < found.correct_PN.sum() < 12
  assert found.traces == 3
  # All traces, and what the answer thinks on: never more than all tokens.
  assert (found.thinking_PN <= found.tokens_PN).all()
  assert (found.write_flops_PN > 0).all()
