"""Recipes compiled by the real TPU and GPU compilers, against docs/pod_fit.md.

See `compilers` for where they are.
"""

import pathlib

import pytest

from metastone_jax.compile_check import report
from tests.compile_check import compilers

# One program of a machine each: all of docs/pod_fit.md takes hours.
CHECKED = [
  ('1p5b', 'v6e-8', 'log_prob'),
  ('1p5b', 'h100-1', 'log_prob'),
]


def _compile(repo_root, *flags):
  return compilers.run(repo_root, 'launch.compile', *flags)


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
