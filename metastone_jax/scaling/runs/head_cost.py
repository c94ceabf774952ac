"""The score head against a separate reward model (PRM): the arithmetic.

What the paper's "over 99 % of the PRM's parameters saved" is at real sizes, and
the same in FLOPs. Counted from the presets (`scaling.compute`); for measured
times: `python -m tests.benchmarks.sampler --case=scoring`.
"""

import dataclasses
from collections.abc import Mapping

from metastone_jax.model import ModelConfig, preset
from metastone_jax.scaling import compute


def shape_of(config: ModelConfig) -> compute.Shape:
  """The numbers of a model that costs depend on."""
  D, h = config.width, config.head_width
  query_width, cache_width = config.num_heads * h, config.num_kv_heads * h
  block = D * 2 * (query_width + cache_width) + 3 * D * config.feed_forward
  return compute.Shape(
    parameters=config.num_backbone_parameters,
    block_weights=config.num_layers * block,
    vocab_size=config.vocab_size,
    width=D,
    layers=config.num_layers,
    judged_layers=config.split,
    query_width=query_width,
    cache_width=cache_width,
    score_units=config.score_units,
  )


def presets() -> dict[str, ModelConfig]:
  """The paper's sizes; 1.5B in both forms that are published.

  Qwen2.5-1.5B ties its embeddings, DeepSeek-R1-Distill-Qwen-1.5B stores them
  apart.
  """
  small = preset('1.5b')
  return {
    '1.5B, tied embeddings': dataclasses.replace(small, tied_embeddings=True),
    '1.5B': small,
    '7B': preset('7b'),
    '32B': preset('32b'),
  }


@dataclasses.dataclass(frozen=True)
class Traces:
  """What is drawn and judged, for each problem.

  Attributes:
    prompt: tokens.
    tokens: of a trace.
    step: tokens a mark.
    candidates: traces.
  """

  prompt: int = 256
  tokens: int = 8192
  step: int = 64
  candidates: int = 8


def head_against_prm(
  models: Mapping[str, ModelConfig] | None = None, traces: Traces | None = None
) -> list[dict[str, str | int | float]]:
  """A row a model.

  Args:
    models: name -> shapes; None = `presets()`.
    traces: the load of the FLOPs; None = `Traces()`.

  Returns:
    Rows of: model; backbone_parameters, head_parameters, prm_parameters (the
    PRM's whole backbone and head); share (head over PRM) and saved = 1 - share,
    in parameters; head_bytes, prm_bytes in bfloat16; flops_policy,
    flops_head, flops_prm to draw and judge one problem's traces;
    head_of_policy, prm_of_policy (FLOPs of judging over those of drawing) and
    flops_saved = 1 - flops_head / flops_prm. Shares are in [0, 1].
  """
  traces = traces or Traces()
  models = presets() if models is None else models
  load = dict(prompt=traces.prompt, tokens=traces.tokens)
  marks = traces.tokens / traces.step
  rows = []
  for name, config in models.items():
    shape = shape_of(config)
    head = compute.of_head(shape, marks)
    prm = compute.of_prm(shape, **load, marks=marks)
    policy = compute.of_samples(
      shape,
      prompt=traces.prompt,
      tokens_N=[traces.tokens] * traces.candidates,
      thinking_N=[traces.tokens] * traces.candidates,
    )
    flops_policy = float(policy.flops)
    flops_head = float(traces.candidates * head.flops)
    flops_prm = float(traces.candidates * prm.flops)
    rows.append(
      {
        'model': name,
        'backbone_parameters': shape.parameters,
        'head_parameters': head.parameters,
        'prm_parameters': prm.parameters,
        'share': head.parameters / prm.parameters,
        'saved': 1 - head.parameters / prm.parameters,
        'head_bytes': 2 * head.parameters,
        'prm_bytes': 2 * prm.parameters,
        'flops_policy': flops_policy,
        'flops_head': flops_head,
        'flops_prm': flops_prm,
        'head_of_policy': flops_head / flops_policy,
        'prm_of_policy': flops_prm / flops_policy,
        'flops_saved': 1 - flops_head / flops_prm,
      }
    )
  return rows


def table(rows: list[dict]) -> list[str]:
  """Rows of `head_against_prm` as a Markdown table."""
  lines = [
    '| backbone | score head, M | separate PRM, M | head / PRM % | saved % | '
    'FLOPs of judging / drawing %: head | of the PRM |',
    '| --- | ---: | ---: | ---: | ---: | ---: | ---: |',
  ]
  for row in rows:
    lines.append(
      f'| {row["model"]} | {row["head_parameters"] / 1e6:,.2f} | '
      f'{row["prm_parameters"] / 1e6:,.2f} | {100 * row["share"]:.2f} | '
      f'{100 * row["saved"]:.2f} | {100 * row["head_of_policy"]:.4f} | '
      f'{100 * row["prm_of_policy"]:.1f} |'
    )
  return lines
