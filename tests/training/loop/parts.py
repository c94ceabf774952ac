"""Parts of a run of the small recipe, on one of the test's fake devices."""

import contextlib
from unittest import mock

import jax
import numpy as np

from metastone_jax import sprm
from metastone_jax.parallel import make_mesh
from metastone_jax.sampling import Rollout
from metastone_jax.sampling.engine import Candidate, EngineConfig
from metastone_jax.tasks import base
from metastone_jax.training import loop
from metastone_jax.training.loop import draws
from metastone_jax.training.loop import setup as setup_lib
from tests.launch import small


@contextlib.contextmanager
def one_device():
  """Runs and setups built inside see the first device alone."""

  def first(sizes):
    return make_mesh(sizes, jax.devices()[:1])

  with mock.patch.object(setup_lib, 'make_mesh', first):
    yield


def recipe(edit=lambda config: None) -> loop.Recipe:
  """The small recipe after `edit` of its ConfigDict."""
  config = small.get_config()
  edit(config)
  return loop.parse_recipe(config)


def setup(edit=lambda config: None) -> loop.Setup:
  with one_device():
    return loop.Setup.build(recipe(edit))


def phase(setup, name: str):
  return next(p for p in setup.recipe.phases if p.name == name)


def written(setup, problem: base.Problem, kind: str) -> str:
  """A response text: right, wrong, unparsed or cut by the length limit."""
  right = setup.mixture.demonstration(problem)
  head, _, tail = right.rpartition('\\boxed{')
  return {
    'right': right,
    'wrong': f'{head}\\boxed{{ + 999 }}<|im_end|>',
    'unparsed': f'{head}nothing<|im_end|>',
    # The box is closed, so the text alone would be right.
    'cut': f'{head}\\boxed{{{tail.removesuffix("<|im_end|>")}',
  }[kind]


def rollout(setup, texts, draw: np.random.Generator) -> Rollout:
  """A Rollout of given texts (P lists of N), its numbers drawn at random.

  Marks are found here by a plain loop, since the prompt has opened <think>.
  """
  P, N = len(texts), len(texts[0])
  R = setup.recipe.data.max_response_length
  tokenizer, sampling = setup.tokenizer, setup.train_sampling
  token = np.full((P, N, R), tokenizer.pad_id, np.int32)
  length = np.zeros((P, N), np.int32)
  mark = np.zeros((P, N, R), bool)
  for p, n in np.ndindex(P, N):
    ids = tokenizer.encode(texts[p][n])
    assert len(ids) <= R
    length[p, n] = len(ids)
    token[p, n, : len(ids)] = ids
    previous = None
    for r, i in enumerate(ids):
      if i == sampling.think_end_id:
        break
      mark[p, n, r] = i in sampling.step_ids and previous not in (
        *sampling.step_ids,
      )
      previous = i
  real = np.arange(R) < length[..., None]
  logit = draw.normal(size=(P, N, R)).astype(np.float32) * real
  return Rollout(
    token_PNR=token,
    length_PN=length,
    finished_PN=np.array(
      [[t.endswith('<|im_end|>') for t in group] for group in texts]
    ),
    log_prob_PNR=-draw.random((P, N, R)).astype(np.float32) * real,
    forced_PNR=(draw.random((P, N, R)) < 0.1) & real,
    step_logit_PNR=logit,
    step_mask_PNR=mark,
    score_PN=np.asarray(sprm.trace_score(logit, mark)),
  )


class FakeSampler:
  """Draws what `write` says instead of a policy, the last response first.

  Attributes:
    config: ids of the marks.
    shape: so many at a time, as far as a caller can see.
    asked: (params, requests) of every call.
  """

  def __init__(self, setup, write, slots: int = 16):
    """write: request -> the Rollout (1, N) of its candidates."""
    self.config = setup.evaluation_sampling
    self.shape = EngineConfig(num_slots=slots)
    self.asked = []
    self._write = write

  def draw(self, params, requests):
    self.asked.append((params, requests))
    for request in reversed(requests):
      drawn = self._write(request)
      for n in reversed(range(len(request.candidates))):
        length = drawn.length_PN[0, n]
        yield Candidate(
          request,
          request.candidates[n],
          'stop' if drawn.finished_PN[0, n] else 'length',
          *(
            getattr(drawn, name)[0, n, :length]
            for name in (
              'token_PNR',
              'log_prob_PNR',
              'forced_PNR',
              'step_logit_PNR',
            )
          ),
          last_logit=0.0,
          config=self.config,
        )

  def rollout(self, params, requests, each=lambda p, n, candidate: None):
    return draws.Sampler.rollout(self, params, requests, each)


class Nothing:
  """A progress display that shows nothing."""

  def phase(self, *args, **kwargs): ...

  def update(self, *args, **kwargs): ...

  def status(self, *args, **kwargs): ...

  def note(self, *args, **kwargs): ...
