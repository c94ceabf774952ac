"""How the code reaches TPU machines that share no file system.

--code=                        this checkout at HEAD: a tarball is made and
                               put into the bucket of --workdir (default)
--code=gs://bucket/x.tar.gz    a tarball that is there already
--code=git+URL@COMMIT          every machine clones it, as pip would
"""

import dataclasses
import pathlib
import re
import shlex

from absl import flags

from launch.pods import job, shell
from metastone_jax.errors import UserError

_CODE = flags.DEFINE_string(
  'code',
  '',
  'Empty: this checkout at HEAD; gs://...tar.gz; or git+URL@COMMIT.',
)


@dataclasses.dataclass(frozen=True)
class Code:
  """One version of the code.

  Attributes:
    identity: names the version; a machine that has it does not fetch it again.
    fetch: line of shell that puts the code into the current, empty folder.
    prepare: commands that make it available, run once before the machines are.
  """

  identity: str
  fetch: str
  prepare: tuple[tuple[str, ...], ...] = ()


def _git(*arguments: str) -> str:
  done = shell.answer(['git', '-C', str(job.ROOT), *arguments])
  if done.returncode:
    raise UserError(
      f'{job.ROOT} is no git checkout ({shell.last_line(done.stderr)}); give '
      '--code=gs://...tar.gz or --code=git+URL@COMMIT'
    )
  return done.stdout.strip()


def _tarball(url: str) -> str:
  return f'gcloud storage cat {shlex.quote(url)} | tar -xzf -'


def resolve(folder: str) -> Code:
  """What --code means.

  Args:
    folder: gs:// folder for the tarball of this checkout.

  Raises:
    UserError: not a form above, or the checkout has uncommitted changes.
  """
  value = _CODE.value
  if value.startswith('gs://') and value.endswith(('.tar.gz', '.tgz')):
    return Code(value, _tarball(value))
  if value.startswith('git+'):
    url, at, commit = value.removeprefix('git+').rpartition('@')
    if not at or not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._/-]*', commit):
      raise UserError(
        '--code=git+URL without a version: add @COMMIT, so that a machine made '
        'next week runs the same code'
      )
    if re.match(r'https?://[^/]*@', url):
      raise UserError(
        "--code: a user or token in the URL would stand in the machine's "
        'metadata; leave --code empty to send this checkout instead'
      )
    # A commit that no branch ends with can be fetched but not cloned.
    fetch = ' && '.join(
      [
        'git init --quiet',
        f'git fetch --quiet --depth=1 {shlex.quote(url)} {shlex.quote(commit)}',
        'git checkout --quiet FETCH_HEAD',
      ]
    )
    return Code(value, fetch)
  if value:
    raise UserError(
      f'--code={value!r} is not gs://...tar.gz, git+URL@COMMIT or empty'
    )
  commit = _git('rev-parse', 'HEAD')
  changed = _git('status', '--porcelain', '--untracked-files=no')
  if changed:
    raise UserError(
      f'{job.ROOT} has uncommitted changes ({changed.split()[1]} and '
      f'{len(changed.splitlines()) - 1} more), which would not travel; commit '
      'them, or give --code'
    )
  target = f'{folder}/code-{commit[:12]}.tar.gz'
  local = str(cache_folder() / f'code-{commit[:12]}.tar.gz')
  archive = ('git', '-C', str(job.ROOT), 'archive', '--format=tar.gz')
  return Code(
    target,
    _tarball(target),
    (
      (*archive, f'--output={local}', commit),
      ('gcloud', 'storage', 'cp', local, target),
    ),
  )


def cache_folder() -> pathlib.Path:
  """Where this machine keeps what it sends; made by a real run only."""
  return pathlib.Path.home() / '.cache' / 'metastone_jax' / 'pods'
