"""The result file, read by a metric script written from SPEC 7 alone."""

import json

import numpy as np

from metastone_jax.evaluation import write_results
from tests.evaluation import synthetic


def _write(tmp_path, samples, **options):
  P, N = samples.shape
  texts = np.empty((P, N), object)
  for p in range(P):
    for n in range(N):
      texts[p, n] = (
        f'思考 {p}.\n\n</think>\\boxed{{{samples.answers_PN[p, n]}}}'
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


def test_token_ids_are_an_entry_more(tmp_path):
  samples = synthetic.make_samples(P=2, N=3)
  ids = [[[p, n] for n in range(3)] for p in range(2)]
  _, path = _write(tmp_path, samples, token_ids=ids)
  lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  assert [line['output']['token_ids_lst'] for line in lines] == ids
