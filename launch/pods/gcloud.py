r"""Trains on a Cloud TPU slice, or several, through a queued resource.

  python -m launch.pods.gcloud --name=run-32b --zone=us-east5-a \
      --accelerator=v5p-128 --spot --workdir=gs://my-bucket/run-32b \
      -- --config=configs/32b.py:mesh=v5p-128

Creates the queued resource, waits for the machines, then watches: when they are
preempted (SUSPENDED) or cannot be provisioned (FAILED), deletes the request and
makes it again. The machines install the code and train by themselves at boot
(startup.py), so training goes on from its last checkpoint; they retry failures
up to --max_restarts and never bad input. At the end the queued resource is
deleted, unless --keep.

This command may be interrupted and repeated at any time: it finds the queued
resource by its name and goes on watching. While it does not run, training goes
on, but a preempted slice is not made again and a finished one not deleted: keep
it in tmux or on a small VM.

--dry_run prints every command and the start-up script; it only reads git.
"""

import time

from absl import flags

from launch.pods import accelerators, code, job, shell, startup
from metastone_jax.errors import UserError

_ZONE = flags.DEFINE_string('zone', None, 'Zone of the TPUs.')
_ACCELERATOR = flags.DEFINE_string(
  'accelerator', None, 'TPU slice, for example v5p-128, v5e-16, v5p:4x4x8.'
)
_PROJECT = flags.DEFINE_string(
  'project', '', 'Google Cloud project; empty = the one of gcloud config.'
)
_RUNTIME = flags.DEFINE_string(
  'runtime_version', '', 'Image of the TPU VMs; empty = the usual one.'
)
_SPOT = flags.DEFINE_bool('spot', False, 'Cheap machines, may be preempted.')
_SLICES = flags.DEFINE_integer(
  'num_slices', 1, 'Slices that train together.', lower_bound=1
)
_EXTRAS = flags.DEFINE_string(
  'extras', 'tpu', 'Extras of setup.cfg to install, for example tpu,gym.'
)
_SECRET = flags.DEFINE_multi_string(
  'secret',
  [],
  'VARIABLE=NAME of a secret in Secret Manager, such as '
  'WANDB_API_KEY=wandb-key; repeat it.',
)
_CREATE_FLAG = flags.DEFINE_multi_string(
  'create_flag',
  [],
  'More flags of `gcloud compute tpus queued-resources create`, such as '
  '--network=my-network or --reserved; repeat it.',
)
_KEEP = flags.DEFINE_bool('keep', False, 'Do not delete the TPUs at the end.')
_POLL = flags.DEFINE_float(
  'poll_seconds', 60.0, 'Time between two looks at the state.', lower_bound=0
)

# Looks in a row that may fail, as a network does, before this gives up.
_FAILED_LOOKS = 10
# Looks in a row that find no request of this name.
_MISSING_LOOKS = 3
# Requests in a row that end in FAILED without ever becoming ACTIVE.
_FAILED_REQUESTS = 5


class QueuedResource:
  """The commands for one queued resource; the same printed and run."""

  def __init__(self, train_flags: list[str] | None):
    self.name = job.name()
    workdir = job.cloud_workdir()
    if not _ZONE.value:
      raise UserError('--zone is missing; for example --zone=us-east5-a')
    if not _ACCELERATOR.value:
      raise UserError('--accelerator is missing; for example v5p-128')
    self.accelerator = accelerators.parse(_ACCELERATOR.value)
    if not self.accelerator.is_tpu:
      raise UserError(
        f'--accelerator={self.accelerator.name}: Cloud TPU has no GPUs; use '
        'launch.pods.gke or launch.pods.slurm'
      )
    command = job.train_command(train_flags, workdir)
    environment = {'METASTONE_COORDINATOR': 'auto'} | job.environment()
    secrets = job.secrets(_SECRET.value, 'a name in Secret Manager')
    self.folder = f'{workdir}/launch/{self.name}'
    self.verdict_object = f'{self.folder}/verdict'
    self.code = code.resolve(self.folder)
    self.script = startup.script(
      name=self.name,
      folder=self.folder,
      code=self.code,
      extras=_EXTRAS.value,
      command=command,
      environment=environment,
      secrets=secrets,
      project=_PROJECT.value,
      max_restarts=job.MAX_RESTARTS.value,
    )
    self.script_path = code.cache_folder() / f'{self.name}-startup.sh'

  def _gcloud(self, verb: str, *arguments: str) -> list[str]:
    return [
      *('gcloud', 'compute', 'tpus', 'queued-resources', verb, self.name),
      f'--zone={_ZONE.value}',
      *([f'--project={_PROJECT.value}'] if _PROJECT.value else []),
      *arguments,
    ]

  def describe(self) -> list[str]:
    """Prints the request's state."""
    return self._gcloud('describe', '--format=value(state.state)')

  def create(self) -> list[str]:
    """Requests the machines."""
    several = [f'--node-count={_SLICES.value}', f'--node-prefix={self.name}']
    return self._gcloud(
      'create',
      *self.accelerator.gcloud,
      f'--runtime-version={_RUNTIME.value or self.accelerator.runtime_version}',
      *(several if _SLICES.value > 1 else [f'--node-id={self.name}']),
      f'--metadata-from-file=startup-script={self.script_path}',
      *(['--spot'] if _SPOT.value else []),
      *_CREATE_FLAG.value,
    )

  def delete(self) -> list[str]:
    """Deletes the request and its machines."""
    return self._gcloud('delete', '--force', '--quiet')

  def read_verdict(self) -> list[str]:
    """Prints how the job ended; fails while it has not."""
    return ['gcloud', 'storage', 'cat', self.verdict_object]

  def remove_verdict(self) -> list[str]:
    """Forgets how an earlier job of this name ended."""
    return ['gcloud', 'storage', 'rm', self.verdict_object]

  def show_log(self) -> list[str]:
    """Follows the log of the first machine."""
    node = self.name + ('-0' if _SLICES.value > 1 else '')
    return [
      *('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', node),
      f'--zone={_ZONE.value}',
      *([f'--project={_PROJECT.value}'] if _PROJECT.value else []),
      '--worker=0',
      f'--command=tail -n 50 -f {startup.LOG}',
    ]

  # What a dry run prints.

  def plan(self) -> str:
    """Everything that would be run, as shell with comments."""
    a = self.accelerator
    lines = [
      f'# {_SLICES.value} x {a.name}: {a.chips} chips ({a.topology}) on '
      f'{a.hosts} machines each',
      f'mkdir -p {shell.line([str(self.script_path.parent)])}',
      shell.heredoc(f'cat >{shell.line([str(self.script_path)])}', self.script),
      '',
      '# is it there already? then only the watching below',
      shell.line(self.describe()),
      '# a verdict of an earlier job of this name, if there is one',
      shell.line(self.read_verdict()),
      shell.line(self.remove_verdict()),
      *(shell.line(command) for command in self.code.prepare),
      shell.line(self.create()),
      '',
      f'# every {_POLL.value:g} s, until there is a verdict',
      shell.line(self.describe()),
      shell.line(self.read_verdict()),
      '# when the state is SUSPENDED (preempted) or FAILED',
      shell.line(self.delete()),
      shell.line(self.create()),
    ]
    if not _KEEP.value:
      lines += ['', '# at the end', shell.line(self.delete())]
    lines += ['', '# the log of the first machine', shell.line(self.show_log())]
    return '\n'.join(lines)

  # What a real run does.

  def state(self) -> str | None:
    """State of the request; None = there is none of this name."""
    done = shell.answer(self.describe())
    if done.returncode == 0:
      return done.stdout.strip()
    if 'NOT_FOUND' in done.stderr:
      return None
    raise UserError(
      f'`{shell.line(self.describe())}` failed: {shell.last_line(done.stderr)}'
    )

  def verdict(self) -> str | None:
    """`STATUS HOST`, once the job has ended."""
    done = shell.answer(self.read_verdict())
    return done.stdout.strip() or None if done.returncode == 0 else None

  def make(self, prepared: bool) -> None:
    """Requests the machines; the code and the script first."""
    if not prepared:
      self.script_path.parent.mkdir(parents=True, exist_ok=True)
      self.script_path.write_text(self.script)
      for command in self.code.prepare:
        shell.run(command)
    shell.run(self.create())

  def end(self, verdict: str) -> None:
    """Deletes the machines and says how it ended."""
    if not _KEEP.value:
      shell.run(self.delete())
    status, _, host = verdict.partition(' ')
    log = f'gcloud storage cat {self.folder}/log-{host or "0-0"}.txt'
    if status == '0':
      print(f'done; the log: {log}')
    elif status == '2':
      raise UserError(
        f'launch.train refused its input on host {host}; see {log}'
      )
    else:
      raise UserError(
        f'host {host} gave up: the code could not be installed, or training '
        f'failed more than --max_restarts={job.MAX_RESTARTS.value} times; see '
        f'{log}'
      )


def watch(resource: QueuedResource) -> None:
  """Makes the machines and makes them again until the job has a verdict."""
  state = resource.state()
  prepared = active = False
  failed_looks = missing = failed_requests = 0
  if state is None:
    if resource.verdict() is not None:
      shell.run(resource.remove_verdict())
    resource.make(prepared)
    prepared = True
    print(f'the log, once it is ACTIVE: {shell.line(resource.show_log())}')
  else:
    print(
      f'{resource.name} is there already ({state}): watching it; its machines '
      'keep the code and flags they were made with'
    )
  shown = None
  while True:
    try:
      state = resource.state()
      failed_looks = 0
    except UserError as error:
      failed_looks += 1
      if failed_looks >= _FAILED_LOOKS:
        raise
      print(f'{error}; looking again', flush=True)
      time.sleep(_POLL.value)
      continue
    if state != shown:
      print(f'{time.strftime("%H:%M:%S")} {state or "not there"}', flush=True)
      shown = state
    # A request just made may not be visible at once.
    missing = missing + 1 if state is None else 0
    if missing >= _MISSING_LOOKS:
      raise UserError(
        f'the queued resource {resource.name} was deleted by someone; the same '
        'command makes it again, and training goes on'
      )
    active = active or state == 'ACTIVE'
    if state in ('ACTIVE', 'SUSPENDING', 'SUSPENDED', 'FAILED'):
      verdict = resource.verdict()
      if verdict is not None:
        resource.end(verdict)
        return
    if state in ('SUSPENDED', 'FAILED'):
      failed_requests = 0 if active else failed_requests + 1
      if failed_requests >= _FAILED_REQUESTS:
        raise UserError(
          f'{failed_requests} requests in a row ended in {state}; '
          f'`{shell.line(resource.describe()[:-1])}` says why (quota, zone, '
          'no capacity)'
        )
      shell.run(resource.delete())
      resource.make(prepared)
      prepared, active = True, False
    time.sleep(_POLL.value)


def main(train_flags: list[str] | None) -> None:
  """Parses, then prints or watches."""
  resource = QueuedResource(train_flags)
  if job.DRY_RUN.value:
    print(resource.plan())
    return
  shell.require('gcloud')
  try:
    watch(resource)
  except KeyboardInterrupt:
    print(f'\n{resource.name} stays; the same command goes on watching')
    raise


if __name__ == '__main__':
  job.run(main)
