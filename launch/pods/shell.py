"""Commands of other programs: printed as a shell would take them, or run.

What a dry run prints and what a real run starts come from the same lists of
arguments; nothing here goes through a shell.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from metastone_jax.errors import UserError

# What to install when a program is missing.
_INSTALL = {
  'gcloud': 'install the Google Cloud CLI (https://cloud.google.com/sdk)',
  'kubectl': 'install it (gcloud components install kubectl) and point it at '
  'the cluster (gcloud container clusters get-credentials)',
  'sbatch': 'run this on a login node of the SLURM cluster',
  'git': 'install git, or give --code',
}


def line(argv: Sequence[str]) -> str:
  """The command as one line of shell, every argument quoted as needed."""
  return shlex.join(argv)


def heredoc(command: str, text: str) -> str:
  """A line of shell that gives a text to a command on its standard input."""
  end = 'END'
  while end in text.splitlines():
    end += '_'
  closed = text if text.endswith('\n') else text + '\n'
  return f"{command} <<'{end}'\n{closed}{end}"


def require(*programs: str) -> None:
  """Refuses to begin when a program that will be needed is not there."""
  for program in programs:
    if shutil.which(program) is None:
      raise UserError(
        f'{program} is not on PATH: {_INSTALL[program]}; --dry_run prints the '
        'commands without it'
      )


def answer(argv: Sequence[str]) -> subprocess.CompletedProcess:
  """Runs a command quietly; its status, stdout and stderr are for the caller.

  Raises:
    UserError: the program does not exist.
  """
  require(argv[0])
  return subprocess.run(
    argv, stdin=subprocess.DEVNULL, capture_output=True, text=True
  )


def last_line(text: str) -> str:
  """The line of a program's errors that says what was wrong."""
  lines = [part.strip() for part in text.splitlines() if part.strip()]
  errors = [part for part in lines if 'ERROR' in part or 'error' in part]
  return (errors or lines or ['no message'])[-1]


def run(argv: Sequence[str], stdin: str | None = None) -> str:
  """Shows a command, runs it, shows its errors; its standard output.

  Args:
    argv: the command.
    stdin: text for its standard input; None = nothing.

  Raises:
    UserError: the program does not exist or fails.
  """
  require(argv[0])
  print(f'+ {line(argv)}', flush=True)
  done = subprocess.run(
    argv,
    input='' if stdin is None else stdin,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise UserError(
      f'`{line(argv)}` failed with status {done.returncode}: '
      f'{last_line(done.stderr)}'
    )
  print(done.stderr, end='', file=sys.stderr)
  print(done.stdout, end='', flush=True)
  return done.stdout
