"""Prompts that are too long, found at the start."""

import logging as std_logging

import pytest

from metastone_jax import errors
from metastone_jax.data import pipeline, prompt_lengths
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import mixture as mixture_lib
from metastone_jax.tasks import registry, templates
from tests.tasks.sources import files
from tests.training.loop import parts

LONG = (3, 8, 9)  # rows


@pytest.fixture(scope='module')
def tiny():
  return tokenizer_lib.Tokenizer.tiny()


@pytest.fixture
def make(tmp_path):
  """Options -> a task of 40 rows, some of them long; its file is x.jsonl."""

  def make(**options):
    rows = [
      {'question': f'Make {i} using ' + '1, ' * (9 * (i in LONG)), 'answer': i}
      for i in range(40)
    ]
    return registry.get_task(
      'sums',
      source='jsonl',
      path=files.write_lines(tmp_path / 'x.jsonl', rows),
      verifier=files.Boxed(),
      **{'heldout': 'none', **options},
    )

  return make


def fitting(task, tiny, length, **others):
  tasks = {task.name: task, **others}
  return prompt_lengths.without_long_prompts(
    mixture_lib.Mixture(tasks, dict.fromkeys(tasks, 1.0)),
    tiny,
    max_prompt_length=length,
    template=templates.CHATML_THINK,
  )


def lengths(task, tiny):
  """Tokens of each problem's prompt, one by one."""
  return {
    p.id: len(tiny.encode(templates.CHATML_THINK.render(p.question)))
    for p in task.problems()
  }


@pytest.mark.parametrize('heldout', ['none', 'hash', 'all'])
@pytest.mark.parametrize('chunk', [7, 4096])
def test_long_ones_are_left_out(
  make, tiny, heldout, chunk, monkeypatch, caplog
):
  monkeypatch.setattr(prompt_lengths, '_CHUNK', chunk)
  task = make(heldout=heldout, bad_rows='skip')
  found = lengths(task, tiny)
  limit = max(n for i, n in found.items() if int(i[5:]) not in LONG)
  assert {i for i, n in found.items() if n > limit} == {
    f'sums/{row}' for row in LONG
  }
  with caplog.at_level(std_logging.WARNING):
    mixture = fitting(task, tiny, limit, signs=registry.get_task('signs'))
  left = mixture.tasks['sums']
  assert {p.id for p in left.problems()} == {
    i for i, n in found.items() if n <= limit
  }
  assert left.counts['long'] == 3 and left.counts['bad'] == 0
  assert left.counts['train'] + left.counts['heldout'] == 37
  assert (left.num_train == 0) == (heldout == 'all')
  # The first one was left as it is.
  assert len(task.problems()) == 40 and task.counts['long'] == 0
  assert "'sums': 3 of 40 prompts" in caplog.text
  assert f'x.jsonl:4 has {found["sums/3"]};' in caplog.text
  # What is drawn now fits.
  if heldout == 'none':
    data = pipeline.problem_dataset(
      mixture, tiny, seed=0, split='train', max_prompt_length=99
    )
    ids = {p.id for p in data.batch_at(data.start(), 74)[0] if p.task == 'sums'}
    assert len(ids) == 37
  # All fit: nothing changes.
  longest = max(found.values())
  same = mixture_lib.Mixture({'sums': task}, {'sums': 1.0})
  assert same is prompt_lengths.without_long_prompts(
    same, tiny, max_prompt_length=longest, template=templates.CHATML_THINK
  )


def test_long_ones_stop_a_run_by_name(make, tiny):
  task = make()
  limit = max(lengths(task, tiny).values()) - 1
  with pytest.raises(errors.UserError) as error:
    fitting(task, tiny, limit)
  text = str(error.value)
  for part in (
    "'sums': 3 of 40 prompts have more than data.max_prompt_length=",
    'x.jsonl:4 has',
    'x.jsonl:10 has',
    "bad_rows='skip'",
  ):
    assert part in text
  # All of them too long: also where they might be skipped.
  with pytest.raises(errors.UserError, match='40 of 40 prompts.*; ...'):
    fitting(make(bad_rows='skip'), tiny, 2)


def test_a_run_does_not_start(tmp_path):
  rows = [{'question': 'Make 1.' * n, 'answer': 1} for n in (1, 2, 90)]
  path = files.write_lines(tmp_path / 'x.jsonl', rows)
  options = dict(source='jsonl', path=path, heldout='none')

  def edit(config):
    config.data.tasks.mine = 1.0
    config.data.task_options.mine = options

  with pytest.raises(errors.UserError, match="'mine': 1 of 3 .*x.jsonl:3 has"):
    parts.setup(edit)
  options['bad_rows'] = 'skip'
  assert parts.setup(edit).mixture.tasks['mine'].num_train == 2
