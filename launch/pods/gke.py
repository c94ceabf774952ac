r"""Trains on TPU slices or GPU nodes of a GKE cluster, as a JobSet.

  python -m launch.pods.gke --name=run-32b --accelerator=v5p-128 \
      --image=us-docker.pkg.dev/my-project/my-repo/metastone:1 \
      --workdir=gs://my-bucket/run-32b -- --config=configs/32b.py:mesh=v5p-128

Applies one JobSet with `kubectl apply -f -` to the cluster kubectl points at;
the cluster needs the JobSet controller (0.6 or newer) and a node pool with the
accelerator. The image holds this repository as its working directory, installed
(launch/pods/Dockerfile):

  docker build -f launch/pods/Dockerfile --build-arg=EXTRAS=tpu -t IMAGE .

One Kubernetes job is one slice. When a machine is preempted or lost, its job
fails and the JobSet restarts all of them, up to --max_preemptions times; they
resume from the last checkpoint. Failures and interruptions restart inside the
containers (restart.sh). Bad input (exit 2) and giving up (exit 3) end the
JobSet; `kubectl delete jobset NAME` makes room for a corrected one. The pods
need the right to write --workdir (--service_account).

--dry_run prints the manifest and the same job as a command of xpk.
"""

import json

from absl import flags

from launch.pods import accelerators, gke_nodes, job, shell
from metastone_jax.errors import UserError

_ACCELERATOR = flags.DEFINE_string(
  'accelerator', None, 'TPU slice (v5p-128) or GPUs (h100-64).'
)
_SLICES = flags.DEFINE_integer(
  'num_slices', 1, 'TPU slices that train together.', lower_bound=1
)
_IMAGE = flags.DEFINE_string('image', None, 'Container image with the code.')
_NAMESPACE = flags.DEFINE_string('namespace', 'default', 'Of Kubernetes.')
_SERVICE_ACCOUNT = flags.DEFINE_string(
  'service_account', '', 'Kubernetes account of the pods; empty = default.'
)
_SPOT = flags.DEFINE_bool('spot', False, 'Only nodes of spot node pools.')
_QUEUE = flags.DEFINE_string('queue', '', 'Kueue queue; empty = no Kueue.')
_SECRET = flags.DEFINE_multi_string(
  'secret',
  [],
  'VARIABLE=NAME of a Kubernetes secret with the key VARIABLE; repeat it.',
)
_PREEMPTIONS = flags.DEFINE_integer(
  'max_preemptions',
  100,
  'Restarts of the whole JobSet after machines were lost.',
  lower_bound=0,
)
_GRACE = flags.DEFINE_integer(
  'grace_seconds', 300, 'Time to save when a pod is stopped.', lower_bound=1
)
_CLUSTER = flags.DEFINE_string(
  'cluster', 'CLUSTER', 'Only for the printed command of xpk.'
)

# Of the coordinator where JAX cannot find it by itself (GPU nodes).
_PORT = 8476
_JOB, _CONTAINER = 'slice', 'train'


def _environment(
  name: str, accelerator: accelerators.Accelerator, secrets: dict[str, str]
) -> list[dict]:
  """The container's variables; secrets as references."""
  if accelerator.is_tpu:
    # GKE sets what JAX looks for, MEGASCALE_* of several slices included.
    found = [{'name': 'METASTONE_COORDINATOR', 'value': 'auto'}]
  else:
    # JAX would have to ask the Kubernetes API, which needs extra rights.
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    first = f'{name}-{_JOB}-0-0.{name}:{_PORT}'
    found = [
      {'name': 'METASTONE_COORDINATOR', 'value': first},
      {'name': 'METASTONE_NUM_PROCESSES', 'value': str(accelerator.hosts)},
      {
        'name': 'METASTONE_PROCESS_ID',
        'valueFrom': {'fieldRef': {'fieldPath': index}},
      },
    ]
  found += [{'name': k, 'value': v} for k, v in job.environment().items()]
  found += [
    {
      'name': variable,
      'valueFrom': {'secretKeyRef': {'name': secret, 'key': variable}},
    }
    for variable, secret in secrets.items()
  ]
  # Kubernetes would replace $(NAME); $$ stands for one $.
  for item in found:
    if 'value' in item:
      item['value'] = item['value'].replace('$(', '$$(')
  return found


def manifest(
  name: str,
  accelerator: accelerators.Accelerator,
  command: list[str],
  secrets: dict[str, str],
) -> dict:
  """The JobSet.

  Args:
    name: of the JobSet.
    accelerator: of each slice, or all GPUs.
    command: what every container runs.
    secrets: variable -> Kubernetes secret.
  """
  nodes, tolerations, resources = gke_nodes.placement(accelerator, _SPOT.value)
  pod = {
    'restartPolicy': 'Never',
    'hostNetwork': True,
    'dnsPolicy': 'ClusterFirstWithHostNet',
    'terminationGracePeriodSeconds': _GRACE.value,
    **(
      {'serviceAccountName': _SERVICE_ACCOUNT.value}
      if _SERVICE_ACCOUNT.value
      else {}
    ),
    'nodeSelector': nodes,
    'tolerations': tolerations,
    'containers': [
      {
        'name': _CONTAINER,
        'image': _IMAGE.value,
        'command': [word.replace('$(', '$$(') for word in command],
        'env': _environment(name, accelerator, secrets),
        **(
          {'securityContext': {'privileged': True}}
          if accelerator.is_tpu
          else {}
        ),
        'resources': {'requests': resources, 'limits': resources},
        'volumeMounts': [{'name': 'shm', 'mountPath': '/dev/shm'}],
      }
    ],
    'volumes': [{'name': 'shm', 'emptyDir': {'medium': 'Memory'}}],
  }
  metadata = {'name': name, 'namespace': _NAMESPACE.value}
  if accelerator.is_tpu:
    # One slice is one node pool, and one job to itself.
    metadata['annotations'] = {
      'alpha.jobset.sigs.k8s.io/exclusive-topology': (
        'cloud.google.com/gke-nodepool'
      )
    }
  if _QUEUE.value:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': _QUEUE.value}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'failurePolicy': {
        'maxRestarts': _PREEMPTIONS.value,
        'rules': [
          {
            'name': 'neverAgain',
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {
          'name': _JOB,
          'replicas': _SLICES.value,
          'template': {
            'spec': {
              'parallelism': accelerator.hosts,
              'completions': accelerator.hosts,
              # A slice without one of its machines is of no use.
              'backoffLimit': 0,
              'podFailurePolicy': {
                'rules': [
                  {
                    'action': 'FailJob',
                    'onExitCodes': {
                      'containerName': _CONTAINER,
                      'operator': 'In',
                      'values': [2, 3],  # bad input, gave up
                    },
                  }
                ]
              },
              'template': {'spec': pod},
            }
          },
        }
      ],
    },
  }


def xpk(
  name: str,
  accelerator: accelerators.Accelerator,
  command: list[str],
) -> list[str]:
  """The same as a command of xpk, which brings its own JobSet."""
  if accelerator.is_tpu:
    size = [f'--tpu-type={accelerator.xpk}', f'--num-slices={_SLICES.value}']
    variables = {'METASTONE_COORDINATOR': 'auto'}
  else:
    size = [
      f'--device-type={accelerator.xpk}',
      f'--num-nodes={accelerator.hosts}',
    ]
    # xpk names its job slice-job.
    variables = {
      'METASTONE_COORDINATOR': f'{name}-slice-job-0-0.{name}:{_PORT}',
      'METASTONE_NUM_PROCESSES': str(accelerator.hosts),
    }
    command = [
      *('bash', '-c'),
      f'METASTONE_PROCESS_ID=$JOB_COMPLETION_INDEX exec {shell.line(command)}',
    ]
  variables |= job.environment()
  # xpk restarts on 42 and 127-255 only: never on 2 or 3.
  return [
    *('xpk', 'workload', 'create', f'--cluster={_CLUSTER.value}'),
    f'--workload={name}',
    *size,
    f'--docker-image={_IMAGE.value}',
    f'--max-restarts={_PREEMPTIONS.value}',
    f'--termination-grace-period-seconds={_GRACE.value}',
    *(['--spot'] if _SPOT.value else []),
    *(f'--env={key}={value}' for key, value in variables.items()),
    f'--command={shell.line(command)}',
  ]


def main(train_flags: list[str] | None) -> None:
  """Parses, builds the manifest, prints or applies it."""
  name = job.name()
  workdir = job.cloud_workdir()
  if not _ACCELERATOR.value:
    raise UserError('--accelerator is missing; for example v5p-128 or h100-64')
  accelerator = accelerators.parse(_ACCELERATOR.value)
  if not accelerator.is_tpu and _SLICES.value > 1:
    raise UserError(
      f'--num_slices={_SLICES.value}: GPUs have no slices; ask for more, such '
      f'as --accelerator={accelerator.name.rpartition("-")[0]}-'
      f'{accelerator.chips * _SLICES.value}'
    )
  if not _IMAGE.value:
    raise UserError(
      '--image is missing: build launch/pods/Dockerfile, push it, give its name'
    )
  secrets = job.secrets(_SECRET.value, 'the name of a Kubernetes secret')
  command = job.restart_command(
    job.train_command(train_flags, workdir), job.MAX_RESTARTS.value
  )
  text = json.dumps(manifest(name, accelerator, command, secrets), indent=2)
  apply = ['kubectl', 'apply', '-f', '-']
  in_namespace = f'--namespace={_NAMESPACE.value}'
  watch = ['kubectl', 'get', 'jobset', name, in_namespace, '--watch']
  logs = [
    *('kubectl', 'logs', in_namespace, '--follow', '--prefix'),
    f'--selector=jobset.sigs.k8s.io/jobset-name={name},'
    'batch.kubernetes.io/job-completion-index=0',
  ]
  if job.DRY_RUN.value:
    print(
      f'# {_SLICES.value} x {accelerator.name}: {accelerator.hosts} machines '
      f'of {accelerator.chips_per_host}'
    )
    print(shell.heredoc(shell.line(apply), text))
    print(f'# its state and its log\n{shell.line(watch)}\n{shell.line(logs)}')
    print('# the same with xpk, in place of kubectl')
    if secrets:
      print(f'# (xpk passes no secrets: add {", ".join(secrets)} yourself)')
    print(shell.line(xpk(name, accelerator, command)))
    return
  shell.require('kubectl')
  shell.run(apply, stdin=text)
  print(f'its state: {shell.line(watch)}\nits log: {shell.line(logs)}')


if __name__ == '__main__':
  job.run(main)
