"""Prompts that are read in pieces, and several at a time, give the same."""

import jax
import numpy as np
import pytest

from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling.engine import Request
from tests.sampling import tiny
from tests.sampling.engine import served
from tests.sampling.tiny import PAD, THINK, V

N, S = 2, 64
LENGTHS = (50, 3, 17, 64, 32, 16)
CONFIG = tiny.sampling_config(temperature=0.8)


def _prompts():
  rng = np.random.default_rng(3)
  prompt = rng.integers(5, V, (len(LENGTHS), S)).astype(np.int32)
  length = np.array(LENGTHS, np.int32)
  prompt[np.arange(S) >= length[:, None]] = PAD
  prompt[np.arange(len(length)), length - 1] = THINK
  return prompt, length


@pytest.mark.parametrize(
  ('shape', 'mesh'),
  [
    (dict(num_slots=12, prefill_tokens=16), None),
    (dict(num_slots=12, prefill_tokens=128), None),
    (dict(num_slots=3, prefill_tokens=32), None),
    (dict(num_slots=8, prefill_tokens=16), dict(data=4, tensor=2)),
  ],
  ids=str,
)
def test_pieces_change_nothing(shape, mesh):
  sharder = Sharder() if mesh is None else Sharder(make_mesh(mesh))
  prompt, length = _prompts()
  with jax.enable_x64(True):
    wanted = served.fixed_batch(CONFIG, prompt, length, N)
    requests = [
      Request(tuple(prompt[p, : length[p]].tolist()), p, tuple(range(N)))
      for p in range(len(length))
    ]
    found = list(served.engine(CONFIG, sharder, turns=4, **shape).run(requests))
  assert len(found) == len(LENGTHS) * N
  for c in found:
    place = c.request.draw, c.number
    count = wanted.length_PN[place]
    np.testing.assert_array_equal(c.token_R, wanted.token_PNR[place][:count])
    np.testing.assert_allclose(
      c.log_prob_R, wanted.log_prob_PNR[place][:count], rtol=1e-9
    )
    np.testing.assert_allclose(c.score, wanted.score_PN[place], rtol=1e-9)
