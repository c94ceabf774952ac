"""The token log-prob on 8 devices, against one loop in float64."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from kernels.token_log_prob import Split
from tests.kernels import token_log_prob_cases as cases
from tests.kernels.test_token_log_prob_pallas import RUNS
from tests.kernels.token_log_prob_cases import Case

# Axes of the mesh, and of what is split over them.
SPLITS = {
  'rows': (
    ('data', 'fsdp', 'tensor'),
    dict(batch=('data', 'fsdp'), embed=('fsdp',), vocabulary=('tensor',)),
  ),
  'rows and places': (
    ('fsdp', 'sequence', 'tensor'),
    dict(
      batch=('fsdp',),
      length=('sequence',),
      embed=('fsdp',),
      vocabulary=('tensor',),
    ),
  ),
  'places, a whole head': (
    ('data', 'fsdp', 'sequence'),
    dict(length=('sequence', 'data')),
  ),
  'columns': (
    ('fsdp', 'sequence', 'tensor'),
    dict(vocabulary=('sequence', 'tensor'), embed=('fsdp',)),
  ),
  'places and rows of the head': (
    ('fsdp', 'sequence', 'tensor'),
    dict(length=('sequence', 'tensor'), embed=('tensor',)),
  ),
}


def split_of(name: str) -> Split:
  """A split over 2 x 2 x 2 devices."""
  axes, split = SPLITS[name]
  mesh = Mesh(
    np.array(jax.devices()[:8]).reshape(2, 2, 2),
    axes,
    axis_types=(AxisType.Auto,) * 3,
  )
  return Split(mesh, **split)


@pytest.mark.parametrize('chunk', [3, None])
@pytest.mark.parametrize('name', SPLITS)
def test_xla_in_float64(name, chunk):
  """Two columns of padding; targets in every device's columns."""
  case = Case(((4, 8), 8, 12), 10, 'float64', 'float64')
  with jax.enable_x64(True):
    inputs = cases.make(case)
    got = cases.run(
      inputs,
      vocab_size=case.vocab_size,
      split=split_of(name),
      kind='xla',
      chunk=chunk,
    )
  want = cases.want(inputs, case.vocab_size)
  for g, w in zip(got, want, strict=True):
    assert g.dtype == np.float64
    np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('run', ['tpu', 'gpu'])
@pytest.mark.parametrize(
  ('name', 'hidden'),
  [
    ('rows', 'bfloat16'),
    ('rows and places', 'float32'),
    ('columns', 'bfloat16'),
  ],
)
def test_kernels(name, hidden, run):
  check_kernels(name, hidden, run)


def check_kernels(name: str, hidden: str, run: str):
  """Ragged last tiles, with the next device's targets in their padding."""
  case = Case(((4, 40), 128, 4 * 130), 4 * 130 - 7, hidden, 'float32')
  inputs = cases.make(case)
  with cases.small_blocks():
    got = cases.run(
      inputs,
      vocab_size=case.vocab_size,
      split=split_of(name),
      **RUNS[run],
    )
  cases.check(got, cases.want(inputs, case.vocab_size), hidden)
