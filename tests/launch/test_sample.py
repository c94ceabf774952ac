"""launch.sample as a user runs it: answers, an interruption, bad requests."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from metastone_jax.data import Tokenizer
from tests.checkpoints.huggingface import parts
from tests.launch import jobs

CONTEXT = 128
# As `python -m launch.sample`, also where a job in the background hands down
# that Ctrl-C is ignored.
_START = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module('launch.sample', run_name='__main__', alter_sys=True)
"""


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Random weights in the published form, with the tiny tokenizer."""
  folder = tmp_path_factory.mktemp('model')
  tokenizer = Tokenizer.tiny()
  parts.save_folder(
    folder,
    'qwen2',
    vocab_size=tokenizer.vocab_size,
    eos_token_id=tokenizer.eos_id,
    max_position_embeddings=CONTEXT,
  )
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(tokenizer.folder / name, folder / name)
  return folder


def _start(model, *flags, devices=1):
  return subprocess.Popen(
    [sys.executable, '-c', _START, f'--checkpoint={model}', *flags],
    cwd=jobs.ROOT,
    env=jobs.environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(model, *flags, devices=1):
  process = _start(model, *flags, devices=devices)
  out, err = process.communicate(timeout=200)
  return process.returncode, out, err


def test_one_question_on_several_devices(model):
  code, out, err = _run(
    model,
    '--question=Make 3 using 1, 2.',
    '--max_tokens=24',
    '--answer_tokens=8',
    '--form=trace',
    '--k=3',
    '--tensor=2',
    '--json',
    devices=4,
  )
  assert code == 0, err
  row = json.loads(out)
  output = row['output']
  assert len(output['solution_lst']) == len(output['score_lst']) == 3
  winner = output['solution_lst'][row['best']]
  assert winner.endswith('</think>')
  assert output['content'].startswith(winner)
  # The budget of effort low: half of the trace, then the forced tag.
  ids = Tokenizer.tiny().encode(winner)
  assert len(ids) <= 13


def test_the_terminal_shows_winner_and_ranking(model):
  code, out, err = _run(
    model, '--question=1 + 2', '--max_tokens=16', '--k=3', '--stop=\n'
  )
  assert code == 0, err
  assert '3 candidates, ' in out
  ranking = out.rpartition('tokens:\n')[2].splitlines()
  assert [line.split()[0] for line in ranking] == ['1', '2', '3']
  assert sum('<- the answer' in line for line in ranking) == 1


@pytest.mark.crash
def test_interrupted_answers_go_on(model, tmp_path):
  """Ctrl-C after some answers; the same command gives all, the same ones."""
  source = tmp_path / 'questions.jsonl'
  source.write_text(
    ''.join(
      json.dumps({'question': f'{i} + {i}', 'answer': 2 * i}) + '\n'
      for i in range(24)
    )
  )
  flags = (f'--input={source}', '--max_tokens=60', '--k=2', '--slots=2')
  whole, parted = tmp_path / 'whole.jsonl', tmp_path / 'parted.jsonl'
  code, _, err = _run(model, *flags, f'--output={whole}')
  assert code == 0, err
  process = _start(model, *flags, '--json', f'--output={parted}')
  first = json.loads(process.stdout.readline())
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=200)
  assert process.returncode == 130, err
  assert 'finished answers are in --output' in err
  done = {first['index']} | {json.loads(x)['index'] for x in out.splitlines()}
  kept = [json.loads(line) for line in parted.read_text().splitlines()]
  assert done <= {row['index'] for row in kept}
  assert len(kept) < 24
  code, _, err = _run(model, *flags, f'--output={parted}')
  assert code == 0, err

  def answers(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
      row['output'].pop('time')
    return rows

  wanted = answers(whole)
  for row in wanted:
    # The order of a float32 sum depends on what was written before.
    scores = row['output']['score_lst']
    row['output']['score_lst'] = pytest.approx(scores, abs=1e-5)
  assert answers(parted) == wanted
  assert [row['answer'] for row in answers(parted)] == list(range(0, 48, 2))
  code, out, err = _run(model, *flags, f'--output={parted}')
  assert (code, 'has all 24 answers' in err) == (0, True)
  code, _, err = _run(model, *flags, '--seed=1', f'--output={parted}')
  assert code == 2
  assert 'answers drawn with seed=0, not 1' in err


QUESTION = '--question=1 + 2'


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ((), 'either --question or --input'),
    (('--question= ',), '--question is empty'),
    ((QUESTION, '--k=0'), 'k = 0 candidates'),
    ((QUESTION, '--stop_token=none such'), "not have 'none such' as one token"),
    ((QUESTION, '--max_tokens=128'), f'do not fit the context of {CONTEXT}'),
    ((QUESTION, '--stop='), 'a stop string is empty'),
    ((QUESTION, '--prune_at=-1'), 'pruning needs first >= 0'),
    ((QUESTION, '--seed=-1'), '--seed=-1 must be in'),
    (
      (QUESTION, '--form=trace', '--strategy=majority'),
      '--strategy=majority is about whole responses',
    ),
    ((QUESTION, '--strategy=dvts', '--k=3'), 'search.width must be a divisor'),
    (('--input=/none/such',), '--input needs --output'),
  ],
  ids=str,
)
def test_bad_requests_are_named(model, flags, message):
  code, out, err = _run(model, '--max_tokens=8', *flags)
  assert code == 2, err
  assert out == ''
  errors = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1
  assert message in errors[0]
