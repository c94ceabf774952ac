"""Launchers as whole commands, among programs that only record their calls."""

import json
import os
import pathlib
import shlex
import stat
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# One process a launcher imports everything once and forks a child a command.
# (Two launchers cannot share one: both define --accelerator.) Other commands
# of launch/ may be started so, too.
SERVER = r"""
import importlib, json, os, sys, traceback
module = importlib.import_module(sys.argv[1])
entry = module.job if hasattr(module, 'job') else module.cli

for line in sys.stdin:
  case = json.loads(line)
  child = os.fork()
  if child == 0:
    code = 1
    try:
      for descriptor, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT), descriptor)
      os.environ.update(case['env'])
      sys.argv = ['launcher', *case['argv']]
      try:
        entry.run(module.main)
        code = 0
      except SystemExit as error:
        code = error.code or 0
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  _, status = os.waitpid(child, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
"""

# Begins every fake: one line a call, quoted as a shell would take it.
RECORD = """#!/bin/bash
{ printf '%q ' "$(basename "$0")" "$@"; echo; } >>"$RECORD"
"""

# Each look takes a line of $STATES, `STATE` or `STATE|VERDICT`: the state, and
# from then on the verdict in the bucket. none: no request; broken: no network.
GCLOUD = r"""
case "$*" in
  *describe*)
    line=$(head -n 1 "$STATES")
    sed -i 1d "$STATES"
    [ "${line%%|*}" != none ] || { echo 'ERROR: NOT_FOUND: x' >&2; exit 1; }
    [ "${line%%|*}" != broken ] || { echo 'ERROR: network' >&2; exit 1; }
    [ "${line##*|}" = "$line" ] || echo "${line##*|}" >"$VERDICT"
    echo "${line%%|*}" ;;
  *'storage cat'*) cat "$VERDICT" 2>/dev/null || exit 1 ;;
  *'storage rm'*) rm "$VERDICT" ;;
esac
"""


class Launcher:
  """`python -m launch.pods.WHERE` or a module, started many times."""

  def __init__(self, where: str, tmp: pathlib.Path):
    self._tmp, self._count = tmp, 0
    self._server = subprocess.Popen(
      [
        *(sys.executable, '-c', SERVER),
        where if '.' in where else f'launch.pods.{where}',
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      cwd=ROOT,
      env=os.environ | {'HOME': str(tmp)},
      text=True,
    )

  def __call__(self, *argv: str, **env: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command."""
    self._count += 1
    files = [self._tmp / f'{self._count}.{n}' for n in ('stdout', 'stderr')]
    case = {
      'argv': ['--compilation_cache=', *argv],
      'env': env,
      'stdout': str(files[0]),
      'stderr': str(files[1]),
    }
    self._server.stdin.write(json.dumps(case) + '\n')
    self._server.stdin.flush()
    code = int(self._server.stdout.readline())
    return code, *(file.read_text() for file in files)

  def close(self) -> None:
    self._server.stdin.close()
    self._server.wait(10)


class Programs:
  """A folder of fake programs for PATH, and the calls they recorded."""

  def __init__(self, tmp: pathlib.Path):
    self.folder, self.record = tmp / 'bin', tmp / 'calls'
    self.folder.mkdir()
    self.record.touch()

  def add(self, name: str, body: str = '') -> None:
    path = self.folder / name
    path.write_text(RECORD + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)

  @property
  def env(self) -> dict[str, str]:
    # The fakes hide programs of the same name that this machine really has.
    return {
      'PATH': f'{self.folder}:/usr/bin:/bin',
      'RECORD': str(self.record),
    }

  def calls(self) -> list[list[str]]:
    return [shlex.split(line) for line in self.record.read_text().splitlines()]


def split_heredocs(text: str) -> tuple[list[list[str]], dict[str, str]]:
  """(the commands, command line -> its heredoc) of a dry run's output."""
  commands, texts = [], {}
  lines = iter(text.splitlines())
  for line in lines:
    if line.startswith('#') or not line:
      continue
    command, marker, end = line.partition(" <<'")
    commands.append(shlex.split(command))
    if marker:
      body = []
      while (part := next(lines)) != end.rstrip("'"):
        body.append(part)
      texts[command] = '\n'.join(body) + '\n'
  return commands, texts


def check_syntax(script: str) -> None:
  """`bash -n` of a script."""
  done = subprocess.run(
    ['bash', '-n'], input=script, capture_output=True, text=True
  )
  assert done.returncode == 0 and not done.stderr, done.stderr


def loop(command: list[str]) -> tuple[list[str], list[str]]:
  """(options, command) of a call of restart.sh."""
  assert command[:2] == ['bash', 'launch/pods/restart.sh']
  cut = command.index('--')
  return command[2:cut], command[cut + 1 :]
