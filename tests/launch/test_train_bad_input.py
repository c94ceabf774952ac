"""Bad input: exit code 2, one `error:` line, nothing half-written.

Each case is the whole command. One process imports everything once and forks
a child a case (before any of them starts a backend), which is the command with
its own arguments and environment.
"""

import hashlib
import json
import pathlib
import subprocess
import sys

import pytest

from metastone_jax.checkpoints import CheckpointManager, write_json_atomic
from metastone_jax.parallel import Sharder
from metastone_jax.training import loop
from metastone_jax.training import state as state_lib
from metastone_jax.training.loop import setup as setup_lib
from tests.launch import jobs, small

SERVER = r"""
import json, os, sys
from launch import cli, train

for case in json.load(sys.stdin):
  child = os.fork()
  if child == 0:
    code = 99
    try:
      for descriptor, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(
          os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor
        )
      os.environ.update(case['env'])
      sys.argv = ['launch/train.py', *case['argv']]
      try:
        cli.run(train.main)
        code = 0
      except SystemExit as error:
        code = error.code or 0
      except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  _, status = os.waitpid(child, 0)
  print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
"""

EIGHT = '--xla_force_host_platform_device_count=8'

# name -> (lines of get_config after those of small.py, flags, parts of the
# error line). {old} is a finished run of small.py, {tmp} an empty folder.
FRESH = {
  'unknown key in the file': (
    ['c.phases.joint.stepz = 3'],
    [],
    ['config key phases.joint.stepz is unknown', 'steps'],
  ),
  'unknown top key in the file': (
    ['c.evalution = dict(ks=(1,))'],
    [],
    ['config key evalution is unknown', 'evaluation'],
  ),
  'unknown key on the command line': (
    [],
    ['--config.phases.joint.stepz=3'],
    ['stepz', 'steps'],
  ),
  'wrong type on the command line': (
    [],
    ['--config.phases.joint.steps=many'],
    ['config.phases.joint.steps', 'many'],
  ),
  'wrong type in the file': (
    ["c.model.width = '16'"],
    [],
    ['config file', 'TypeError', 'width', 'int'],
  ),
  'wrong type of a new value': (
    ["c.model = dict(preset='tiny', num_layers='2')"],
    [],
    ["model.num_layers='2'", 'int'],
  ),
  'unknown flag': ([], ['--wrokdir=x'], ['wrokdir', '--help']),
  'stray argument': ([], ['small'], ["unexpected argument 'small'"]),
  'a syntax error in the file': (['c.seed ='], [], ['config file']),
  'mesh of another size': (
    [],
    ['--config.mesh.fsdp=3'],
    ['mesh', 'needs 3 devices and there are 1', 'config.mesh'],
  ),
  'mesh that does not divide': (
    ['c.mesh = dict(fsdp=-1, tensor=3)'],
    [EIGHT],
    ['mesh', '3 does not divide the 8 devices', 'config.mesh'],
  ),
  'rows that do not divide over the mesh': (
    [],
    [EIGHT],
    ['phases.head', '10 sequences', '8 devices', 'sequences_per_microbatch'],
  ),
  'unknown mesh axis': (['c.mesh = dict(fdsp=1)'], [], ["axis 'fdsp'", 'fsdp']),
  'step mark of several tokens': (
    ["c.data.step_marks = ('. \\n',)"],
    [],
    [r"'. \n'", 'one token', 'step_marks'],
  ),
  'spr on a cold zero head': (
    [
      "c.model.score_init = 'zero'",
      "c.phases.head.score_loss = 'spr'",
    ],
    [],
    ['phases.head.score_loss', 'zero-initialised', "'bce'"],
  ),
  'k < 1': (['c.evaluation.ks = (0, 2)'], [], ['k must be at least 1', '0']),
  'k above every sample': (
    ['c.evaluation.ks = (8,)'],
    [],
    ['evaluation.stage_samples=4', '[8]'],
  ),
  'no tasks': (
    ['c.data.tasks = {}', 'c.data.task_options = {}'],
    [],
    ['needs data.source', '--config.data.source='],
  ),
  'tasks of weight zero': (
    ['c.data.tasks = dict(signs=0.0)'],
    [],
    ['the problem source is empty', 'positive weight'],
  ),
  'unknown task': (
    ['c.data.tasks = dict(sings=1.0)', 'c.data.task_options = {}'],
    [],
    ["'sings' is unknown", 'signs'],
  ),
  'no tokenizer there': (
    [],
    ['--config.data.tokenizer={tmp}/none'],
    ['{tmp}/none'],
  ),
  'prompts too long': (
    ['c.data.max_prompt_length = 6', 'c.data.max_response_length = 60'],
    [],
    ['prompt', 'data.max_prompt_length'],
  ),
  'demonstrations too long': (
    ['c.data.max_response_length = 6', 'c.phases.joint.overlong_buffer = 0'],
    [],
    ['demonstration', 'data.max_response_length'],
  ),
  'a phase twice': (
    [],
    ["--config.phase_order=('head', 'head')"],
    ['phase_order', 'twice'],
  ),
  'unknown sink': (["c.sinks = ('tensorbored',)"], [], ['tensorbored']),
  'start_from another shape': (
    [],
    ['--config.model.width=24', '--config.start_from={old}/checkpoints'],
    ['checkpoint step 2', '24', '16', '{old}/config.json'],
  ),
  'start_from nowhere': (
    [],
    ['--config.start_from={tmp}/none'],
    ['no checkpoint directory', '{tmp}/none'],
  ),
  'start_from a step that is not there': (
    [],
    [
      '--config.start_from={old}/checkpoints',
      '--config.start_from_step=7',
    ],
    ['no checkpoint of step 7', 'it has 2'],
  ),
  'resume an empty folder': ([], ['--step=7'], ['--step=7', 'nothing to']),
}
# The same in the folder of the finished run.
RESUMED = {
  'another shape': (
    [],
    ['--config.model.width=24'],
    ['belongs to another recipe', 'model.width: 16 there, 24 here'],
  ),
  'another learning rate': (
    [],
    ['--config.phases.head.head_learning_rate=0.5'],
    ['another recipe', 'phases[1].head_learning_rate: 0.01 there, 0.5 here'],
  ),
  'another phase order': (
    [],
    ["--config.phase_order=('head', 'joint')"],
    ["phases: ['warmup', 'head', 'joint'] there, ['head', 'joint'] here"],
  ),
  'a step that is not there': (
    [],
    ['--step=7'],
    ['no checkpoint of step 7', 'it has 2'],
  ),
}
# Without a config that could be read.
NO_CONFIG = {
  'no --config': ([], ['--config is missing']),
  'no such config': (
    ['--config=tests/launch/none.py'],
    ['config file', 'tests/launch/none.py'],
  ),
  'a folder as config': (
    ['--config=tests/launch'],
    ['config file', 'tests/launch'],
  ),
  'an override without a file': (
    ['--config=none.py', '--config.seed=1'],
    ['config file', 'none.py'],
  ),
}
CASES = [
  *(('fresh', name) for name in FRESH),
  *(('resumed', name) for name in RESUMED),
  *(('no config', name) for name in NO_CONFIG),
]


def _tree(folder: pathlib.Path) -> dict[str, str]:
  """Relative path -> digest of every file below a folder, folders too."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    if path.is_file()
    else 'folder'
    for path in sorted(folder.rglob('*'))
  }


def _make_old_run(folder: pathlib.Path) -> None:
  """What a run of small.py leaves: its recipe and a checkpoint, step 2."""
  recipe = loop.parse_recipe(small.get_config())
  tokenizer = setup_lib.Tokenizer.tiny()
  state = state_lib.init_state(
    recipe.model_config(tokenizer.vocab_size), recipe.optimiser, 0, Sharder()
  )
  write_json_atomic(folder / 'config.json', loop.config_dict(recipe))
  with CheckpointManager(folder / 'checkpoints') as checkpoints:
    checkpoints.save(2, {'train': state}, {'phase': 'warmup'})


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
  """(group, name) -> (exit code, stderr, changed, substitutions)."""
  tmp = tmp_path_factory.mktemp('bad')
  old = tmp / 'old'
  _make_old_run(old)
  before = _tree(old)
  source = pathlib.Path(small.__file__).read_text()
  words = {'old': old, 'tmp': tmp}
  requests = []
  for i, (group, name) in enumerate(CASES):
    if group == 'no config':
      flags, lines = NO_CONFIG[name][0], None
    else:
      lines, flags, _ = (FRESH if group == 'fresh' else RESUMED)[name]
    argv = [flag.format(**words) for flag in flags if flag != EIGHT]
    if lines is not None:
      config = tmp / f'{i}.py'
      # As a sub-function, so that a syntax error is the only odd thing.
      body = '\n'.join(f'  {line}' for line in lines)
      config.write_text(
        f'{source}\n\n_small = get_config\n\n\ndef get_config():\n'
        f'  c = _small()\n{body}\n  return c\n'
      )
      argv.insert(0, f'--config={config}')
    workdir = old if group == 'resumed' else tmp / f'run-{i}'
    argv += [f'--workdir={workdir}', '--compilation_cache=']
    requests.append(
      {
        'argv': argv,
        'env': {'XLA_FLAGS': EIGHT} if EIGHT in flags else {},
        'stdout': str(tmp / f'{i}.stdout'),
        'stderr': str(tmp / f'{i}.stderr'),
      }
    )
  server = subprocess.run(
    [sys.executable, '-c', SERVER],
    input=json.dumps(requests),
    cwd=jobs.ROOT,
    env=jobs.environment(),
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert server.returncode == 0, server.stderr
  codes = [json.loads(line) for line in server.stdout.splitlines()]
  assert _tree(old) == before  # Whatever was refused there changed nothing.
  return {
    case: (code, (tmp / f'{i}.stderr').read_text(), tmp / f'run-{i}', words)
    for i, (case, code) in enumerate(zip(CASES, codes, strict=True))
  }


@pytest.mark.parametrize(('group', 'name'), CASES)
def test_refused_with_one_line(outcomes, group, name):
  code, stderr, workdir, words = outcomes[group, name]
  if group == 'no config':
    parts = NO_CONFIG[name][1]
  else:
    parts = (FRESH if group == 'fresh' else RESUMED)[name][2]
  assert code == 2, stderr
  assert 'Traceback' not in stderr
  lines = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1, stderr
  assert stderr.rstrip().endswith(lines[0])  # The last thing a user sees.
  for part in parts:
    assert part.format(**words) in lines[0]
  assert not workdir.exists()
