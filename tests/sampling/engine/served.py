"""Requests and engines over the tiny model, for the tests of this folder."""

import functools

import jax
import numpy as np

from metastone_jax.parallel import Sharder
from metastone_jax.sampling import sample
from metastone_jax.sampling.engine import Engine, EngineConfig, Request
from tests import quick
from tests.model import naive
from tests.sampling import tiny
from tests.sampling.tiny import SEED


@functools.cache
def params():
  """Random weights in float64."""
  with jax.enable_x64(True):
    return naive.random_params(tiny.model_config(), seed=1)


def requests(problems: int, candidates: int, **options) -> list[Request]:
  """The prompts of `tiny`, draw index = place."""
  prompt, length = tiny.prompts(problems)
  return [
    Request(
      tuple(prompt[p, : length[p]].tolist()),
      p,
      tuple(range(candidates)),
      **options,
    )
    for p in range(problems)
  ]


def engine(config, sharder=None, weights=None, **shape) -> Engine:
  """An engine of this shape."""
  return Engine(
    params() if weights is None else weights,
    SEED,
    model_config=tiny.model_config(),
    config=config,
    engine_config=EngineConfig(**shape),
    sharder=sharder or Sharder(),
  )


def fixed_batch(config, prompt, length, candidates: int):
  """The Rollout of the one compiled program."""
  program = functools.partial(
    sample,
    model_config=tiny.model_config(),
    config=config,
    sharder=Sharder(),
  )
  return jax.device_get(
    quick.jit(program)(
      params(),
      prompt,
      length,
      np.int32(SEED),
      np.arange(len(prompt), dtype=np.int32),
      np.arange(candidates, dtype=np.int32),
    )
  )


def last_logit(request: Request, token_R) -> float:
  """z at the last position of a response, from the naive model."""
  prompt = np.array([request.read])
  _, z = tiny.reread(
    params(), prompt, np.array([prompt.shape[1]]), np.array([[token_R]])
  )
  return float(z[0, 0, -1])
