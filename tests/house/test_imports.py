"""Imports flow one way (tests/house/import_rules.py says which)."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.house import import_rules


def _plant(root, files):
  for path, source in files.items():
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source, encoding='utf-8')
  return import_rules.check_tree(root)


def test_the_project_keeps_the_rules(repo_root):
  assert import_rules.python_files(repo_root, 'metastone_jax')
  problems = import_rules.check_tree(repo_root)
  assert not problems, '\n' + '\n'.join(problems)


def test_the_table_has_no_circle():
  assert import_rules.find_circle(import_rules.ROOMS) is None


@pytest.mark.parametrize(
  ('path', 'source', 'expected'),
  [
    (
      'metastone_jax/sprm/a.py',
      'from metastone_jax.sampling import loop\n',
      'sprm may not import sampling',
    ),
    (
      'metastone_jax/sprm/a.py',
      'from ..training import loop\n',
      'sprm may not import training',
    ),
    (
      'metastone_jax/sprm/a.py',
      'from metastone_jax import model\n',
      'sprm may not import model',
    ),
    (
      'metastone_jax/policy/a.py',
      'def f():\n  import metastone_jax.sprm.marks\n',
      'policy may not import sprm',
    ),
    (
      'metastone_jax/model/a.py',
      "import importlib\nimportlib.import_module('launch.train')\n",
      'model may not import launch',
    ),
    (
      'metastone_jax/training/step.py',
      'from metastone_jax.training import loop\n',
      'training may not import training.loop',
    ),
    (
      'metastone_jax/training/step.py',
      'from metastone_jax.training.loop_joint import run\n',
      'training may not import training.loop',
    ),
    (
      'metastone_jax/training/__init__.py',
      'from . import loop\n',
      'training may not import training.loop',
    ),
    (
      'metastone_jax/telemetry/a.py',
      'import metastone_jax.model\n',
      'telemetry may not import model',
    ),
    ('metastone_jax/errors.py', 'import jax\n', 'errors may not import jax'),
    (
      'metastone_jax/model/a.py',
      'from kernels.log_prob import xla\n',
      'only its op.py may be imported',
    ),
    (
      'metastone_jax/model/a.py',
      'from kernels.log_prob.reference import log_prob\n',
      'only its op.py may be imported',
    ),
    (
      'kernels/log_prob/op.py',
      'from metastone_jax.model import config\n',
      'kernels may not import model',
    ),
    (
      'kernels/log_prob/op.py',
      'import flax\n',
      'kernels may not import flax',
    ),
    ('configs/tiny.py', 'import numpy\n', 'configs may not import numpy'),
    (
      'configs/tiny.py',
      'from metastone_jax.model import config\n',
      'configs may not import model',
    ),
    (
      'launch/train.py',
      'from configs import tiny\n',
      'launch may not import configs: it is never packaged',
    ),
    (
      'metastone_jax/model/a.py',
      'from tests.model import tiny\n',
      'model may not import tests: it is never packaged',
    ),
    (
      'metastone_jax/model/a.py',
      'try:\n  import torch\nexcept ImportError:\n  pass\n',
      'torch is not a run-time dependency',
    ),
    (
      'metastone_jax/data/a.py',
      'def f():\n  from transformers import AutoTokenizer\n',
      'transformers is not a run-time dependency',
    ),
    (
      'metastone_jax/checkpoints/score_module.py',
      'class A:\n  import torch.nn\n',
      'torch must be imported inside the function',
    ),
    ('metastone_jax/misc/a.py', '', 'stands in no room'),
    ('metastone_jax/helpers.py', '', 'stands in no room'),
    (
      'metastone_jax/model/a.py',
      'import metastone_jax.utils\n',
      'metastone_jax.utils stands in no room',
    ),
    ('metastone_jax/model/a.py', 'x = 1\n' * 451, 'over 450 lines'),
  ],
)
def test_a_planted_violation_is_found(tmp_path, path, source, expected):
  modules = {
    'metastone_jax/model/__init__.py': '',
    'metastone_jax/training/loop.py': '',
    'kernels/log_prob/xla.py': '',
  }
  problems = _plant(tmp_path, modules | {path: source})
  assert len(problems) == 1, problems
  assert problems[0].startswith(f'{path}:')
  assert expected in problems[0]


def test_what_the_rules_allow_is_not_reported(tmp_path):
  assert not _plant(
    tmp_path,
    {
      'metastone_jax/__init__.py': "__version__ = '1'\n",
      'metastone_jax/errors.py': '',
      'metastone_jax/telemetry/__init__.py': 'from ..errors import A\n',
      'metastone_jax/sprm/a.py': (
        'import jax\nimport numpy\nfrom absl import logging\n'
        'from metastone_jax import errors, telemetry\n'
        'from metastone_jax.sprm import b\nfrom . import b as c\n'
      ),
      'metastone_jax/sprm/b.py': '',
      'metastone_jax/model/a.py': (
        'from kernels.log_prob import op\n'
        'from kernels.log_prob.op import log_prob\n'
        'import metastone_jax\n'
      ),
      'metastone_jax/training/step.py': 'import metastone_jax.policy\n',
      'metastone_jax/training/loop.py': (
        'from metastone_jax import checkpoints, evaluation, sampling\n'
        'from metastone_jax.training import loop_joint, step\n'
      ),
      'metastone_jax/training/loop_joint.py': '',
      'metastone_jax/checkpoints/score_module.py': 'def f():\n  import torch\n',
      'kernels/__init__.py': '',
      'kernels/log_prob/op.py': (
        'import functools\nimport jax\n'
        'from kernels.log_prob import reference, xla\n'
      ),
      'kernels/log_prob/reference.py': '',
      'kernels/log_prob/xla.py': '',
      'launch/train.py': (
        'from metastone_jax.training import loop\nfrom launch import common\n'
      ),
      'configs/tiny.py': 'import math\nimport ml_collections\n',
      'tests/model/test_a.py': 'import torch\nimport launch.train\n',
    },
  )


def test_a_circle_between_files_of_one_room_is_found(tmp_path):
  problems = _plant(
    tmp_path,
    {
      'metastone_jax/model/a.py': 'from metastone_jax.model import b\n',
      'metastone_jax/model/b.py': 'from metastone_jax.model import c\n',
      'metastone_jax/model/c.py': 'from metastone_jax.model import a\n',
    },
  )
  a, b, c = (f'metastone_jax.model.{name}' for name in 'abc')
  assert problems == [f'circle: {a} -> {b} -> {c} -> {a}']


def test_transformers_imports_where_kernels_is_importable(repo_root):
  """transformers must not take our `kernels` for the package on PyPI."""
  if importlib.util.find_spec('transformers') is None:
    pytest.skip('transformers is not installed')
  code = """
import kernels, pathlib
found = pathlib.Path(kernels.__file__).parent
assert found == pathlib.Path('kernels').resolve(), found
assert kernels.__version__
import transformers
from transformers.utils import is_kernels_available
from transformers import Qwen2Config, Qwen2ForCausalLM
assert not is_kernels_available()
"""
  subprocess.run(
    [sys.executable, '-c', code],
    cwd=repo_root,
    env=os.environ | {'PYTHONPATH': ''},
    check=True,
    timeout=240,
  )
