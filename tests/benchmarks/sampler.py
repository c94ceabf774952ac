"""The engine against a fixed batch, on responses of very unequal length.

  python -m tests.benchmarks.sampler

Same weights, prompts, draws and lengths: a tiny model whose responses end at
random, one token in 64, at most 512 (the longest of 32 is four times the mean).
`fixed` is `sampling.sample`, 32 candidates at a time, each batch as long as its
longest; `engine` has as many slots and refills them. Times without compilation,
interleaved; tokens are the same, which is checked.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from metastone_jax.model import init_params, preset
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import SamplingConfig, sample
from metastone_jax.sampling.engine import Engine, EngineConfig, Request

PROBLEMS, CANDIDATES, SLOTS, LONGEST, PROMPT = 64, 4, 32, 512, 24
MODEL = preset('tiny')
CONFIG = SamplingConfig(
  max_response_length=LONGEST,
  eos_id=1,
  # 8 of 512 tokens end a response.
  more_eos_ids=tuple(range(10, 17)),
  pad_id=0,
  step_ids=(4,),
  think_start_id=2,
  think_end_id=3,
)


def _prompts() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  prompt = rng.integers(20, 500, (PROBLEMS, PROMPT)).astype(np.int32)
  length = rng.integers(PROMPT // 2, PROMPT + 1, PROBLEMS).astype(np.int32)
  return prompt, length


def fixed(params):
  """A function of nothing: {(problem, candidate): tokens}."""
  prompt, length = _prompts()
  program = jax.jit(
    functools.partial(
      sample, model_config=MODEL, config=CONFIG, sharder=Sharder()
    )
  )
  candidate_N = np.arange(CANDIDATES, dtype=np.int32)
  draw = np.arange(PROBLEMS, dtype=np.int32)
  batch = SLOTS // CANDIDATES

  def run():
    found = {}
    for first in range(0, PROBLEMS, batch):
      part = slice(first, first + batch)
      drawn = jax.device_get(
        program(
          params,
          prompt[part],
          length[part],
          np.int32(7),
          draw[part],
          candidate_N,
        )
      )
      for p in range(batch):
        for n in range(CANDIDATES):
          count = drawn.length_PN[p, n]
          found[first + p, n] = drawn.token_PNR[p, n, :count]
    return found

  return run


def engine(params):
  """As `fixed`."""
  prompt, length = _prompts()
  requests = [
    Request(tuple(prompt[p, : length[p]].tolist()), p, tuple(range(CANDIDATES)))
    for p in range(PROBLEMS)
  ]
  one = Engine(
    params,
    7,
    model_config=MODEL,
    config=CONFIG,
    engine_config=EngineConfig(num_slots=SLOTS),
    sharder=Sharder(),
  )
  return lambda: {
    (c.request.draw, c.number): c.token_R for c in one.run(requests)
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  repeats = parser.parse_args().repeats
  params = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))
  forms = {'fixed': fixed(params), 'engine': engine(params)}
  drawn = {name: run() for name, run in forms.items()}
  for key, tokens in drawn['fixed'].items():
    np.testing.assert_array_equal(drawn['engine'][key], tokens)
  lengths = [len(tokens) for tokens in drawn['fixed'].values()]
  print(
    f'{len(lengths)} responses, tokens: mean {np.mean(lengths):.0f}, median '
    f'{np.median(lengths):.0f}, longest {max(lengths)}'
  )
  seconds = {name: [] for name in forms}
  for _ in range(repeats):
    for name, run in forms.items():
      started = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - started)
  medians = {name: statistics.median(x) for name, x in seconds.items()}
  for name, median in medians.items():
    print(
      f'{name:7s} {median:.2f} s, {sum(lengths) / median:.0f} tokens/s, '
      f'fixed / {name} {medians["fixed"] / median:.2f}'
    )


if __name__ == '__main__':
  main()
