"""Greedy tokens of the engine against transformers' generate."""

import numpy as np
import pytest

from metastone_jax.parallel import Sharder
from metastone_jax.sampling import SamplingConfig
from metastone_jax.sampling.engine import Engine, EngineConfig, Request
from tests.checkpoints.huggingface import parts

TOKENS = 64


def _theirs(model, prompt, **options):
  import torch

  out = model.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    max_new_tokens=TOKENS,
    do_sample=False,
    eos_token_id=2,
    pad_token_id=0,
    **options,
  )
  return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
  ('name', 'penalty'), [('qwen2', 1.0), ('qwen3_tied', 1.05), ('llama', 1.3)]
)
def test_greedy_is_generate(tmp_path, name, penalty):
  model = parts.save_folder(tmp_path, name)
  config, params = parts.load(tmp_path)
  token_BT, real_BT = parts.prompts()
  prompts = [t[r].tolist() for t, r in zip(token_BT, real_BT, strict=True)]
  engine = Engine(
    params,
    0,
    model_config=config,
    config=SamplingConfig(
      max_response_length=TOKENS,
      eos_id=2,
      pad_id=0,
      step_ids=(4,),
      think_start_id=parts.V + 1,  # this model has none
      think_end_id=parts.V + 2,
      temperature=0.0,
      repetition_penalty=penalty,
    ),
    engine_config=EngineConfig(num_slots=2, turns=16),
    sharder=Sharder(),
  )
  requests = [Request(tuple(p), i, (0,)) for i, p in enumerate(prompts)]
  found = {c.request.draw: c.token_R.tolist() for c in engine.run(requests)}
  total = 0
  for i, prompt in enumerate(prompts):
    want = _theirs(model, prompt, repetition_penalty=penalty)
    assert found[i] == want, np.flatnonzero(
      np.array(found[i][: len(want)]) != np.array(want[: len(found[i])])
    )
    total += len(want)
  assert total > TOKENS  # not all ended at once
