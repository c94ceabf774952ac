"""What every command shares: flags, errors as one line, exit codes.

Exit codes: 0 done, 2 bad input (one line `error: ...`), 130 interrupted with
everything saved.
"""

import logging as py_logging
import os
import re
import shlex
import sys
from collections.abc import Callable

# Before jax: the CPU client's own log lines say nothing to a user.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
from absl import app, flags
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.training.loop import Interrupted

_CACHE = flags.DEFINE_string(
  'compilation_cache',
  os.path.join(os.path.expanduser('~'), '.cache', 'metastone_jax', 'xla'),
  'Folder of compiled programs, reused by later runs; empty = none.',
)


def command_line(module: str) -> str:
  """The shell command that repeats this call of `python -m module`."""
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


def fail(message: object) -> None:
  """Prints `error: message` on one line and exits with status 2."""
  print('error: ' + ' '.join(str(message).split()), file=sys.stderr)
  sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with bad flags and config keys as one line."""
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS:
      # A missing file is reported at the first look at its contents.
      getattr(flags.FLAGS['config'].value, 'items', None)
  except flags.Error as error:
    # ml_collections puts the whole traceback of a config file in there.
    text, traced, trace = str(error).strip().partition('Traceback')
    text += trace.splitlines()[-1] if traced else ''
    fail(f'{text}; --help lists the flags')
  except (AttributeError, KeyError, ValueError, TypeError) as error:
    # ml_collections refuses an unknown key or a value of another type.
    text = str(error.args[0] if error.args else error)
    text = text.strip('\'"').replace("\\'", "'").replace('\\n', '; ')
    fail(f'config key or value: {text}')
  except OSError as error:
    found = re.search(r'\[Errno \d+\] (.*)', str(error))
    fail(f'config file: {found[1] if found else error}')
  except (SyntaxError, ImportError) as error:
    fail(f'config file: {type(error).__name__}: {error}')
  if flags.FLAGS.help or flags.FLAGS.helpfull:
    return argv
  if len(rest) > 1:
    fail(f'unexpected argument {rest[1]!r}; --help lists the flags')
  return rest


def run(
  main: Callable[[], None],
  *,
  interrupted: str = 'what was finished stands; the same command goes on',
) -> None:
  """Runs a command's main() with the exit codes of this module.

  Args:
    main: the command.
    interrupted: what Ctrl-C leaves behind, where main does not say so itself.
  """

  def wrapped(_):
    # JAX reports each accelerator that is absent, at INFO.
    py_logging.getLogger('jax').setLevel(py_logging.WARNING)
    if _CACHE.value:
      epath.Path(_CACHE.value).mkdir(parents=True, exist_ok=True)
      jax.config.update('jax_compilation_cache_dir', _CACHE.value)
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
    try:
      main()
    except UserError as error:
      fail(error)
    except Interrupted as error:
      print(
        f'interrupted by {error}: everything is saved; the same command goes '
        'on',
        file=sys.stderr,
      )
      sys.exit(130)
    except KeyboardInterrupt:
      print(f'interrupted: {interrupted}', file=sys.stderr)
      sys.exit(130)

  app.run(wrapped, flags_parser=_parse)
