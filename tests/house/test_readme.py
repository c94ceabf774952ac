"""What the README shows as code is run as it stands there."""

import pathlib
import re

import pytest

from configs import tiny
from metastone_jax.tasks import build_mixture
from metastone_jax.training import loop
from tests.tasks.sources import files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_example_of_own_problems(tmp_path, monkeypatch):
  for package in ('pyarrow', 'math_verify', 'reasoning_gym'):
    pytest.importorskip(package)
  text = (ROOT / 'README.md').read_text().partition('## Your own problems')[2]
  (program,) = re.findall(
    r'```python\n(.*?)```', text.partition('\n## ')[0], re.DOTALL
  )
  folder = tmp_path / 'data'
  folder.mkdir()
  rows = [
    {
      'prompt': [{'role': 'user', 'content': f'What is {i} + 7?'}],
      'reward_model': {'ground_truth': str(i + 7)},
    }
    for i in range(60)
  ]
  files.write_parquet(folder / 'train-0.parquet', rows[:40])
  files.write_parquet(folder / 'train-1.parquet', rows[40:])
  for name, first in (('aime24', 0), ('aime25', 1)):
    known = [{'prompt': f'What is {first} + 7?', 'answer': first + 7}]
    files.write_lines(folder / f'{name}.jsonl', known)
  rates = [
    {'id': f'my_math/{i}', 'pass_rate': 0.5 if i % 2 else 1.0}
    for i in range(60)
  ]
  files.write_lines(folder / 'rates.jsonl', rates)
  monkeypatch.chdir(tmp_path)

  c = tiny.get_config()
  exec(program, {'c': c})
  c.phase_order = ('joint',)
  c.phases.joint.demonstrations_per_step = 0
  c.phases.joint.lm_coefficient = 0.0
  data = loop.parse_recipe(c).data
  mixture = build_mixture(data.tasks, seed=0, options=data.task_options)
  task = mixture.tasks['my_math']
  assert task.counts['rows'] == 60 and task.counts['bad'] == 0
  assert 0 < task.counts['overlapping'] <= 2
  assert task.counts['filtered'] > 10
  problem = task.problem(0, 'train')
  assert problem.question.endswith('+ 7?')
  right = f'so</think>\\boxed{{{problem.answer}}}'
  assert task.verify(problem, right).reward == 1.0
  assert mixture.tasks['gym:gsm_symbolic'].problem(0, 'train').question
