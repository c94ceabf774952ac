"""What every launcher shares: its flags, its checks, the training command.

A launcher is called as

  python -m launch.pods.WHERE --name=... --workdir=... -- <launch.train flags>

Everything after `--` goes to launch.train unread, except what would go wrong
only hours later, on the machines: a recipe that is not given or that they
cannot see, a second --workdir, a --step that every restart would go back to.
"""

import pathlib
import re
import sys

from absl import flags

import launch
from launch import cli
from metastone_jax.errors import UserError

ROOT = pathlib.Path(launch.__file__).resolve().parents[1]

_NAME = flags.DEFINE_string('name', None, 'Name of the job.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run, where every restart finds it.'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print everything that would be run, and run nothing.'
)
MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts',
  10,
  'Restarts after failures on a machine; interruptions and preemptions do not '
  'count, bad input is never restarted.',
  lower_bound=0,
)
_ENV = flags.DEFINE_multi_string(
  'env', [], 'NAME=VALUE for the processes; repeat it. Not for secrets.'
)

_SECRET = re.compile(r'KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL', re.I)
VARIABLE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')


def run(main) -> None:
  """Runs a launcher's main(train_flags) with the exit codes of launch.cli."""
  train_flags = None
  if '--' in sys.argv:
    cut = sys.argv.index('--')
    sys.argv, train_flags = sys.argv[:cut], sys.argv[cut + 1 :]
  cli.run(lambda: main(train_flags))


def name() -> str:
  """--name, fit for Kubernetes, Google Cloud and SLURM alike."""
  value = _NAME.value
  if not value:
    raise UserError('--name is missing; for example --name=run-32b')
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', value):
    raise UserError(
      f'--name={value!r}: give at most 40 lower-case letters, digits and '
      'hyphens, a letter first and no hyphen last'
    )
  return value


def cloud_workdir() -> str:
  """--workdir in a bucket."""
  value = _WORKDIR.value
  if not value:
    raise UserError('--workdir is missing; for example gs://my-bucket/run-32b')
  if not re.fullmatch(r'gs://[a-z0-9][a-z0-9._-]*/.*[^/]/*', value):
    raise UserError(
      f'--workdir={value!r} must be a folder in a bucket, such as '
      'gs://my-bucket/run-32b: a restart on other machines must find it'
    )
  return value.rstrip('/')


def shared_workdir() -> str:
  """--workdir as an absolute path (a shared file system) or in a bucket."""
  value = _WORKDIR.value
  if not value:
    raise UserError('--workdir is missing; for example /shared/runs/run-32b')
  if value.startswith('gs://'):
    return cloud_workdir()
  if not value.startswith('/') or value.strip('/') == '':
    raise UserError(
      f'--workdir={value!r} must be an absolute path on a file system that all '
      'nodes share, or gs://...: a restart on other nodes must find it'
    )
  return value.rstrip('/')


def environment() -> dict[str, str]:
  """--env as a dictionary."""
  result = {}
  for item in _ENV.value:
    key, equals, value = item.partition('=')
    if not equals or not VARIABLE.fullmatch(key):
      raise UserError(f'--env={key}...: give NAME=VALUE')
    if _SECRET.search(key):
      raise UserError(
        f'--env={key}=...: a secret is never written into a script or a '
        'manifest; pass it by name with --secret'
      )
    result[key] = value
  return result


def secrets(items: list[str], meaning: str) -> dict[str, str]:
  """--secret=VARIABLE=NAME as a dictionary.

  Args:
    items: the values of the flag.
    meaning: what NAME is, for the error message.
  """
  result = {}
  for item in items:
    key, equals, value = item.partition('=')
    # What is malformed is not repeated: it may be the secret itself.
    if not equals or not VARIABLE.fullmatch(key):
      raise UserError(f'--secret: give VARIABLE=NAME, NAME {meaning}')
    named = re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_.-]*', value)
    if not named or re.fullmatch(r'[0-9a-f]{32,}', value):
      raise UserError(
        f'--secret={key}=...: after = stands {meaning}, never the secret itself'
      )
    result[key] = value
  return result


def _given(train_flags: list[str], flag: str) -> str | None:
  """The value of a flag of launch.train; '' where it follows as a word."""
  for i, word in enumerate(train_flags):
    for form in (f'--{flag}', f'-{flag}'):
      if word == form:
        return (train_flags[i + 1 : i + 2] or [''])[0]
      if word.startswith(f'{form}='):
        return word.partition('=')[2]
  return None


def train_command(
  train_flags: list[str] | None, workdir: str, python: str = 'python'
) -> list[str]:
  """`python -m launch.train`, as started on every machine.

  Args:
    train_flags: what the user wrote after `--`; None = there was none.
    workdir: folder of the run.
    python: interpreter on the machines.

  Raises:
    UserError: the flags could not work there.
  """
  if not train_flags or _given(train_flags, 'config') is None:
    raise UserError(
      'the recipe is missing: put the flags of launch.train after `--`, for '
      'example: -- --config=configs/32b.py'
    )
  if _given(train_flags, 'workdir') is not None:
    raise UserError(
      '--workdir stands after `--`: give it once, before, to the launcher'
    )
  if _given(train_flags, 'step') is not None:
    raise UserError(
      '--step after `--`: every restart would go back to that step; use '
      '--config.start_from and --config.start_from_step in a new --workdir'
    )
  recipe = _given(train_flags, 'config').partition(':')[0]
  if recipe.startswith(('/', '..')):
    raise UserError(
      f'--config={recipe}: the machines have this repository only; put the '
      'recipe in it and give its path from the root, such as configs/32b.py'
    )
  if not (ROOT / recipe).is_file():
    raise UserError(f'--config={recipe}: no such file in {ROOT}')
  return [
    python,
    '-m',
    'launch.train',
    *train_flags,
    f'--workdir={workdir}',
  ]


def restart_command(
  command: list[str], max_restarts: int, *options: str
) -> list[str]:
  """The command inside the loop of restart.sh, from the repository's root."""
  return [
    'bash',
    'launch/pods/restart.sh',
    f'--limit={max_restarts}',
    *options,
    '--',
    *command,
  ]
