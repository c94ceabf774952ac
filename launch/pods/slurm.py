r"""Trains on GPU nodes of a SLURM cluster.

  python -m launch.pods.slurm --name=run-32b --nodes=8 --partition=gpu \
      --workdir=/shared/runs/run-32b -- --config=configs/32b.py

Run on a login node, in this repository, on a file system that all nodes share.
Writes an sbatch script, one process a node with all its GPUs, and submits it.
The Python of this command is the one the nodes use.

--grace_seconds before the time limit the run is told to save and the job
requeues itself; SLURM requeues it when a node fails or a more urgent job takes
its place. The run resumes from its last checkpoint each time. Failures restart
inside the job (restart.sh), bad input ends it (status 2, or 4 where only some
hosts refused theirs). `scancel JOB` ends it for good.

--dry_run prints the commands and the script.
"""

import os
import pathlib
import re
import shlex
import sys

from absl import flags

from launch.pods import job, shell
from metastone_jax.errors import UserError

_NODES = flags.DEFINE_integer('nodes', None, 'Nodes.', lower_bound=1)
_GPUS = flags.DEFINE_integer('gpus_per_node', 8, 'GPUs a node.', lower_bound=1)
_TIME = flags.DEFINE_string(
  'time', '24:00:00', 'Time limit of one run of the job, as sbatch takes it.'
)
_GRACE = flags.DEFINE_integer(
  'grace_seconds',
  120,
  'Seconds before the limit to stop at; one step and one save must fit.',
  lower_bound=1,
)
_PARTITION = flags.DEFINE_string('partition', '', 'Partition; empty = default.')
_ACCOUNT = flags.DEFINE_string('account', '', 'Account; empty = default.')
_SBATCH_FLAG = flags.DEFINE_multi_string(
  'sbatch_flag', [], 'More options of sbatch, such as --qos=high; repeat it.'
)
_SETUP = flags.DEFINE_multi_string(
  'setup',
  [],
  'Line of shell to run on the first node before training, such as '
  '"module load cuda"; repeat it.',
)
_PYTHON = flags.DEFINE_string(
  'python', '', 'Python on the nodes; empty = the one that runs this.'
)
_SECRET = flags.DEFINE_multi_string(
  'secret',
  [],
  'Name of a variable set here that the job needs, such as WANDB_API_KEY; '
  'repeat it. Only the name stands in the script.',
)

# Seconds that the other tasks have to end after the first one did.
_WAIT = 600

# The task of each node. A host that refuses its input leaves a mark, because
# srun reports the highest status only and ends the other tasks by a signal.
_TASK = (
  '"$@"; status=$?; [ "$status" -ne 2 ] || : >"$BAD_INPUT"; exit "$status"'
)


def _one_line(flag: str, value: str) -> str:
  if not value.isprintable():
    raise UserError(f'--{flag}: a line break or control character in it')
  return value


def script(
  name: str, folder: str, command: list[str], secrets: list[str]
) -> str:
  """The sbatch script.

  Args:
    name: of the job.
    folder: for its log, on the shared file system; must exist at submission.
    command: the training command, without its restart loop.
    secrets: names of variables to hand on.
  """
  options = [
    f'--job-name={name}',
    f'--nodes={_NODES.value}',
    '--ntasks-per-node=1',
    f'--gpus-per-node={_GPUS.value}',
    '--exclusive',
    '--mem=0',  # all of each node's
    f'--time={_TIME.value}',
    *([f'--partition={_PARTITION.value}'] if _PARTITION.value else []),
    *([f'--account={_ACCOUNT.value}'] if _ACCOUNT.value else []),
    '--requeue',
    # Not TERM: that is what scancel sends, and a cancelled job stays so.
    f'--signal=B:USR1@{_GRACE.value}',
    f'--chdir={job.ROOT}',
    f'--output={folder}/slurm-%j.log',
    '--open-mode=append',
    f'--export={",".join(["ALL", *secrets])}',
    *_SBATCH_FLAG.value,
  ]
  environment = {
    'METASTONE_COORDINATOR': 'auto',
    # JAX takes one GPU a task under SLURM unless told which.
    'JAX_LOCAL_DEVICE_IDS': ','.join(str(i) for i in range(_GPUS.value)),
  } | job.environment()
  lines = ['#!/bin/bash']
  # sbatch splits these lines at spaces, as a shell does with quotes.
  for option in options:
    lines.append(f'#SBATCH {shlex.quote(_one_line("sbatch_flag", option))}')
  lines += [
    'set -u',
    f'cd {shlex.quote(str(job.ROOT))}',
    *_SETUP.value,
    *(f'export {k}={shlex.quote(v)}' for k, v in environment.items()),
    f'export BAD_INPUT={shlex.quote(folder)}/bad-input-"$SLURM_JOB_ID"',
    'rm -f "$BAD_INPUT"',
  ]
  # --wait, not --kill-on-bad-exit: a host that has saved and ended (130) must
  # not have the others killed while they still save.
  srun = [
    *('srun', f'--wait={_WAIT}', '--ntasks-per-node=1', '--cpu-bind=none'),
    '--export=ALL',
    *('bash', '-c', _TASK, 'task', *command),
  ]
  loop = job.restart_command(
    srun,
    job.MAX_RESTARTS.value,
    '--stop=slurm',
    '--stop_if=test -e "$BAD_INPUT"',
  )
  lines += [
    # In place of this shell, so that the signals of SLURM reach the loop.
    f'exec {shell.line(loop)}',
  ]
  return '\n'.join(lines) + '\n'


def main(train_flags: list[str] | None) -> None:
  """Parses, writes the script, prints or submits it."""
  name = job.name()
  workdir = job.shared_workdir()
  if _NODES.value is None:
    raise UserError('--nodes is missing; for example --nodes=8')
  for variable in _SECRET.value:
    # A wrong one is not repeated: it may be the secret itself.
    if not job.VARIABLE.fullmatch(variable) or variable not in os.environ:
      raise UserError(
        '--secret: give the name of a variable that is set here, such as '
        'WANDB_API_KEY'
      )
  if not re.fullmatch(r'[0-9:-]+|UNLIMITED', _TIME.value):
    raise UserError(
      f'--time={_TIME.value!r}: give it as sbatch takes it, such as 24:00:00'
    )
  python = _PYTHON.value or sys.executable
  command = job.train_command(train_flags, workdir, python)
  if workdir.startswith('gs://'):
    folder = str(job.ROOT / 'runs' / name / 'launch')
  else:
    folder = f'{workdir}/launch'
  text = script(name, folder, command, _SECRET.value)
  path = f'{folder}/{name}.sbatch'
  make = ['mkdir', '-p', folder]
  submit = ['sbatch', path]
  if job.DRY_RUN.value:
    print(f'# {_NODES.value} nodes with {_GPUS.value} GPUs')
    print(shell.line(make))
    print(shell.heredoc(f'cat >{shlex.quote(path)}', text))
    print(shell.line(submit))
    return
  shell.require('sbatch')
  shell.run(make)
  pathlib.Path(path).write_text(text)
  shell.run(submit)
  print(f'its state: squeue --name={name}; its log: {folder}/slurm-JOB.log')


if __name__ == '__main__':
  job.run(main)
