"""Recipes compiled by the real TPU and GPU compilers, against docs/pod_fit.md.

The compilers live in a virtual environment of their own (`make setup-compile`,
part of `make test`), named by COMPILE_PYTHON.
"""

import os
import pathlib
import subprocess

import pytest

from metastone_jax.compile_check import report

# One program of a machine each: all of docs/pod_fit.md takes hours.
CHECKED = [
  ('1p5b', 'v6e-8', 'log_prob'),
  ('1p5b', 'h100-1', 'log_prob'),
]


def _compile(repo_root, *flags):
  python = os.environ.get('COMPILE_PYTHON')
  if not python or not (repo_root / python).exists():
    pytest.skip('no compilers: make setup-compile, COMPILE_PYTHON names it')
  environment = {
    name: value
    for name, value in os.environ.items()
    # Of this process: fake devices, quiet logs.
    if not name.startswith(('JAX_', 'XLA_', 'TF_'))
  }
  return subprocess.run(
    [repo_root / python, '-m', 'launch.compile', *flags],
    cwd=repo_root,
    env=environment,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(('recipe', 'target', 'program'), CHECKED)
def test_a_program_compiles_and_needs_what_the_page_says(
  repo_root, recipe, target, program
):
  done = _compile(
    repo_root,
    f'--config=configs/{recipe}.py',
    f'--target={target}',
    f'--programs={program}',
    '--check',
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  assert program in done.stdout


def test_bad_input_is_one_line(repo_root):
  for flags, message in (
    (('--config=configs/32b.py',), '--config and --target are needed'),
    (('--config=configs/32b.py', '--target=v5p'), "target 'v5p' is unknown"),
  ):
    done = _compile(repo_root, *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_every_section_of_the_page_fits_or_says_that_it_does_not():
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'pod_fit.md'
  sizes = report.read_sizes(page)
  assert sizes, 'docs/pod_fit.md has no sections'
  for name, programs in sizes.items():
    assert {'update', 'rollout'} <= programs.keys(), name
