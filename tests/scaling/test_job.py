"""What a runner asks of its point before it does anything."""

import pytest

from metastone_jax.errors import UserError
from metastone_jax.scaling import job
from metastone_jax.scaling.runs import runners


def test_keys_that_are_missing_are_named():
  point = {'name': 'p', 'kind': 'sample', 'ks': [1], 'budget': None}
  job.needs_keys(point, 'ks', 'budget')
  with pytest.raises(UserError) as caught:
    job.needs_keys(point, 'ks', 'task', 'train')
  assert str(caught.value) == (
    "point p of the sweep has no task, train, which its kind 'sample' needs; "
    'its config must give ks, task, train'
  )


@pytest.mark.parametrize('kind', runners.RUNNERS)
def test_every_runner_asks_first(kind):
  """There is no job yet: nothing was done."""
  with pytest.raises(UserError, match=f"of the sweep has no .*kind '{kind}'"):
    runners.runner(kind)({'name': 'p', 'kind': kind}, None)
