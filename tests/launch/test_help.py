"""--help of every command lists every flag it takes."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests.launch import jobs

COMMANDS = [
  f'launch.{path.relative_to(jobs.ROOT / "launch").with_suffix("")}'.replace(
    '/', '.'
  )
  for path in sorted(pathlib.Path(jobs.ROOT / 'launch').rglob('*.py'))
  if "if __name__ == '__main__'" in path.read_text()
]


def _defined(module: str) -> set[str]:
  """Names of the flags of a module and of those of launch/ that it imports."""
  seen, waiting, names = set(), [module], set()
  while waiting:
    module = waiting.pop()
    path = jobs.ROOT / (module.replace('.', '/') + '.py')
    if module in seen or not path.exists():
      continue
    seen.add(module)
    text = path.read_text()
    names |= set(re.findall(r"flags\.DEFINE_\w+\(\s*'(\w+)'", text))
    for package, found in re.findall(
      r'^from (launch[\w.]*) import (.*)$', text, re.M
    ):
      waiting += [package, *(f'{package}.{x}' for x in found.split(', '))]
  return names


def test_commands_are_found():
  assert {'launch.train', 'launch.evaluate', 'launch.pods.gke'} <= {*COMMANDS}


@pytest.mark.parametrize('command', COMMANDS)
def test_help_lists_every_flag(command):
  done = subprocess.run(
    [sys.executable, '-m', command, '--help'],
    cwd=jobs.ROOT,
    env=jobs.environment(),
    capture_output=True,
    text=True,
    timeout=120,
  )
  listed = set(re.findall(r'^ *--(?:\[no\])?(\w+)', done.stdout, re.M))
  assert _defined(command) and _defined(command) <= listed
