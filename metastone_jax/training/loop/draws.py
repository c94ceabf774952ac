"""Responses to many problems, from an engine on this host's own devices.

A sampler is made once a job and draws with the parameters of the moment: an
engine a rollout, whose programs are compiled in the first one. Prompts, caches
and slots have the shapes of the longest prompt and response from the start, so
nothing is compiled or moved later.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from metastone_jax.sampling import Rollout, SamplingConfig
from metastone_jax.sampling.engine import (
  Candidate,
  Engine,
  EngineConfig,
  Request,
)
from metastone_jax.sampling.judging import judge
from metastone_jax.training.loop.setup import Setup

# Tokens of a chunk; a response that is hardly longer is one chunk.
_TURNS, _WHOLE = 32, 64
# Chunks of the longest response, at least, where others need not wait for it.
_PARTS = 8


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Draws responses with given parameters.

  Attributes:
    setup: of the run.
    config: the draws.
    shape: of its engines.
  """

  setup: Setup
  config: SamplingConfig
  shape: EngineConfig

  @classmethod
  def build(
    cls,
    setup: Setup,
    config: SamplingConfig,
    *,
    problems: int,
    samples: int,
    slots: int | None = None,
    partial: bool = False,
  ) -> 'Sampler':
    """A sampler for a host's share of problems.

    What it draws depends on none of these numbers: others can be asked for.

    Args:
      setup: of the run.
      config: the draws.
      problems: that are drawn together, usually.
      samples: responses to each, usually.
      slots: responses that are drawn at a time; None = as the recipe says.
      partial: responses may go on from tokens that are written, each with a
        prompt of its own.
    """
    draw, data = setup.recipe.sampling, setup.recipe.data
    return cls(
      setup,
      config,
      engine_shape(
        problems=problems,
        samples=samples,
        slots=slots or draw.num_slots(problems * samples),
        devices=setup.hosts.local.num_parts('batch'),
        positions=data.max_prompt_length,
        columns=config.max_response_length,
        partial=partial,
      ),
    )

  def engine(self, params) -> Engine:
    """An engine with these parameters, which are on the mesh of all devices."""
    return Engine(
      self.setup.decode_params(params),
      self.setup.recipe.seed,
      model_config=self.setup.model_config,
      config=self.config,
      engine_config=self.shape,
      sharder=self.setup.hosts.local,
    )

  def draw(self, params, requests: Sequence[Request]) -> Iterator[Candidate]:
    """Candidates in the order in which they end."""
    yield from self.engine(params).run(requests)

  def rollout(
    self,
    params,
    requests: Sequence[Request],
    each: Callable[[int, int, Candidate], None] = lambda p, n, candidate: None,
  ) -> Rollout:
    """P x N responses as host arrays, problems in the order of the requests.

    Args:
      params: on the mesh of all devices.
      requests: P of them, of different draw indices, N candidates each.
      each: called with every candidate, and its place, as soon as it has
        ended, while others are still being written.
    """
    place = {
      (request.draw, number): (p, n)
      for p, request in enumerate(requests)
      for n, number in enumerate(request.candidates)
    }
    found = {}
    for candidate in self.draw(params, requests):
      p, n = place[candidate.request.draw, candidate.number]
      found[p, n] = candidate
      each(p, n, candidate)
    return stack(
      [found[index] for index in sorted(found)], len(requests), self.config
    )


def engine_shape(
  *,
  problems: int,
  samples: int,
  slots: int,
  devices: int,
  positions: int,
  columns: int,
  partial: bool = False,
) -> EngineConfig:
  """The engine that draws a host's share of problems.

  Args:
    problems: that are drawn together.
    samples: responses to each.
    slots: responses that are drawn at a time.
    devices: that share the slots: all have equally many slots and prompts.
    positions: of the longest prompt.
    columns: of the longest response.
    partial: see `Sampler.build`.
  """
  responses = problems * samples
  slots = min(slots, responses)
  if partial:
    # A response that goes on has a prompt of its own, with its first tokens.
    slots = prompts = _multiple(slots, devices)
    group, positions = 0, positions + columns
  elif slots == responses:
    # All start at once: every problem has its own slots.
    slots = _multiple(problems, devices) * samples
    prompts, group = None, samples
  else:
    # Problems whose last responses are long must not keep slots from others.
    prompts = _multiple(min(slots, 2 * -(-slots // samples)), devices)
    slots, group = _multiple(slots, devices), 0
  turns = columns if columns <= _WHOLE else _TURNS
  if partial:  # Between chunks it is seen that enough is complete.
    turns = min(turns, -(-columns // _PARTS))
  return EngineConfig(
    num_slots=slots,
    num_prompts=prompts,
    group=group,
    turns=turns,
    positions=positions,
    columns=columns,
  )


def _multiple(count: int, of: int) -> int:
  return -(-count // of) * of


def requests(
  prompt_PS: np.ndarray,
  length_P: np.ndarray,
  draw_P: Sequence[int],
  samples: int,
) -> list[Request]:
  """One request a problem.

  Args:
    prompt_PS: right-padded prompts.
    length_P: their tokens.
    draw_P: their global draw indices.
    samples: responses to each.
  """
  return [
    Request(tuple(prompt_S[:length].tolist()), int(draw), tuple(range(samples)))
    for prompt_S, length, draw in zip(prompt_PS, length_P, draw_P, strict=True)
  ]


def stack(
  candidates: Sequence[Candidate], problems: int, config: SamplingConfig
) -> Rollout:
  """Candidates as host arrays, with marks and scores of all at once.

  Args:
    candidates: P x N, problem by problem.
    problems: P.
    config: ids, aggregator, R.
  """
  B, R = len(candidates), config.max_response_length
  length_B = np.array([len(c.token_R) for c in candidates], np.int32)
  read_B = np.array([len(c.request.read) for c in candidates])
  real_BR = np.arange(R) < length_B[:, None]

  def rows(name, fill=0):
    parts = [getattr(c, name) for c in candidates]
    out_BR = np.full((B, R), fill, parts[0].dtype)
    out_BR[real_BR] = np.concatenate(parts)
    return out_BR

  token_BR = rows('token_R', config.pad_id)
  step_logit_BR = rows('step_logit_R')
  width = int((read_B + length_B).max())
  row_BT = np.full((B, width), config.pad_id, np.int32)
  for row_T, candidate, read, length in zip(
    row_BT, candidates, read_B, length_B, strict=True
  ):
    row_T[:read] = candidate.request.read
    row_T[read : read + length] = candidate.token_R
  step_mask_BR, score_B = judge(
    row_BT,
    read_B,
    length_B,
    step_logit_BR,
    np.array([c.last_logit for c in candidates]),
    config,
  )

  def in_groups(x_B):
    return x_B.reshape(problems, -1, *x_B.shape[1:])

  return Rollout(
    token_PNR=in_groups(token_BR),
    length_PN=in_groups(length_B),
    finished_PN=in_groups(np.array([c.finished for c in candidates])),
    log_prob_PNR=in_groups(rows('log_prob_R')),
    forced_PNR=in_groups(rows('forced_R')),
    step_logit_PNR=in_groups(step_logit_BR),
    step_mask_PNR=in_groups(step_mask_BR),
    score_PN=in_groups(score_B),
  )
