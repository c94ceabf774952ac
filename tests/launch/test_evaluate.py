"""launch.evaluate as a user runs it: sets, efforts, Ctrl-C, comparisons."""

import functools
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.checkpoints.model_folder import write_folder
from metastone_jax.data import Tokenizer
from metastone_jax.evaluation import EvaluationSamples
from metastone_jax.model import init_params, preset
from metastone_jax.training import loop
from tests.evaluation import metric_script
from tests.launch import jobs

QUESTIONS = ('one', 'two', 'three', 'four', 'five', 'six')


def _model(folder: epath.Path, seed: int):
  """Random weights in a folder of ours, as launch.ingest leaves one."""
  tokenizer = Tokenizer.tiny()
  config = preset(
    'tiny',
    vocab_size=tokenizer.vocab_size,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=8,
    feed_forward=32,
  )
  params = jax.jit(functools.partial(init_params, config))(jax.random.key(seed))
  with CheckpointManager(folder / 'checkpoints') as manager:
    manager.save(0, {'train': {'params': params}}, {'phase': 'ingested'})
  names = ('tokenizer.json', 'tokenizer_config.json')
  files = {name: (tokenizer.folder / name).read_bytes() for name in names}
  write_folder(folder, config, files)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = epath.Path(tmp_path_factory.mktemp('evaluate'))
  for seed, name in enumerate(('a', 'b')):
    _model(root / name, seed)
  (root / 'questions').mkdir()
  (root / 'questions' / 'letters.txt').write_text('\n'.join(QUESTIONS))
  (root / 'questions' / 'aime24.jsonl').write_text(
    '{"prompt": "Find 1.", "answer": 1}\n'
  )
  return root


def _run(*flags, stop_at=0, module='tests.launch.evaluated'):
  return subprocess.run(
    [sys.executable, '-m', module, *map(str, flags)],
    cwd=jobs.ROOT,
    env={**jobs.environment(), 'STOP_AT': str(stop_at)},
    capture_output=True,
    text=True,
    timeout=280,
  )


def _results(out):
  rates = [*out.glob('letters-*-pass_rates.jsonl')]
  (file,) = (p for p in out.glob('letters-*.jsonl') if p not in rates)
  (samples,) = out.glob('letters-*.npz')
  return EvaluationSamples.load(samples), file, rates[0]


def _flags(folder, *names, out):
  """Of an evaluation of these checkpoints."""
  return (
    *(f'--checkpoint={folder / name}' for name in names),
    '--tasks=letters',
    f'--data={folder / "questions"}',
    '--effort=medium',
    '--repeats=1',
    '--max_tokens=40',
    '--slots=8',
    '--temperature=1',
    f'--out={out}',
  )


@pytest.fixture(scope='module')
def interrupted(folder):
  """Two checkpoints, stopped at 20 of 48 responses to the first, then not."""
  flags = _flags(folder, 'a', 'b', out=folder / 'out')
  first = _run(*flags, stop_at=20)
  left = [
    line
    for path in (folder / 'out' / 'a').glob('letters-*-responses/*.jsonl')
    for line in path.read_text().splitlines()
  ]
  return first, left, _run(*flags), folder / 'out' / 'a'


def test_ctrl_c_keeps_what_is_done(interrupted):
  first, left, second, out = interrupted
  assert first.returncode == 130, first.stderr
  assert 'the same command goes on' in first.stderr
  assert 20 <= len(left) < 48
  assert second.returncode == 0, second.stderr
  assert f'{len(left)} of 48 responses are there' in second.stderr
  drawn = 48 - len(left)
  assert re.search(rf'letters: {drawn} responses, .* tokens/s', second.stderr)
  assert re.search('letters: 48 responses, .* tokens/s', second.stderr)
  # They stay, for more samples and for other verdicts.
  (kept,) = out.glob('letters-*-responses')
  assert len(loop.KeptResponses(kept).found) == 48


def test_a_finite_set_is_evaluated_whole(interrupted):
  _, _, second, out = interrupted
  assert 'letters has 6 problems; all of them are evaluated' in second.stderr
  samples, _, _ = _results(out)
  assert samples.shape == (6, 8)
  assert samples.problem_ids == [f'letters/{i}' for i in range(6)]
  assert samples.subjects == ['art', 'law'] * 3
  # Three quarters of 40 tokens, and the tag that is forced then.
  assert samples.thinking_PN.max() == 31
  summary = json.loads((out / 'letters-effort_medium.json').read_text())
  assert [row['k'] for row in summary['rows']] == [1, 2, 8]
  assert [r['subject'] for r in summary['subjects']['rows']] == ['art', 'law']
  assert summary['pass_at_1']['method'] == 'Wilson'
  page = (out / 'report-letters-effort_medium' / 'report.html').read_text()
  assert 'macro average' in page and 'Calibration of the score' in page


def test_the_files_hold_what_was_scored(interrupted):
  *_, out = interrupted
  samples, file, rates = _results(out)
  found = metric_script.metrics(file)
  assert found['problems'] == 6 and found['samples'] == 48
  lines = [json.loads(line) for line in file.open()]
  assert [line['prompt'] for line in lines] == list(QUESTIONS)
  for p, line in enumerate(lines):
    for n, text in enumerate(line['output']['solution_lst']):
      finished = bool(samples.finished_PN[p, n])
      length = len(text + '<|im_end|>' * finished)
      assert samples.correct_PN[p, n] == (finished and length % (p + 1) == 0)
  assert samples.correct_PN.any() and not samples.correct_PN.all()
  rows = [json.loads(line) for line in rates.open()]
  assert [row['pass_rate'] for row in rows] == list(
    samples.correct_PN.mean(axis=1)
  )


def test_checkpoints_are_compared_on_the_same_problems(interrupted):
  *_, second, out = interrupted
  report = out.parent / 'compare-letters-effort_medium'
  assert f'comparison: {report}' in second.stderr
  first, _, _ = _results(out)
  other, _, _ = _results(out.parent / 'b')
  assert first.problem_ids == other.problem_ids
  differences = json.loads((report / 'differences.json').read_text())
  assert {(d['before'], d['after']) for d in differences} == {('a', 'b')}
  assert len(differences) == 5 and differences[0]['test'] == 'sign flips, exact'
  np.testing.assert_allclose(
    differences[0]['mean'], other.correct_PN.mean() - first.correct_PN.mean()
  )
  assert 'Checkpoint by checkpoint' in (report / 'report.md').read_text()


def test_what_is_there_is_used_again(folder, interrupted, tmp_path):
  """Results of the same problems, responses of others' verdicts; no disk."""
  *_, out = interrupted
  again = tmp_path / 'again'
  shutil.copytree(out, again)
  flags = _flags(folder, 'a', out=again)
  summary = again / 'letters-effort_medium.json'
  before = summary.read_bytes()
  summary.unlink()
  done = _run(*flags)
  assert done.returncode == 0, done.stderr
  assert 'tokens/s' not in done.stderr and summary.read_bytes() == before
  # As with another deadline: judged again, not drawn again.
  (samples,) = again.glob('letters-*.npz')
  key = samples.stem.rpartition('-')[2]
  for path in again.glob(f'*-{key}*'):
    path.unlink()
  summary.unlink()
  summary.mkdir()  # cannot be replaced by a file
  found = _run(*flags)
  assert '48 of 48 responses are there' in found.stderr
  assert 'tokens/s a host' not in found.stderr
  assert samples.exists()
  assert found.returncode == 2
  last = found.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ') and 'no report; the results' in last


def test_traces_are_reported_like_responses(folder):
  flags = (
    f'--checkpoint={folder / "a"}',
    '--tasks=letters',
    f'--data={folder / "questions"}',
    '--problems=2',
    '--mode=trace',
    '--k=2',
    '--repeats=3',
    '--max_tokens=12',
    f'--out={folder / "traced"}',
  )
  found = _run(*flags)
  assert found.returncode == 0, found.stderr
  assert 'The answer written from the best of 2 traces' in found.stderr
  (path,) = (folder / 'traced').glob('letters-traces2-*.npz')
  samples = EvaluationSamples.load(path)
  assert samples.shape == (2, 3) and samples.traces == 2
  assert (samples.thinking_PN <= samples.tokens_PN).all()


# Flags with A for a folder of ours -> what the one line of the error says.
BAD_CALLS = {
  '': '--checkpoint is missing',
  '--checkpoint=/gone': '/gone is no folder of ours',
  '--checkpoint=A --effort=low --samples=4': '--effort=low and --samples',
  '--checkpoint=A --effort=low --k=4': '--effort=low and --k',
  '--checkpoint=A --repeats=4': '--repeats goes with --effort',
  '--checkpoint=A --mode=trace --samples=4': 'whole responses',
  '--checkpoint=A --samples=4 --k=8': 'raise --samples',
  '--checkpoint=A --k=x': 'give whole numbers',
  '--checkpoint=A': 'has no tasks of its own; give --tasks',
  '--checkpoint=A,A --tasks=signs': 'names one twice',
  '--checkpoint=A@7 --tasks=signs': 'step 7',
  '--checkpoint=A --tasks=sings': "task 'sings' is unknown",
  '--checkpoint=A --tasks=signs,signs': 'names a task twice',
  '--checkpoint=A --tasks=signs --data=x': (
    '--data=x: none of signs reads files'
  ),
  '--checkpoint=A --tasks=signs,aime24 --data=Q --split=train': (
    'aime24: no train problems'
  ),
  '--checkpoint=A --tasks=sings --data=x': "task 'sings' is unknown",
}
_CALL_ALL = """
import contextlib, io, json, sys
from absl import app, flags
from absl.testing import flagsaver
from launch import cli, evaluate
calls, found = json.loads(sys.argv[1]), []
app.define_help_flags()
flags.FLAGS(['evaluate'])
for call in calls:
  saved = flagsaver.save_flag_values()
  sys.argv = ['evaluate', *call.split()]
  stderr = io.StringIO()
  with contextlib.redirect_stderr(stderr):
    try:
      cli.run(evaluate.main)
    except SystemExit as error:
      found.append([error.code, stderr.getvalue()])
  flagsaver.restore_flag_values(saved)
print(json.dumps(found))
"""


def test_bad_calls_end_with_one_line(folder):
  calls = [call.replace('A', str(folder / 'a'), 1) for call in BAD_CALLS]
  calls = [call.replace('=Q', f'={folder / "questions"}') for call in calls]
  calls = [call.replace(',A', f',{folder / "a"}') for call in calls]
  found = subprocess.run(
    [sys.executable, '-c', _CALL_ALL, json.dumps(calls)],
    cwd=jobs.ROOT,
    env=jobs.environment(),
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert found.returncode == 0, found.stderr
  results = json.loads(found.stdout.splitlines()[-1])
  for (call, message), (code, text) in zip(
    BAD_CALLS.items(), results, strict=True
  ):
    assert code == 2, call
    (line,) = text.strip().splitlines()
    assert line.startswith('error: ') and message in line, line
