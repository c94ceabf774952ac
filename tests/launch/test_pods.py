"""launch/pods: what is printed, that it is what runs, and every refusal."""

import json
import pathlib
import shlex

import pytest

from tests.launch import pods_fakes as fakes
from tests.launch.pods_refused import REFUSED

# Quotes, spaces, a variable, a glob, a comment and a form of Kubernetes.
ODD = """--config.note=it's "a" $HOME $(id) *.py # \\ ;"""
TRAIN = ['--', '--config=configs/tiny.py', ODD]
BUCKET = '--workdir=gs://my-bucket/runs/a'
GCLOUD = ['--name=a', '--zone=z', BUCKET, '--code=gs://my-bucket/c.tar.gz']
GCLOUD += ['--accelerator=v5p-128', '--poll_seconds=0']
GKE = ['--name=a', '--accelerator=v5p-128', '--image=r/i:1', BUCKET]
SLURM = ['--name=a', '--nodes=4', '--workdir=/shared/runs/a']
FLAGS = {'gcloud': GCLOUD, 'gke': GKE, 'slurm': SLURM}
COMMAND = ['python', '-m', 'launch.train', *TRAIN[1:]]


@pytest.fixture(scope='module')
def launchers(tmp_path_factory):
  """where -> Launcher."""
  made = {
    where: fakes.Launcher(where, tmp_path_factory.mktemp(where))
    for where in FLAGS
  }
  yield made
  for launcher in made.values():
    launcher.close()


@pytest.fixture
def programs(tmp_path):
  return fakes.Programs(tmp_path)


def _dry(launcher, *argv, **env):
  code, out, err = launcher('--dry_run', *argv, **env)
  assert (code, err) == (0, '')
  return fakes.split_heredocs(out)


# Google Cloud.


def test_gcloud_dry_run(launchers):
  commands, texts = _dry(
    launchers['gcloud'],
    *GCLOUD,
    '--spot',
    '--project=p',
    '--env=LIBTPU_INIT_ARGS=--x=1 --y="2"',
    '--secret=WANDB_API_KEY=wandb-key',
    '--create_flag=--network=n',
    *TRAIN,
    WANDB_API_KEY='hunter2',
  )
  ((write, script),) = texts.items()
  fakes.check_syntax(script)
  path = write.removeprefix('cat >')
  create = next(c for c in commands if 'create' in c)
  assert create[:4] == ['gcloud', 'compute', 'tpus', 'queued-resources']
  assert create[4:6] == ['create', 'a']
  assert set(create[6:]) == {
    '--zone=z',
    '--project=p',
    '--accelerator-type=v5p-128',
    '--runtime-version=v2-alpha-tpuv5',
    '--node-id=a',
    f'--metadata-from-file=startup-script={path}',
    '--spot',
    '--network=n',
  }
  line = next(x for x in script.splitlines() if 'launch.train' in x)
  options, command = fakes.loop(shlex.split(line))
  assert command == [*COMMAND, BUCKET]
  assert '--limit=10' in options and '--stop=all' in options
  assert 'export METASTONE_COORDINATOR=auto' in script
  assert shlex.split(
    next(x for x in script.splitlines() if 'LIBTPU_INIT_ARGS' in x)
  ) == ['export', 'LIBTPU_INIT_ARGS=--x=1 --y="2"']
  assert '--secret=wandb-key' in script and 'hunter2' not in script


def test_gcloud_several_slices_and_runtime(launchers):
  flags = [*GCLOUD, '--num_slices=2', '--runtime_version=r']
  commands, _ = _dry(launchers['gcloud'], *flags, *TRAIN)
  create = next(c for c in commands if 'create' in c)
  assert {'--node-count=2', '--node-prefix=a', '--runtime-version=r'} < {
    *create
  }
  assert not any(x.startswith('--node-id') for x in create)


def test_gcloud_code(launchers, programs):
  """A checkout is packed at its commit; a URL is cloned at one."""
  programs.add('git', 'case $3 in rev-parse) echo 0123456789abcdef;; esac')
  flags = [x for x in GCLOUD if not x.startswith('--code')]
  commands, texts = _dry(launchers['gcloud'], *flags, *TRAIN, **programs.env)
  archive = next(c for c in commands if 'archive' in c)
  assert archive[-1] == '0123456789abcdef'
  upload = next(c for c in commands if c[:3] == ['gcloud', 'storage', 'cp'])
  assert upload[3] == archive[-2].removeprefix('--output=')
  assert upload[4] == 'gs://my-bucket/runs/a/launch/a/code-0123456789ab.tar.gz'
  assert f'gcloud storage cat {upload[4]} | tar' in ''.join(texts.values())
  _, texts = _dry(
    launchers['gcloud'], *flags, '--code=git+https://h/r@v1', *TRAIN
  )
  assert 'git fetch --quiet --depth=1 https://h/r v1' in ''.join(texts.values())


def _gcloud_run(launchers, programs, tmp_path, states, *flags, old=None):
  """(code, stdout, stderr, the verbs) of a real run among fakes."""
  programs.add('gcloud', fakes.GCLOUD)
  (tmp_path / 'states').write_text('\n'.join(states) + '\n')
  if old:
    (tmp_path / 'verdict').write_text(old)
  env = programs.env | {
    'STATES': str(tmp_path / 'states'),
    'VERDICT': str(tmp_path / 'verdict'),
    'HOME': str(tmp_path),
  }
  printed, _ = _dry(launchers['gcloud'], *GCLOUD, *flags, *TRAIN, **env)
  assert not programs.calls() and not (tmp_path / '.cache').exists()
  code, out, err = launchers['gcloud'](*GCLOUD, *flags, *TRAIN, **env)
  calls = programs.calls()
  assert all(call in printed for call in calls)  # Exactly the printed ones.
  verbs = [c[4] if c[1] == 'compute' else c[2] for c in calls]
  return code, out, err, [v for v in verbs if v not in ('describe', 'cat')]


def test_gcloud_from_request_to_the_end(launchers, programs, tmp_path):
  states = ['none', 'WAITING_FOR_RESOURCES', 'broken', 'ACTIVE', 'ACTIVE|0 0-0']
  code, out, err, verbs = _gcloud_run(launchers, programs, tmp_path, states)
  assert (code, err, verbs) == (0, '', ['create', 'delete'])
  assert 'done' in out and 'log-0-0.txt' in out and 'network' in out
  (script,) = (tmp_path / '.cache').rglob('*-startup.sh')
  fakes.check_syntax(script.read_text())


def test_gcloud_makes_a_preempted_slice_again(launchers, programs, tmp_path):
  states = ['none', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'PROVISIONING']
  states += ['ACTIVE', 'SUSPENDED', 'ACTIVE|0 0-0']
  code, _, _, verbs = _gcloud_run(
    launchers, programs, tmp_path, states, '--keep', old='0 0-0'
  )
  # The verdict of an earlier job of this name goes before the first request.
  assert verbs == ['rm', 'create', 'delete', 'create', 'delete', 'create']
  assert code == 0


def test_gcloud_watches_what_is_there(launchers, programs, tmp_path):
  states = ['ACTIVE', 'ACTIVE', 'ACTIVE|0 0-0']
  code, out, _, verbs = _gcloud_run(launchers, programs, tmp_path, states)
  assert (code, verbs) == (0, ['delete']) and 'there already' in out


def test_gcloud_finds_a_slice_preempted_meanwhile(
  launchers, programs, tmp_path
):
  states = ['SUSPENDED', 'SUSPENDED', 'ACTIVE', 'ACTIVE|0 0-0']
  code, _, _, verbs = _gcloud_run(launchers, programs, tmp_path, states)
  assert (code, verbs) == (0, ['delete', 'create', 'delete'])
  assert list((tmp_path / '.cache').rglob('a-startup.sh'))


@pytest.mark.parametrize(
  ('states', 'verbs', 'parts'),
  [
    (['none', 'ACTIVE|2 0-3'], ['create', 'delete'], ['input', '0-3']),
    (['none', 'ACTIVE|3 1-0'], ['create', 'delete'], ['gave up', '1-0']),
    (
      ['none'] + ['FAILED'] * 5,
      ['create'] + ['delete', 'create'] * 4,
      ['quota'],
    ),
    (['none', 'ACTIVE'] + ['none'] * 3, ['create'], ['deleted by someone']),
    (['broken'], [], ['network', 'describe']),
    (['none'] + ['broken'] * 10, ['create'], ['network']),
  ],
)
def test_gcloud_ends_with_an_error(
  launchers, programs, tmp_path, states, verbs, parts
):
  code, _, err, found = _gcloud_run(launchers, programs, tmp_path, states)
  assert (code, found) == (2, verbs)
  assert err.count('\n') == 1 and err.startswith('error: ')
  assert all(part in err for part in parts)


# GKE.


def _jobset(launcher, *argv):
  commands, texts = _dry(launcher, *argv)
  jobset = json.loads(texts['kubectl apply -f -'])
  (job,) = jobset['spec']['replicatedJobs']
  pod = job['template']['spec']['template']['spec']
  (container,) = pod['containers']
  xpk = next(c for c in commands if c[0] == 'xpk')
  return jobset, job, pod, container, xpk


def _expanded(words):
  """What Kubernetes makes of command words without known variables."""
  return [word.replace('$$', '$') for word in words]


def test_gke_tpu(launchers):
  jobset, job, pod, container, xpk = _jobset(
    launchers['gke'],
    *GKE,
    '--num_slices=2',
    '--spot',
    '--secret=WANDB_API_KEY=wandb',
    '--env=XLA_FLAGS=$(id)',
    *TRAIN,
  )
  assert jobset['kind'] == 'JobSet' and jobset['metadata']['name'] == 'a'
  assert job['replicas'] == 2
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 16
  assert spec['backoffLimit'] == 0
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '4x4x4',
    'cloud.google.com/gke-spot': 'true',
  }
  assert container['resources']['limits'] == {'google.com/tpu': '4'}
  # Bad input and giving up end everything, anything else restarts.
  (rule,) = spec['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [2, 3]
  assert rule['onExitCodes']['containerName'] == container['name']
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 100
  assert policy['rules'][0]['action'] == 'FailJobSet'
  assert container['env'] == [
    {'name': 'METASTONE_COORDINATOR', 'value': 'auto'},
    {'name': 'XLA_FLAGS', 'value': '$$(id)'},
    {
      'name': 'WANDB_API_KEY',
      'valueFrom': {'secretKeyRef': {'name': 'wandb', 'key': 'WANDB_API_KEY'}},
    },
  ]
  _, command = fakes.loop(_expanded(container['command']))
  assert command == [*COMMAND, BUCKET]
  assert {'--tpu-type=v5p-128', '--num-slices=2', '--docker-image=r/i:1'} < {
    *xpk
  }
  line = next(x for x in xpk if x.startswith('--command='))
  _, command = fakes.loop(shlex.split(line.removeprefix('--command=')))
  assert command == [*COMMAND, BUCKET]


def test_gke_gpus(launchers):
  flags = [*GKE, '--accelerator=h100-64', '--queue=q', '--service_account=s']
  jobset, job, pod, container, xpk = _jobset(launchers['gke'], *flags, *TRAIN)
  assert jobset['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}
  assert job['template']['spec']['parallelism'] == 8
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-accelerator': 'nvidia-h100-80gb'
  }
  assert pod['serviceAccountName'] == 's'
  assert container['resources']['limits'] == {'nvidia.com/gpu': '8'}
  env = {item['name']: item for item in container['env']}
  # The DNS name that JobSet gives to its first pod.
  first = f'a-{job["name"]}-0-0.a:8476'
  assert env['METASTONE_COORDINATOR']['value'] == first
  assert env['METASTONE_NUM_PROCESSES']['value'] == '8'
  index = env['METASTONE_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']
  assert 'job-completion-index' in index
  assert {'--device-type=h100-80gb-8', '--num-nodes=8'} < {*xpk}
  line = next(x for x in xpk if x.startswith('--command='))
  bash, c, inner = shlex.split(line.removeprefix('--command='))
  assert (bash, c) == ('bash', '-c')
  fakes.check_syntax(inner)
  words = shlex.split(inner)
  assert words[:2] == ['METASTONE_PROCESS_ID=$JOB_COMPLETION_INDEX', 'exec']
  assert fakes.loop(words[2:])[1] == [*COMMAND, BUCKET]


def test_gke_applies_what_it_prints(launchers, programs, tmp_path):
  programs.add('kubectl', f'cat >{tmp_path}/manifest')
  _, texts = _dry(launchers['gke'], *GKE, *TRAIN, **programs.env)
  assert not programs.calls()
  code, _, err = launchers['gke'](*GKE, *TRAIN, **programs.env)
  assert (code, err) == (0, '')
  assert programs.calls() == [['kubectl', 'apply', '-f', '-']]
  applied = (tmp_path / 'manifest').read_text()
  assert applied + '\n' == texts['kubectl apply -f -']


def test_gke_names_what_kubectl_says(launchers, programs):
  programs.add('kubectl', 'echo "error: no kind JobSet" >&2; exit 1')
  code, _, err = launchers['gke'](*GKE, *TRAIN, **programs.env)
  assert code == 2 and 'error: no kind JobSet' in err and err.count('\n') == 1


# SLURM.


def test_slurm_submits_what_it_prints(launchers, programs, tmp_path):
  programs.add('sbatch', f'cp "$1" {tmp_path}/submitted')
  programs.add('mkdir', 'exec /bin/mkdir "$@"')
  workdir = f"{tmp_path}/it's here"
  flags = [*SLURM[:2], f'--workdir={workdir}', '--partition=gpu']
  flags += ['--sbatch_flag=--qos=high', '--secret=WANDB_API_KEY']
  flags += ['--setup=module load cuda', '--python=python', *TRAIN]
  env = programs.env | {'WANDB_API_KEY': 'hunter2'}
  commands, texts = _dry(launchers['slurm'], *flags, **env)
  assert not programs.calls() and not pathlib.Path(workdir).exists()
  code, out, err = launchers['slurm'](*flags, **env)
  assert (code, err) == (0, '') and 'hunter2' not in out
  assert programs.calls() == [commands[0], commands[2]]
  (script,) = texts.values()
  assert (tmp_path / 'submitted').read_text() == script
  fakes.check_syntax(script)
  assert 'hunter2' not in script
  options = [
    word
    for line in script.splitlines()
    if line.startswith('#SBATCH ')
    for word in shlex.split(line)[1:]
  ]
  assert {
    '--nodes=4',
    '--ntasks-per-node=1',
    '--gpus-per-node=8',
    '--requeue',
    '--signal=B:USR1@120',
    '--partition=gpu',
    '--qos=high',
    '--export=ALL,WANDB_API_KEY',
    f'--output={workdir}/launch/slurm-%j.log',
    f'--chdir={fakes.ROOT}',
  } < {*options}
  body = [x for x in script.splitlines() if not x.startswith('#')]
  assert 'module load cuda' in body
  assert 'export METASTONE_COORDINATOR=auto' in body
  assert 'export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7' in body
  _, srun = fakes.loop(shlex.split(body[-1])[1:])
  assert srun[0] == 'srun'
  assert srun[srun.index('task') + 1 :] == [*COMMAND, f'--workdir={workdir}']


def test_slurm_with_a_bucket(launchers):
  flags = [*SLURM[:2], BUCKET, *TRAIN]
  _, texts = _dry(launchers['slurm'], *flags)
  assert f'--output={fakes.ROOT}/runs/a/launch/slurm' in ''.join(texts.values())


# Refusals.


@pytest.mark.parametrize(
  ('where', 'name'), [(w, name) for w in REFUSED for name in REFUSED[w]]
)
def test_refused_with_one_line(launchers, programs, where, name):
  flags, train, parts = REFUSED[where][name]
  after = [] if train is None else ['--', *train]
  for tool in ('gcloud', 'kubectl', 'sbatch'):
    programs.add(tool)
  argv = [*FLAGS[where], *flags, *after]
  code, out, err = launchers[where](*argv, **programs.env)
  assert (code, out) == (2, ''), err
  assert err.startswith('error: ') and err.count('\n') == 1
  assert 'hunter2' not in err
  assert all(part in err for part in parts), err
  assert not programs.calls()


@pytest.mark.parametrize(
  ('where', 'tool'),
  [('gcloud', 'gcloud'), ('gke', 'kubectl'), ('slurm', 'sbatch')],
)
def test_a_missing_program_is_named(launchers, tmp_path, where, tool):
  argv = [*FLAGS[where], *TRAIN]
  code, out, err = launchers[where](*argv, PATH=str(tmp_path))
  assert (code, out) == (2, '') and err.count('\n') == 1
  assert f'{tool} is not on PATH' in err and '--dry_run' in err
  _dry(launchers[where], *argv, PATH=str(tmp_path))


def test_uncommitted_changes_would_not_travel(launchers, programs):
  programs.add(
    'git',
    'case $3 in rev-parse) echo 0123;; status) echo " M README.md";; esac',
  )
  flags = [x for x in GCLOUD if not x.startswith('--code')]
  code, _, err = launchers['gcloud'](*flags, *TRAIN, **programs.env)
  assert code == 2 and 'README.md' in err and 'commit' in err
  programs.add('git', 'echo "fatal: not a git repository" >&2; exit 128')
  code, _, err = launchers['gcloud'](*flags, *TRAIN, **programs.env)
  assert code == 2 and 'no git checkout' in err and '--code' in err
