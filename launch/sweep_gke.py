"""Workers of a sweep as pods of a GKE cluster: one JobSet.

The image holds this repository as its working directory, installed (launch/
pods/Dockerfile); the folder of the sweep is in a bucket. A pod that is lost or
breaks is made anew, and the points that it had are done by whoever comes next;
bad input (exit 2) ends them all. At the end the workers write table and page
into that folder. `kubectl delete jobset NAME` makes room for another one of
that name.
"""

import itertools
import json
import pathlib
import re

from absl import flags

import launch
from launch.pods import accelerators, gke_nodes, shell
from metastone_jax.errors import UserError

_GKE = flags.DEFINE_list(
  'gke',
  [],
  'Of --executor=gke: KEY=VALUE,... of a worker: image (needed), namespace, '
  'service_account, accelerator (of one machine, v5e-8 or h100-8; none = '
  'CPUs), cpu, memory, spot, queue (of Kueue).',
)

ROOT = pathlib.Path(launch.__file__).resolve().parents[1]

_KEYS = {
  'image': '',
  'namespace': 'default',
  'service_account': '',
  'accelerator': '',
  'cpu': '',
  'memory': '',
  'spot': 'false',
  'queue': '',
}
_JOB, _CONTAINER = 'worker', 'worker'
_FAILURES = 10  # pods that may break, a worker; preempted ones do not count
_GRACE = 120  # seconds to save in


def submit(
  command: list[str], *, name: str, workdir: str, workers: int, dry_run: bool
) -> None:
  """Applies the JobSet, or prints it.

  Args:
    command: of a worker, without its number.
    name: of the sweep.
    workdir: of the sweep, in a bucket.
    workers: how many pods.
    dry_run: only print.

  Raises:
    UserError: an option or flag that cannot work there; nothing is applied.
  """
  if not workdir.startswith('gs://'):
    raise UserError(
      f'--workdir={workdir}: the pods share no disk; give a folder in a '
      'bucket, such as gs://my-bucket/sweeps/claims'
    )
  _check_config(command)
  given = options()
  name = name.lower().replace('_', '-')
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', name):
    raise UserError(
      f'name={name!r} of the sweep is no name for Kubernetes: at most 40 '
      'letters, digits, "_" and "-", a letter first'
    )
  text = json.dumps(manifest(name, command, workers, given), indent=2)
  apply = ['kubectl', 'apply', '-f', '-']
  space = f'--namespace={given["namespace"]}'
  watch = ['kubectl', 'get', 'jobset', name, space, '--watch']
  logs = [
    *('kubectl', 'logs', space, '--follow', '--prefix'),
    f'--max-log-requests={max(5, workers)}',
    f'--selector=jobset.sigs.k8s.io/jobset-name={name}',
  ]
  if dry_run:
    print(shell.heredoc(shell.line(apply), text))
  else:
    shell.require('kubectl')
    shell.run(apply, stdin=text)
  print(f'# its state and its log\n{shell.line(watch)}\n{shell.line(logs)}')
  print(
    '# the same command with --finish writes table and page of what is done'
  )


def manifest(
  name: str, command: list[str], workers: int, given: dict[str, str]
) -> dict:
  """The JobSet: one job whose pods are the workers."""
  nodes, tolerations, resources = {}, [], {}
  spot = given['spot'] == 'true'
  is_tpu = False
  if given['accelerator']:
    try:
      accelerator = accelerators.parse(given['accelerator'])
    except UserError as error:
      raise UserError(f'--gke: {str(error).removeprefix("--")}') from error
    if accelerator.hosts > 1:
      raise UserError(
        f'--gke=accelerator={given["accelerator"]}: a worker is one process, '
        f'and these are {accelerator.hosts} machines; take one, such as v5e-8'
      )
    is_tpu = accelerator.is_tpu
    nodes, tolerations, resources = gke_nodes.placement(accelerator, spot)
  elif spot:
    nodes = gke_nodes.spot_nodes()
    tolerations = gke_nodes.spot_tolerations()
  for key in ('cpu', 'memory'):
    if given[key]:
      resources = {**resources, key: given[key]}
  # Kubernetes numbers the pods of the job; the shell puts the number in.
  line = f'exec {shell.line(["python", *command[1:]])}'
  line += ' --worker="$JOB_COMPLETION_INDEX"'
  container = {
    'name': _CONTAINER,
    'image': given['image'],
    # Kubernetes would replace $(NAME); $$ stands for one $.
    'command': ['bash', '-c', line.replace('$(', '$$(')],
    'resources': {'requests': resources, 'limits': resources},
    **({'securityContext': {'privileged': True}} if is_tpu else {}),
  }
  pod = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': _GRACE,
    'nodeSelector': nodes,
    'tolerations': tolerations,
    'containers': [container],
  }
  if given['service_account']:
    pod['serviceAccountName'] = given['service_account']
  metadata: dict = {'name': name, 'namespace': given['namespace']}
  if given['queue']:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': given['queue']}
  bad_input = {
    'action': 'FailJob',
    'onExitCodes': {
      'containerName': _CONTAINER,
      'operator': 'In',
      'values': [2],
    },
  }
  preempted = {
    'action': 'Ignore',
    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
  }
  job = {
    'completionMode': 'Indexed',
    'parallelism': workers,
    'completions': workers,
    'backoffLimit': _FAILURES * workers,
    'podFailurePolicy': {'rules': [bad_input, preempted]},
    'template': {'spec': pod},
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'replicatedJobs': [
        {'name': _JOB, 'replicas': 1, 'template': {'spec': job}}
      ],
    },
  }


def options() -> dict[str, str]:
  """--gke as a dictionary.

  Raises:
    UserError: an unknown key, a bad value, no image.
  """
  found = dict(_KEYS)
  for item in _GKE.value:
    item = 'spot=true' if item == 'spot' else item
    key, equals, value = item.partition('=')
    if not equals or key not in _KEYS:
      raise UserError(
        f'--gke={item}: give KEY=VALUE,... with keys of {", ".join(_KEYS)}'
      )
    found[key] = value
  if not found['image']:
    raise UserError(
      '--gke=image=... is missing: build launch/pods/Dockerfile, push it, give '
      'its name'
    )
  if found['spot'] not in ('true', 'false'):
    raise UserError(f'--gke=spot={found["spot"]}: must be true or false')
  return found


def _check_config(command: list[str]) -> None:
  """The pods have this repository and nothing else."""
  given = [
    value or following
    for part, following in itertools.pairwise([*command, ''])
    for flag, _, value in [part.partition('=')]
    if flag in ('--config', '-config')
  ]
  path = given[-1].partition(':')[0] if given else ''
  if path.startswith(('/', '..')) or not (ROOT / path).is_file():
    raise UserError(
      f'--config={path}: the pods have this repository only; put the sweep in '
      'it and give its path from the root, as --config=configs/sweeps/X.py'
    )
