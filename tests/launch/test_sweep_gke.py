"""Workers of a sweep on GKE: what is applied, that a pod is a worker, refusals.

kubectl and the pod's python are fakes that record their calls.
"""

import json
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from launch import sweep_gke
from metastone_jax.errors import UserError
from tests.launch import jobs
from tests.launch import pods_fakes as fakes

BUCKET = 'gs://my-bucket/sweeps/claims'
CONFIG = '--config=configs/sweeps/scaling_law.py:a=b'
# Quotes, spaces, variables, a comment, and a form of Kubernetes.
ODD = """--config.name=it's "a" $HOME $(id) $(JOB_COMPLETION_INDEX) # \\ ;"""
COMMAND = [sys.executable, '-m', 'launch.sweep', CONFIG, ODD]
# Keeps what is applied.
KUBECTL = (
  'cat >"$APPLIED"; [ -z "$REFUSAL" ] || { echo "$REFUSAL" >&2; exit 1; }'
)


@pytest.fixture
def programs(tmp_path, monkeypatch):
  made = fakes.Programs(tmp_path)
  for name in ('kubectl', 'python'):
    made.add(name, KUBECTL if name == 'kubectl' else '')
  for key, value in made.env.items():
    monkeypatch.setenv(key, value)
  monkeypatch.setenv('APPLIED', str(tmp_path / 'applied'))
  monkeypatch.setenv('REFUSAL', '')
  return made


def _submit(*items, command=COMMAND, workdir=BUCKET, name='a_law', **options):
  with flagsaver.as_parsed(gke=','.join(items)):
    sweep_gke.submit(
      list(command),
      name=name,
      workdir=workdir,
      **{'workers': 3, 'dry_run': False, **options},
    )


def _applied(tmp_path, *items, **options):
  """(JobSet, its only job, the pod's spec) after a submission."""
  _submit('image=r/i:1', *items, **options)
  found = json.loads((tmp_path / 'applied').read_text())
  (replicated,) = found['spec']['replicatedJobs']
  job = replicated['template']['spec']
  return found, job, job['template']['spec']


def test_one_pod_a_worker(programs, tmp_path, capsys):
  jobset, job, pod = _applied(tmp_path)
  assert (jobset['apiVersion'], jobset['kind']) == (
    'jobset.x-k8s.io/v1alpha2',
    'JobSet',
  )
  assert jobset['metadata'] == {'name': 'a-law', 'namespace': 'default'}
  assert jobset['spec']['replicatedJobs'][0]['replicas'] == 1
  assert job['completionMode'] == 'Indexed'
  assert (job['parallelism'], job['completions']) == (3, 3)
  assert pod['containers'][0]['image'] == 'r/i:1'
  assert programs.calls() == [['kubectl', 'apply', '-f', '-']]
  shown = capsys.readouterr().out
  assert 'kubectl get jobset a-law --namespace=default --watch' in shown
  assert 'jobset-name=a-law' in shown and '--finish' in shown


def test_pods_that_end(programs, tmp_path):
  """Bad input ends all, a lost machine costs nothing, failures are counted."""
  _, job, pod = _applied(tmp_path)
  bad_input, preempted = job['podFailurePolicy']['rules']
  assert bad_input['action'] == 'FailJob'
  assert bad_input['onExitCodes'] == {
    'containerName': pod['containers'][0]['name'],
    'operator': 'In',
    'values': [2],
  }
  assert preempted['action'] == 'Ignore'
  assert preempted['onPodConditions'] == [
    {'type': 'DisruptionTarget', 'status': 'True'}
  ]
  assert job['backoffLimit'] >= 3
  # What a podFailurePolicy demands.
  assert pod['restartPolicy'] == 'Never'


@pytest.mark.parametrize('number', ['0', '2'])
def test_pod_runs_its_worker(programs, tmp_path, monkeypatch, number):
  _, _, pod = _applied(tmp_path)
  # As Kubernetes reads it: it knows no variable of that name, $$ is one $.
  command = pod['containers'][0]['command']
  assert not any('$(' in word.replace('$$(', '') for word in command)
  command = [word.replace('$$', '$') for word in command]
  monkeypatch.setenv('JOB_COMPLETION_INDEX', number)
  subprocess.run(command, check=True)
  assert programs.calls()[-1] == ['python', *COMMAND[1:], f'--worker={number}']


def test_where_pods_go(programs, tmp_path):
  _, _, pod = _applied(tmp_path)
  assert pod['nodeSelector'] == {} and pod['tolerations'] == []
  assert 'serviceAccountName' not in pod

  jobset, _, pod = _applied(
    tmp_path,
    *('accelerator=v5e-8', 'spot', 'queue=q', 'namespace=n', 'cpu=4'),
    *('memory=16Gi', 'service_account=s'),
  )
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '2x4',
    'cloud.google.com/gke-spot': 'true',
  }
  assert {t['key'] for t in pod['tolerations']} == {
    'google.com/tpu',
    'cloud.google.com/gke-spot',
  }
  wanted = {'google.com/tpu': '8', 'cpu': '4', 'memory': '16Gi'}
  assert pod['containers'][0]['resources'] == {
    'requests': wanted,
    'limits': wanted,
  }
  assert pod['serviceAccountName'] == 's'
  assert jobset['metadata']['namespace'] == 'n'
  assert jobset['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}

  _, _, pod = _applied(tmp_path, 'accelerator=h100-8', 'spot=false')
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-accelerator': 'nvidia-h100-80gb'
  }
  limits = pod['containers'][0]['resources']['limits']
  assert limits == {'nvidia.com/gpu': '8'}

  _, _, pod = _applied(tmp_path, 'spot=true')
  assert pod['nodeSelector'] == {'cloud.google.com/gke-spot': 'true'}


def test_config_as_two_words(programs, tmp_path):
  command = [*COMMAND[:3], *CONFIG.split('=', 1), ODD]
  _, _, pod = _applied(tmp_path, command=command)
  assert '--config configs/' in pod['containers'][0]['command'][2]


def test_dry_run_prints_what_is_applied(programs, tmp_path, capsys):
  _submit('image=r/i:1', dry_run=True)
  assert not programs.calls()
  commands, texts = fakes.split_heredocs(capsys.readouterr().out)
  assert commands[0] == ['kubectl', 'apply', '-f', '-']
  printed = json.loads(texts['kubectl apply -f -'])
  assert printed == _applied(tmp_path)[0]


@pytest.mark.parametrize(
  ('items', 'options', 'parts'),
  [
    ([], {}, ['--gke=image', 'Dockerfile']),
    (['image=i', 'gpu=1'], {}, ['--gke=gpu=1', 'accelerator', 'queue']),
    (['image=i', 'cpu'], {}, ['--gke=cpu', 'KEY=VALUE']),
    (['image=i', 'spot=maybe'], {}, ['spot=maybe', 'true or false']),
    (['image=i', 'accelerator=v9-8'], {}, ['--gke: accelerator', 'v9-8']),
    (['image=i', 'accelerator=v5p-128'], {}, ['v5p-128', '16 machines']),
    (['image=i'], {'workdir': '/shared/x'}, ['/shared/x', 'gs://']),
    (['image=i'], {'workdir': 'runs/x'}, ['runs/x', 'gs://']),
    (['image=i'], {'name': '1.law'}, ["'1.law'", 'Kubernetes']),
    (['image=i'], {'name': 'a' * 41}, ['40']),
    (
      ['image=i'],
      {'command': ['python', '--config=/tmp/x.py:a']},
      ['--config=/tmp/x.py:', 'root'],
    ),
    (
      ['image=i'],
      {'command': ['python', '--config=configs/sweeps/no.py']},
      ['--config=configs/sweeps/no.py', 'this repository only'],
    ),
  ],
)
def test_refused(programs, items, options, parts):
  with pytest.raises(UserError) as caught:
    _submit(*items, **options)
  message = str(caught.value)
  assert '\n' not in message and all(part in message for part in parts)
  assert not programs.calls()


def test_what_kubectl_refuses(programs, monkeypatch):
  monkeypatch.setenv('REFUSAL', 'error: no matches for kind "JobSet"')
  with pytest.raises(UserError, match='kubectl apply.*no matches for kind'):
    _submit('image=r/i:1')


def test_without_kubectl(monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='kubectl is not on PATH'):
    _submit('image=r/i:1')


@pytest.mark.parametrize(
  ('executor', 'flags', 'python'),
  [
    ('gke', ['--gke=image=r/i:1'], 'python'),
    ('slurm', ['--slurm', 'partition=gpu'], sys.executable),
  ],
)
def test_launch_sweep_starts_workers(executor, flags, python):
  """The whole command: what it makes of its own flags for the workers."""
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'launch.sweep'),
      *(CONFIG.partition(':')[0], f'--executor={executor}', *flags),
      *('--workdir', BUCKET, '--workers=2', '--dry_run'),
    ],
    cwd=jobs.ROOT,
    env=jobs.environment(),
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert (done.returncode, done.stderr) == (0, '')
  line = f'{python} -m launch.sweep {CONFIG.partition(":")[0]}'
  line += f' --executor={executor} --workdir={BUCKET} --worker='
  assert line in done.stdout
