"""What setup.cfg promises: versions, dependencies, and what is packaged."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

from tests.house import import_rules

PACKAGED = ('metastone_jax', 'kernels', 'launch')
# Distributions whose module has another name.
MODULE_OF = {'absl-py': 'absl', 'orbax-checkpoint': 'orbax'}


@pytest.fixture(scope='module')
def setup_cfg(repo_root):
  config = configparser.ConfigParser()
  config.read(repo_root / 'setup.cfg', encoding='utf-8')
  return config


def _requirements(text):
  lines = (line.partition('#')[0].strip() for line in text.splitlines())
  return [Requirement(line) for line in lines if line]


def _assigned_version(path):
  """`__version__` of a file, without importing it."""
  for node in ast.parse(path.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == '__version__':
      return ast.literal_eval(node.value)
  raise AssertionError(f'{path} defines no __version__')


def test_versions_agree(repo_root, setup_cfg):
  assert setup_cfg['metadata']['version'] == 'attr: metastone_jax.__version__'
  version = _assigned_version(repo_root / 'metastone_jax' / '__init__.py')
  assert str(Version(version)) == version
  assert _assigned_version(repo_root / 'kernels' / '__init__.py') == version


def test_licence_files_exist(repo_root, setup_cfg):
  for name in setup_cfg['metadata']['license_files'].split():
    assert (repo_root / name).is_file(), name
  text = (repo_root / 'LICENSE').read_text(encoding='utf-8')
  assert 'Apache License' in text and 'Version 2.0, January 2004' in text
  assert 'END OF TERMS AND CONDITIONS' in text


def _allowed(requirements, name, python, version):
  """Whether all lines on a package admit a version under a Python."""
  environment = default_environment() | {'python_version': python}
  lines = [
    r
    for r in requirements
    if r.name == name and (r.marker is None or r.marker.evaluate(environment))
  ]
  assert lines, f'{name} is not required on Python {python}'
  return all(r.specifier.contains(version) for r in lines)


@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_jax_and_flax_that_do_not_work_together_cannot_meet(setup_cfg, python):
  requirements = _requirements(setup_cfg['options']['install_requires'])

  def allowed(name, version):
    return _allowed(requirements, name, python, version)

  new_jax = any(allowed('jax', v) for v in ('0.11.1', '0.11.2', '0.12.0.1'))
  old_flax = any(allowed('flax', v) for v in ('0.12.7', '0.12.8'))
  assert not (new_jax and old_flax)
  if python == '3.11':
    assert allowed('jax', '0.10.2') and allowed('flax', '0.12.8')
  else:
    assert allowed('jax', '0.12.0.1') and allowed('flax', '0.12.12')


def test_extras(setup_cfg):
  extras = setup_cfg['options.extras_require']
  promised = {'tpu', 'cuda', 'export', 'tfds', 'gym', 'human_eval', 'math'}
  promised |= {'test'}
  formats = {'gguf', 'sentencepiece', 'gcs'}
  formats |= {'array_record', 'champ', 'parquet'}
  others = {'tensorboard', 'wandb', 'slurm'}
  assert promised | formats | others == set(extras)
  for text in extras.values():
    assert _requirements(text)
  required = _requirements(setup_cfg['options']['install_requires'])
  assert not {r.name for r in required} & import_rules.HEAVY


def test_every_package_imported_at_start_up_is_required(repo_root, setup_cfg):
  """A package that arrives only through another one is not a promise."""
  required = {
    MODULE_OF.get(r.name, r.name.replace('-', '_'))
    for r in _requirements(setup_cfg['options']['install_requires'])
  }
  known = required | set(import_rules.TOP_FOLDERS) | sys.stdlib_module_names
  missing = []
  for path in import_rules.python_files(repo_root, *PACKAGED, 'configs'):
    source = (repo_root / path).read_text(encoding='utf-8')
    for item in import_rules.imports_of(source, path):
      if not item.lazy and item.module.split('.')[0] not in known:
        missing.append(f'{path}:{item.line}: {item.module}')
  assert not missing, '\n' + '\n'.join(missing)


def test_every_folder_with_code_is_a_package(repo_root):
  """`find:` skips a folder without __init__.py, and its code with it."""
  missing = {
    os.path.dirname(path)
    for path in import_rules.python_files(repo_root, *PACKAGED)
    if not (repo_root / os.path.dirname(path) / '__init__.py').is_file()
  }
  assert not missing


@pytest.fixture(scope='module')
def wheel(repo_root, tmp_path_factory):
  """(names in the wheel, its METADATA), built from a copy, offline."""
  pytest.importorskip('setuptools', minversion='77')
  tree = tmp_path_factory.mktemp('tree')
  for name in (*PACKAGED, 'configs', 'tests'):
    if (repo_root / name).is_dir():
      ignore = shutil.ignore_patterns('__pycache__', '.*')
      shutil.copytree(repo_root / name, tree / name, ignore=ignore)
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'NOTICE'):
    if (repo_root / name).is_file():
      shutil.copy(repo_root / name, tree / name)
  build = 'from setuptools import build_meta; build_meta.build_wheel("out")'
  (tree / 'out').mkdir()
  done = subprocess.run(
    [sys.executable, '-c', build],
    cwd=tree,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  (path,) = (tree / 'out').glob('*.whl')
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    (metadata,) = (n for n in names if n.endswith('.dist-info/METADATA'))
    return names, archive.read(metadata).decode()


def test_the_wheel_holds_the_code_and_nothing_else(repo_root, wheel):
  names, _ = wheel
  code = {name for name in names if name.endswith('.py')}
  assert code == set(import_rules.python_files(repo_root, *PACKAGED))
  tops = {name.split('/')[0] for name in names if '.dist-info/' not in name}
  assert tops <= set(PACKAGED)
  folder = repo_root / 'metastone_jax' / 'data' / 'tiny_tokenizer'
  files = {p.relative_to(repo_root).as_posix() for p in folder.glob('*')}
  assert {n for n in names if '/tiny_tokenizer/' in n} == files
  assert {'launch/pods/restart.sh', 'launch/pods/Dockerfile'} <= set(names)


def test_the_wheel_says_what_it_is(repo_root, wheel):
  _, metadata = wheel
  version = _assigned_version(repo_root / 'metastone_jax' / '__init__.py')
  assert re.search(f'^Version: {re.escape(version)}$', metadata, re.M)
  assert re.search('^Requires-Python: >=3.11$', metadata, re.M)
  assert re.search('^License-Expression: Apache-2.0$', metadata, re.M)


def test_the_build_file_is_minimal(repo_root):
  """Name, version and dependencies have one home: setup.cfg."""
  with open(repo_root / 'pyproject.toml', 'rb') as file:
    build = tomllib.load(file)
  assert 'project' not in build
  assert build['build-system']['build-backend'] == 'setuptools.build_meta'
