"""Recipes compiled by the real TPU and GPU compilers, against docs/pod_fit.md.

See `compilers` for where they are.
"""

import pathlib
import re

import pytest

from metastone_jax.compile_check import report
from tests.compile_check import compilers

# A program of a machine each: all of docs/pod_fit.md takes hours.
CHECKED = [
  ('1p5b', 'v6e-8', 'decode'),
  ('1p5b', 'h100-1', 'log_prob,decode'),
]


def _compile(repo_root, *flags):
  return compilers.run(repo_root, 'launch.compile', *flags)


@pytest.mark.parametrize(('recipe', 'target', 'names'), CHECKED)
def test_programs_compile_and_need_what_the_page_says(
  repo_root, recipe, target, names
):
  done = _compile(
    repo_root,
    f'--config=configs/{recipe}.py',
    f'--target={target}',
    f'--programs={names}',
    '--check',
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  for name in names.split(','):
    assert f'\n{name} ' in done.stdout
  # Nothing of the caches' size is copied from turn to turn.
  share = re.search(r'weights and caches once are .*\((\d+) % of', done.stdout)
  assert int(share[1]) > 90


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
    assert {'update', 'prefill', 'decode'} <= programs.keys(), name
