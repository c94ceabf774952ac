"""Runs a module in the environment that has the TPU and GPU compilers.

`make setup-compile` makes it, part of `make test`; COMPILE_PYTHON names it.
"""

import os
import subprocess

import pytest


def run(repo_root, module: str, *flags: str) -> subprocess.CompletedProcess:
  """`python -m module flags`; the test is skipped without compilers."""
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
    [repo_root / python, '-m', module, *flags],
    cwd=repo_root,
    env=environment,
    capture_output=True,
    text=True,
  )
