"""Draws that read their caches through the TPU and GPU decode kernels."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import sample
from tests import quick
from tests.model import naive
from tests.sampling.tiny import SEED, model_config, prompts, sampling_config

# Short: an interpreted kernel takes a tenth of a second a call.
CONFIG = sampling_config(max_response_length=4)


def _draw(params, prompt, length, mconfig, sharder):
  program = functools.partial(
    sample, model_config=mconfig, config=CONFIG, sharder=sharder
  )
  draw_P, candidate_N = np.arange(2), np.arange(2)
  return jax.device_get(
    quick.jit(program)(
      params,
      prompt,
      length,
      np.int32(SEED),
      draw_P.astype(np.int32),
      candidate_N.astype(np.int32),
    )
  )


@pytest.mark.parametrize(
  ('kind', 'width', 'mesh'),
  [('pallas_tpu', 8, {'data': 2, 'tensor': 2}), ('pallas_gpu', 16, None)],
)
def test_interpreted_kernels_draw_what_the_plain_form_draws(kind, width, mesh):
  mconfig = dataclasses.replace(model_config('float32'), head_width=width)
  params = naive.random_params(mconfig, 1)
  prompt, length = prompts(2)
  plain = _draw(params, prompt, length, mconfig, Sharder())
  sharder = Sharder()
  if mesh:
    sharder = Sharder(make_mesh(mesh, jax.devices()[:4]))
    rows = sharder.put_batch({'prompt': prompt, 'length': length})
    prompt, length = rows['prompt'], rows['length']
  forced = dataclasses.replace(
    mconfig, decode_attention=kind, interpret_kernels=True
  )
  drawn = _draw(params, prompt, length, forced, sharder)
  np.testing.assert_array_equal(drawn.token_PNR, plain.token_PNR)
  for name in ('log_prob_PNR', 'step_logit_PNR', 'score_PN'):
    found = np.asarray(getattr(drawn, name))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, getattr(plain, name), atol=1e-4)
