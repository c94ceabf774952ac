"""Models, prompts, and the two forms of our sampler that the cases share."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np

from metastone_jax.model import ModelConfig, Params, init_params, preset
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import SamplingConfig, sample
from metastone_jax.sampling.engine import Engine, EngineConfig, Request
from metastone_jax.training.loop.draws import stack

PAD, EOS, THINK, UNTHINK = range(4)

# Float32, as on a CPU. `tiny` is what configs/tiny.py trains there; the others
# are those of tests/benchmarks/update_step.py and one of four times the width.
_QWEN2 = dict(num_heads=4, num_kv_heads=2, head_width=64, vocab_size=4096)
MODELS = {
  'tiny': preset('tiny'),
  'small': ModelConfig(width=256, num_layers=4, feed_forward=768, **_QWEN2),
  'wide': ModelConfig(
    width=256,
    num_layers=4,
    feed_forward=768,
    **_QWEN2 | {'vocab_size': 32_768},
  ),
  'medium': ModelConfig(
    width=1024,
    num_layers=6,
    feed_forward=3072,
    **_QWEN2 | {'num_heads': 16, 'num_kv_heads': 4},
  ),
}


def describe(name: str) -> str:
  """A line on the model."""
  config = MODELS[name]
  return (
    f'{name}: width {config.width}, {config.num_layers} layers, vocabulary '
    f'{config.vocab_size}, {config.num_backbone_parameters / 1e6:.1f} M '
    'parameters'
  )


@functools.cache
def parameters(name: str) -> Params:
  """Random ones, with which a greedy model never draws ids 0 to 3.

  Of an untied head only: their logits are 0, the largest of all is not.
  """
  config = MODELS[name]
  params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
  if not config.tied_embeddings:
    kernel = params['policy_kernel']
    params['policy_kernel'] = kernel.at[:, : UNTHINK + 1].set(0)
  return params


def spread_ids(vocab_size: int, every: int, first: int) -> tuple[int, ...]:
  """One id in `every`, from `first` on."""
  return tuple(range(first, vocab_size, every))


@dataclasses.dataclass(frozen=True)
class Work:
  """Problems for one model, and how their responses are drawn.

  Attributes:
    model: of MODELS.
    problems: their number.
    candidates: of each.
    prompt: tokens of the longest prompt; the shortest has three quarters.
    longest: tokens of a response at most.
    slots: candidates that are written at a time.
    ends: one token in so many ends a response; 0 = all have `longest`.
    temperature: 0 = greedy.
  """

  model: str
  problems: int
  candidates: int
  prompt: int
  longest: int
  slots: int
  ends: int = 0
  temperature: float = 0.0

  def __str__(self):
    how = 'greedy' if self.temperature == 0 else 'drawn at temperature 1'
    length = f'{self.longest} tokens each'
    if self.ends:
      length = f'one token in {self.ends} ends them, at most {self.longest}'
    return (
      f'{self.problems} problems x {self.candidates}, prompts of '
      f'{3 * self.prompt // 4} to {self.prompt} tokens, responses {how}, '
      f'{length}; {self.slots} at a time'
    )

  @property
  def sampling(self) -> SamplingConfig:
    """As the released server scores: marks of a thought, no fallback."""
    V = MODELS[self.model].vocab_size
    ends = spread_ids(V, self.ends, 5) if self.ends else ()
    return SamplingConfig(
      max_response_length=self.longest,
      eos_id=EOS,
      more_eos_ids=ends,
      pad_id=PAD,
      step_ids=spread_ids(V, 32, 6),
      think_start_id=THINK,
      think_end_id=UNTHINK,
      temperature=self.temperature,
      score_side='serve',
      released_selection=True,
    )

  @functools.cached_property
  def prompts(self) -> tuple[np.ndarray, np.ndarray]:
    """(P, S) int32, right-padded and ending with <think>, and lengths."""
    rng = np.random.default_rng(0)
    P, S = self.problems, self.prompt
    V = MODELS[self.model].vocab_size
    prompt = rng.integers(UNTHINK + 1, V, (P, S)).astype(np.int32)
    length = rng.integers(3 * S // 4, S + 1, P).astype(np.int32)
    length[0] = S
    prompt[np.arange(P), length - 1] = THINK
    prompt[np.arange(S) >= length[:, None]] = PAD
    return prompt, length

  def requests(self) -> list[Request]:
    """One a problem."""
    prompt, length = self.prompts
    return [
      Request(
        tuple(prompt[p, : length[p]].tolist()),
        p,
        tuple(range(self.candidates)),
      )
      for p in range(self.problems)
    ]


# {(problem, candidate): (tokens, score)}
Drawn = dict[tuple[int, int], tuple[np.ndarray, float]]


def engine_form(
  work: Work, requests: Iterable[Request] | None = None, **shape
) -> Callable[[int], Drawn]:
  """Through the engine: a function of the seed.

  Marks and scores are taken of all candidates together, as a rollout does.
  """
  requests = work.requests() if requests is None else list(requests)
  shape = EngineConfig(num_slots=work.slots, **shape)

  @functools.cache
  def engine(seed: int) -> Engine:
    return Engine(
      parameters(work.model),
      seed,
      model_config=MODELS[work.model],
      config=work.sampling,
      engine_config=shape,
      sharder=Sharder(),
    )

  def run(seed: int) -> Drawn:
    candidates = list(engine(seed).run(requests))
    score_N = stack(candidates, 1, work.sampling).score_PN[0]
    return {
      (c.request.draw, c.number): (c.token_R, float(score))
      for c, score in zip(candidates, score_N, strict=True)
    }

  return run


def program_form(work: Work) -> Callable[[int], Drawn]:
  """As one program, `slots` candidates at a time."""
  prompt, length = work.prompts
  program = jax.jit(
    functools.partial(
      sample,
      model_config=MODELS[work.model],
      config=work.sampling,
      sharder=Sharder(),
    )
  )
  params, N = parameters(work.model), work.candidates
  candidate_N = np.arange(N, dtype=np.int32)
  draw = np.arange(work.problems, dtype=np.int32)
  batch = max(1, work.slots // N)

  def run(seed: int) -> Drawn:
    found: Drawn = {}
    for first in range(0, work.problems, batch):
      part = slice(first, first + batch)
      drawn = jax.device_get(
        program(
          params,
          prompt[part],
          length[part],
          np.int32(seed),
          draw[part],
          candidate_N,
        )
      )
      for p, n in np.ndindex(drawn.length_PN.shape):
        token = drawn.token_PNR[p, n, : drawn.length_PN[p, n]]
        found[first + p, n] = token, float(drawn.score_PN[p, n])
    return found

  return run


def count(drawn: Drawn) -> int:
  """Tokens of all responses."""
  return sum(len(token) for token, _ in drawn.values())


def check_same(drawn: Drawn, other: Drawn) -> None:
  """Raises AssertionError unless all tokens, and scores to 1e-5, are equal."""
  assert drawn.keys() == other.keys()
  for key, (token, score) in drawn.items():
    np.testing.assert_array_equal(other[key][0], token)
    np.testing.assert_allclose(other[key][1], score, rtol=1e-5)
