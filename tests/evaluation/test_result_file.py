"""The result file, read by a metric script written from SPEC 7 alone."""

import dataclasses
import json

import numpy as np

from metastone_jax.evaluation import (
  estimators,
  write_pass_rates,
  write_results,
)
from tests.evaluation import metric_script, synthetic


def _write(tmp_path, samples, **options):
  P, N = samples.shape
  texts = np.empty((P, N), object)
  for p in range(P):
    for n in range(N):
      texts[p, n] = (
        f'思考 {p}, {n}.\n\n</think>\\boxed{{{samples.answers_PN[p, n]}}}'
      )
  return texts, write_results(
    tmp_path / 'results.jsonl',
    questions=[f'question {p}' for p in range(P)],
    answers=['0'] * P,
    texts_PN=texts,
    samples=samples,
    seconds=float(P),
    **options,
  )


def test_a_metric_script_reads_it(tmp_path):
  samples = synthetic.make_samples()
  texts, path = _write(tmp_path, samples)
  lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  assert len(lines) == samples.shape[0]
  right = 0
  for p, line in enumerate(lines):
    assert set(line) == {'prompt', 'answer', 'output'}
    output = line['output']
    assert set(output) == {'content', 'time', 'solution_lst', 'score_lst'}
    assert output['solution_lst'] == list(texts[p])
    assert output['score_lst'] == samples.scores_PN[p].tolist()
    assert output['time'] == 1.0
    right += f'\\boxed{{{line["answer"]}}}' in output['content']
  best = [
    max(
      range(samples.shape[1]),
      key=lambda n: (samples.eligible_PN[p, n], samples.scores_PN[p, n]),
    )
    for p in range(samples.shape[0])
  ]
  assert right == samples.correct_PN[np.arange(len(best)), best].sum()
  assert [line['output']['content'] for line in lines] == [
    texts[p, n] for p, n in enumerate(best)
  ]


def test_pass_rates_leave_out_what_was_not_judged(tmp_path):
  samples = synthetic.make_samples(P=4, N=8)
  failed = ~samples.correct_PN & (np.arange(8) % 2 == 0)
  correct = samples.correct_PN.copy()
  correct[3], failed[3] = False, True
  samples = dataclasses.replace(samples, correct_PN=correct, failed_PN=failed)
  assert failed[:3].any()
  path = write_pass_rates(tmp_path / 'r.jsonl', list('abcd'), samples)
  rows = [json.loads(line) for line in path.open()]
  assert [row['question'] for row in rows] == ['a', 'b', 'c']
  for p, row in enumerate(rows):
    judged = 8 - failed[p].sum()
    assert row['samples'] == judged
    assert row['pass_rate'] == correct[p].sum() / judged


def test_token_ids_are_an_entry_more(tmp_path):
  samples = synthetic.make_samples(P=2, N=3)
  ids = [[[p, n] for n in range(3)] for p in range(2)]
  _, path = _write(tmp_path, samples, token_ids=ids)
  lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  assert [line['output']['token_ids_lst'] for line in lines] == ids


def test_the_answer_is_a_finished_one_where_there_is_any(tmp_path):
  samples = synthetic.make_samples(P=4, N=5)
  best = samples.scores_PN.argmax(axis=1)
  finished = np.ones((4, 5), bool)
  finished[np.arange(4), best] = False
  finished[3] = False
  samples = dataclasses.replace(samples, finished_PN=finished)
  texts, path = _write(tmp_path, samples)
  contents = [json.loads(line)['output']['content'] for line in path.open()]
  for p in range(3):
    assert contents[p] != texts[p, best[p]]
  assert contents[3] == texts[3, best[3]]


def test_its_numbers_are_those_of_the_estimators(tmp_path):
  samples = synthetic.make_samples(P=30, N=9)
  _, path = _write(tmp_path, samples)
  found = metric_script.metrics(path)
  assert found['problems'] == 30 and found['samples'] == 270
  np.testing.assert_allclose(
    [found['pass_at_1'], found['majority'], found['any'], found['content']],
    [
      samples.correct_PN.mean(),
      estimators.majority_at_k(_readable(samples), samples.correct_PN, 9),
      estimators.pass_at_k(samples.correct_PN, 9),
      estimators.best_of_k(
        samples.scores_PN,
        samples.correct_PN,
        9,
        finished_PN=samples.eligible_PN,
      ),
    ],
    rtol=1e-12,
  )


def _readable(samples):
  """The texts box the unparsed ones' -1 as an answer like any other."""
  return np.where(samples.answers_PN == -1, 99, samples.answers_PN)


def test_pass_rates_are_what_a_filter_reads(tmp_path):
  samples = synthetic.make_samples(P=5, N=4)
  path = write_pass_rates(
    tmp_path / 'rates.jsonl', [f'frage {p} \u2028ü' for p in range(5)], samples
  )
  rows = [json.loads(line) for line in path.open(encoding='utf-8')]
  assert rows == [
    {
      'id': f'signs-{p}',
      'question': f'frage {p} \u2028ü',
      'pass_rate': samples.correct_PN[p].sum() / 4,
      'samples': 4,
    }
    for p in range(5)
  ]
