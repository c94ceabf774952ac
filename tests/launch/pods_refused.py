"""What the launchers of launch/pods refuse, for test_pods.py.

launcher -> {name: (flags added to good ones, flags after `--` or None for no
`--`, parts of the error line)}. hunter2 stands for a secret.
"""

TRAIN = ['--config=configs/tiny.py']

ANY = {
  'no recipe': ([], None, ['recipe is missing', '--config=configs/32b.py']),
  'no flags after --': ([], [], ['recipe is missing']),
  'no config among them': ([], ['--plan'], ['recipe is missing']),
  'two workdirs': (
    [],
    ['--config=configs/tiny.py', '--workdir=x'],
    ['--workdir'],
  ),
  'a step': (
    [],
    ['--config=configs/tiny.py', '--step=3'],
    ['--step', 'restart'],
  ),
  'no such recipe': (
    [],
    ['--config=configs/no.py'],
    ['configs/no.py', 'no such'],
  ),
  'a recipe elsewhere': ([], ['--config=/tmp/x.py:a=b'], ['/tmp/x.py', 'root']),
  'bad name': (['--name=A_b'], TRAIN, ["'A_b'", 'lower-case']),
  'no name': (['--name='], TRAIN, ['--name is missing']),
  'no workdir': (['--workdir='], TRAIN, ['--workdir is missing']),
  'a relative workdir': (
    ['--workdir=runs/a'],
    TRAIN,
    ['runs/a', 'restart'],
  ),
  'a bucket only': (['--workdir=gs://b'], TRAIN, ["'gs://b'", 'folder']),
  'a secret in --env': (
    ['--env=WANDB_API_KEY=hunter2'],
    TRAIN,
    ['WANDB_API_KEY', '--secret'],
  ),
  'no variable': (['--env=hunter 2'], TRAIN, ['NAME=VALUE']),
  'negative limit': (['--max_restarts=-1'], TRAIN, ['max_restarts']),
  'stray word': (['stray'], TRAIN, ["'stray'"]),
}
CLOUD = {
  'a local workdir': (
    ['--workdir=/shared/a'],
    TRAIN,
    ['/shared/a', 'gs://'],
  ),
  'no accelerator': (
    ['--accelerator='],
    TRAIN,
    ['--accelerator is missing'],
  ),
  'unknown accelerator': (
    ['--accelerator=v9-8'],
    TRAIN,
    ["'v9-8'", 'v5p-128'],
  ),
  'a secret for its name': (
    ['--secret=WANDB_API_KEY=' + 'hunter2/' * 5],
    TRAIN,
    ['WANDB_API_KEY', 'never the secret itself'],
  ),
  'a key for its name': (
    ['--secret=WANDB_API_KEY=' + '0a' * 20],
    TRAIN,
    ['never the secret itself'],
  ),
  'a secret alone': (['--secret=hunter2'], TRAIN, ['VARIABLE=NAME']),
}
REFUSED = {
  'gcloud': ANY
  | CLOUD
  | {
    'no zone': (['--zone='], TRAIN, ['--zone is missing']),
    'GPUs': (
      ['--accelerator=h100-8'],
      TRAIN,
      ['h100-8', 'launch.pods.gke'],
    ),
    'odd code': (['--code=x'], TRAIN, ["'x'", 'git+URL@COMMIT']),
    'no commit': (['--code=git+https://h/r'], TRAIN, ['@COMMIT']),
    'a token in the URL': (
      ['--code=git+https://hunter2@h/r@v1'],
      TRAIN,
      ['token in the URL'],
    ),
  },
  'gke': ANY
  | CLOUD
  | {
    'no image': (['--image='], TRAIN, ['--image is missing', 'Dockerfile']),
    'slices of GPUs': (
      ['--accelerator=h100-8', '--num_slices=2'],
      TRAIN,
      ['--num_slices=2', 'h100-16'],
    ),
  },
  'slurm': ANY
  | {
    'no such variable': (
      ['--secret=NOT_SET'],
      TRAIN,
      ['--secret', 'set here'],
    ),
    'odd time': (['--time=soon'], TRAIN, ["'soon'", '24:00:00']),
    'a line break': (['--sbatch_flag=--qos=a\nrm'], TRAIN, ['line break']),
  },
}
