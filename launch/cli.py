"""What every command shares: flags, errors as one line, exit codes.

Exit codes: 0 done, 2 bad input (one line `error: ...`), 130 interrupted with
everything saved, 75 another host of the job was lost or late (the same command
goes on from the last checkpoint).

With several processes (`--coordinator`) the job is joined before main() and
left in good order after it. Process 0 prints; the others only what is wrong,
marked with their number.
"""

import logging as py_logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable

# Before jax: the CPU client's own log lines say nothing to a user.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
from absl import app, flags, logging
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.parallel import distributed
from metastone_jax.training.loop import Interrupted

_CACHE = flags.DEFINE_string(
  'compilation_cache',
  os.path.join(os.path.expanduser('~'), '.cache', 'metastone_jax', 'xla'),
  'Folder of compiled programs, reused by later runs; empty = none.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  '',
  'HOST:PORT of process 0, in a job of several processes; auto = as the TPU '
  'pod, GKE or SLURM says; empty = METASTONE_COORDINATOR, else one process.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Of the job; default METASTONE_NUM_PROCESSES.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Of this process, from 0; default METASTONE_PROCESS_ID.'
)
_START_TIMEOUT = flags.DEFINE_float(
  'start_timeout', 300, 'Seconds within which all processes must be there.'
)
_PEER_TIMEOUT = flags.DEFINE_float(
  'peer_timeout', 60, 'Seconds of silence after which a process is given up.'
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
    fail(
      f'config key or value: {text}; --config.KEY=VALUE changes keys that the '
      'config file has, to values of their type: add others there'
    )
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


def refuse_several(command: str) -> None:
  """Refuses a command that one process does alone.

  Raises:
    UserError: the job has several processes.
  """
  if distributed.several():
    raise UserError(
      f'{command} runs as one process, and this job has {jax.process_count()}; '
      'leave --coordinator (and METASTONE_COORDINATOR) out and run it once'
    )


class _Marked(py_logging.Filter):
  """Puts the number of the process before every message."""

  def filter(self, record: py_logging.LogRecord) -> bool:
    """Marks the record, once however many handlers see it."""
    if not hasattr(record, 'marked'):
      record.marked = True
      record.msg = f'[process {jax.process_index()}] {record.msg}'
    return True


def _join() -> None:
  """Joins the job that the flags or the environment name, if any."""
  address = distributed.find_address(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    timeout_s=_START_TIMEOUT.value,
  )
  distributed.start(
    address,
    start_timeout_s=_START_TIMEOUT.value,
    peer_timeout_s=_PEER_TIMEOUT.value,
  )
  if distributed.is_primary() or not distributed.several():
    return
  logging.set_verbosity(logging.WARNING)
  for handler in py_logging.getLogger().handlers:
    handler.addFilter(_Marked())


def _leave(code: int, message: str) -> None:
  """Ends one of several processes that cannot go on, and says so to all."""
  distributed.give_up(code, message)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)  # no orderly end, which would wait for the others


def _run_several(main: Callable[[], None]) -> None:
  """main() in a job of several processes; what ends one ends all."""
  try:
    main()
    distributed.finish()
  except Interrupted:  # in all of them: the signal was agreed on
    distributed.finish()
    raise
  except UserError as error:
    text = ' '.join(str(error).split())
    print(f'error: [process {jax.process_index()}] {text}', file=sys.stderr)
    _leave(distributed.BAD_INPUT, text)
  except distributed.HostsMissing as error:
    print(f'error: {error}', file=sys.stderr)
    _leave(distributed.LOST, str(error))
  except KeyboardInterrupt:
    print('interrupted at once', file=sys.stderr)
    _leave(130, 'interrupted at once (a second signal)')
  except BaseException as error:
    if isinstance(error, SystemExit) and not error.code:
      raise
    traceback.print_exc()
    # A collective fails at once where a host is lost; who it was, and that
    # this is no error of its own, the watchdog finds out a little later.
    if isinstance(error, jax.errors.JaxRuntimeError):
      distributed.wait_for_verdict()
    code = error.code if isinstance(error, SystemExit) else 1
    _leave(code, f'{type(error).__name__}: {error}'[:500])


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
      _join()
      if distributed.several():
        _run_several(main)
      else:
        main()
    except UserError as error:
      fail(error)
    except Interrupted as error:
      if distributed.is_primary():
        print(
          f'interrupted by {error}: everything is saved; the same command goes '
          'on',
          file=sys.stderr,
        )
      sys.exit(130)
    except KeyboardInterrupt:
      print(f'interrupted: {interrupted}', file=sys.stderr)
      sys.exit(130)

  _list_all_flags()
  app.run(wrapped, flags_parser=_parse)


def _list_all_flags() -> None:
  """--help lists the flags of a command's parts too, which absl would not."""
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if module.split('.')[0] == 'launch':
      for flag in found:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
