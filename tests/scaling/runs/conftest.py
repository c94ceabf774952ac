"""A small policy and its responses, made once for all tests of arms."""

import dataclasses
from collections.abc import Callable

import pytest
from etils import epath

from metastone_jax.scaling.job import Job
from metastone_jax.scaling.runs import material
from metastone_jax.training import loop
from tests.training.loop.parts import one_device

_SAME = {'set': 'tiny', 'seed': 5}
BASE = {
  'name': 'base',
  'kind': 'base',
  'recipe': 'tests/launch/small.py',
  'changes': {
    'seed': 5,
    'phase_order': ('warmup',),
    'phases.warmup.steps': 150,
    'model.num_layers': 3,
    'evaluation.problems': 2,
    'evaluation.stage_samples': 2,
    'evaluation.final_samples': 2,
    'evaluation.ks': (1, 2),
  },
  'start': '',
  **_SAME,
}
MATERIAL = {
  'name': 'material',
  'kind': 'material',
  'base': 'base',
  'task': 'signs',
  'train_problems': 8,
  'train_samples': 4,
  'problems': 6,
  'samples': 4,
  'slots': 16,
  **_SAME,
}


@dataclasses.dataclass
class Sweep:
  """A sweep's folder, whose points are done by hand."""

  root: epath.Path
  cache: dict = dataclasses.field(default_factory=dict)
  said: list = dataclasses.field(default_factory=list)

  def job(self, name: str, stop_at: int = -1) -> Job:
    """Of a point; the stop_at-th look at the signals finds one."""
    looks = []

    def check_stop():
      looks.append(0)
      if len(looks) == stop_at:
        raise loop.Interrupted('SIGTERM')

    job = Job(name, self.root, self.cache, self.said.append, check_stop)
    job.folder.mkdir(parents=True, exist_ok=True)
    return job

  def do(self, run: Callable, point, **options):
    """The rows of a point."""
    return run(point, self.job(point['name'], **options))


@pytest.fixture(scope='session')
def claims_sweep(tmp_path_factory):
  """(Sweep with BASE and MATERIAL done, the rows of both)."""
  sweep = Sweep(epath.Path(tmp_path_factory.mktemp('claims')))
  with one_device():
    rows = sweep.do(material.base, BASE)
    rows += sweep.do(material.material, MATERIAL)
  return sweep, rows


@pytest.fixture
def policy(claims_sweep):
  """(Sweep, setup of its policy) on one device."""
  sweep, _ = claims_sweep
  with one_device(), material.base_setup(sweep.job('x'), 'base') as setup:
    yield sweep, setup
