"""Data-set tasks: fields, bad rows, duplicates, overlap, pass rates, splits."""

import json
import logging as std_logging
import pickle
import random

import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, overlap, registry
from tests.tasks.sources import files

BOXED = files.Boxed()


def sums(count, seed=0):
  """Distinct rows {question, answer}."""
  draw = random.Random(seed)
  pairs = draw.sample([(a, b) for a in range(60) for b in range(60)], count)
  return [
    {'question': f'What is {a} + {b}?', 'answer': a + b} for a, b in pairs
  ]


def make(path, name='sums', **options):
  defaults = {'source': 'jsonl', 'path': path, 'verifier': BOXED}
  return registry.get_task(name, **{**defaults, **options})


def everything(task, split):
  count = task.num_train if split == 'train' else task.num_heldout
  return [task.problem(i, split) for i in range(count)]


@pytest.fixture
def written(tmp_path):
  return lambda rows, name='x.jsonl': files.write_lines(tmp_path / name, rows)


def test_rows_become_problems(written):
  rows = sums(300)
  task = make(written(rows))
  train, heldout = everything(task, 'train'), everything(task, 'heldout')
  assert {(p.question, p.answer) for p in train + heldout} == {
    (r['question'], str(r['answer'])) for r in rows
  }
  assert {p.id for p in train + heldout} == {f'sums/{i}' for i in range(300)}
  for problem in train + heldout:
    row = rows[int(problem.id.removeprefix('sums/'))]
    assert problem.question == row['question'] and problem.data == {}
  assert 20 < len(heldout) < 60  # one in eight, by content
  for split, problems in (('train', train), ('heldout', heldout)):
    for p in problems:
      assert base.split_of(overlap.normal_text(p.question)) == split
  problem = train[0]
  right = f'so</think>\\boxed{{{problem.answer}}}'
  assert task.verify(problem, right).reward == 1.0
  assert task.verifier is BOXED
  again = pickle.loads(pickle.dumps(task))
  assert everything(again, 'train') == train


@pytest.mark.parametrize('form', files.FORMS)
def test_every_format_gives_the_same_problems_in_the_same_order(form, tmp_path):
  rows = [{**row, 'key': f'k{i}'} for i, row in enumerate(sums(60))]
  options = {'verifier': BOXED, 'fields': {'id': 'key'}, 'seed': 3}
  one = registry.get_task(
    't', **files.write(tmp_path / 'a', rows, 'jsonl'), **options
  )
  other = registry.get_task(
    't', **files.write(tmp_path / 'b', rows, form), **options
  )
  for split in base.SPLITS:
    assert everything(other, split) == everything(one, split)
  assert [other.problem(i, 'train') for i in range(200)] == [
    one.problem(i, 'train') for i in range(200)
  ]


def test_the_order_of_rows_does_not_matter(written):
  rows = [{**row, 'key': f'k{i}'} for i, row in enumerate(sums(100))]
  one = make(written(rows), fields={'id': 'key'})
  random.Random(1).shuffle(rows)
  other = make(written(rows, 'y'), fields={'id': 'key'})
  for split in base.SPLITS:
    assert everything(other, split) == everything(one, split)


def test_fields(written):
  rows = [
    {
      'prompt': [{'role': 'user', 'content': f'[Q] What is {i}+1? Box it.'}],
      'reward_model': {'ground_truth': float(i + 1)},
      'a.b': 'dotted',
      'sub': 'x' if i % 2 else 'y',
      'n': i // 2,
      'level': None if i else {'deep': [1, 'a']},
      'why': f'{i} and 1.',
    }
    for i in range(6)
  ]
  task = make(
    written(rows),
    heldout='none',
    fields=dict(
      question='prompt.0.content',
      answer='reward_model.ground_truth',
      solution='why',
      id=['sub', 'n'],
      level='level',
      dotted='a.b',
    ),
    question_prefix='[Q] ',
    question_suffix=' Box it.',
  )
  found = {p.id: p for p in everything(task, 'train')}
  assert set(found) == {f'sums/{s}/{n}' for s in 'xy' for n in range(3)}
  problem = found['sums/y/0']
  assert problem.question == 'What is 0+1?' and problem.answer == '1'
  assert problem.data == {'level': {'deep': [1, 'a']}, 'dotted': 'dotted'}
  assert found['sums/x/0'].data['level'] is None
  assert task.demonstrates
  assert task.demonstration(problem) == (
    '0 and 1.\n\n</think>\n\n\\boxed{ 1 }<|im_end|>'
  )


def test_a_solution_may_be_a_whole_response(written):
  rows = [{**r, 's': 'hm</think>\n\n\\boxed{3}\n'} for r in sums(3)]
  task = make(written(rows), heldout='none', fields={'solution': 's'})
  text = task.demonstration(task.problem(0, 'train'))
  assert text == 'hm</think>\n\n\\boxed{3}<|im_end|>'
  plain = make(written(rows), heldout='none')
  assert not plain.demonstrates
  with pytest.raises(errors.UserError, match='has no solutions to imitate'):
    plain.demonstration(plain.problem(0, 'train'))


GOOD = sums(40)
BAD = {
  3: (b'{"question": "Is it caf\xe9?", "answer": 1}', 'is not UTF-8'),
  7: (b'', 'is empty'),
  9: ({'question': 'No answer'}, "has no field 'answer'; it has question"),
  12: ({'question': 'Null?', 'answer': None}, "has null as 'answer'"),
  15: ({'question': 'List?', 'answer': [1]}, "has a list as 'answer'"),
  18: ({'question': 'Truth?', 'answer': True}, "has a truth value as 'answer'"),
  21: ({'question': 5, 'answer': 1}, "has a number as 'question'"),
  24: ({'question': ' \n', 'answer': 1}, "has an empty 'question'"),
  27: ({'question': 'Blank?', 'answer': ''}, "has an empty 'answer'"),
  30: ({'question': 'Half \ud800?', 'answer': 1}, 'holds half a character'),
  33: (
    {'question': 'NaN?', 'answer': float('nan')},
    "has a number as 'answer'",
  ),
  36: (b'[1]', 'is a list, not an object'),
  38: (b'{"question": "Cut', 'is not JSON'),
}


def with_bad_rows():
  """(rows, line numbers of the bad ones)."""
  rows = list(GOOD)
  for place in sorted(BAD):
    rows.insert(place, BAD[place][0])
  return rows, [place + 1 for place in sorted(BAD)]


def test_bad_rows_stop_a_run_by_name(written):
  rows, lines = with_bad_rows()
  path = written(rows)
  with pytest.raises(errors.UserError) as error:
    make(path)
  text = str(error.value)
  assert '\n' not in text
  assert f'{len(BAD)} of {len(rows)} rows are bad' in text
  for place, line in list(zip(sorted(BAD), lines, strict=True))[:5]:
    assert f'{path}:{line} {BAD[place][1]}' in text
  assert f'{path}:{lines[5]}' not in text and "bad_rows='skip'" in text


@pytest.mark.parametrize('place', sorted(BAD))
def test_each_bad_row_is_named(place, written):
  path = written([GOOD[0], BAD[place][0], GOOD[1]])
  with pytest.raises(errors.UserError) as error:
    make(path)
  assert f'1 of 3 rows are bad: {path}:2 ' in str(error.value)
  assert BAD[place][1] in str(error.value)


def test_bad_rows_may_be_skipped(written, caplog):
  rows, lines = with_bad_rows()
  path = written(rows)
  with caplog.at_level(std_logging.INFO):
    task = make(path, bad_rows='skip')
  assert task.counts['bad'] == len(BAD) and task.counts['rows'] == len(rows)
  found = everything(task, 'train') + everything(task, 'heldout')
  assert {p.question for p in found} == {r['question'] for r in GOOD}
  assert f'{path}:{lines[0]}' in caplog.text
  assert f'53 rows read, {len(BAD)} bad, 0 seen before' in caplog.text
  # The others keep their ids.
  assert {p.id for p in found} == {
    f'sums/{i}' for i in range(len(rows)) if i + 1 not in lines
  }


def test_only_bad_rows_are_an_error_in_any_case(written):
  path = written([{'q': 1}] * 3)
  with pytest.raises(errors.UserError, match='3 of 3 rows are bad'):
    make(path, bad_rows='skip')


def test_what_the_verifier_cannot_check_is_a_bad_row(written):
  class Picky(files.Boxed):
    def check(self, problem):
      return 'has an odd answer' if int(problem.answer) % 2 else None

  rows = sums(30)
  odd = [r for r in rows if r['answer'] % 2]
  task = make(written(rows), verifier=Picky(), bad_rows='skip')
  assert task.counts['bad'] == len(odd) > 0
  with pytest.raises(errors.UserError, match='x.jsonl:.* has an odd answer'):
    make(written(rows), verifier=Picky())


def test_an_id_that_was_used_is_a_bad_row(written):
  path = written([{**r, 'k': i % 3} for i, r in enumerate(sums(5))])
  with pytest.raises(
    errors.UserError, match=f"{path}:4 has the id of {path}:1, 'sums/0'"
  ):
    make(path, fields={'id': 'k'})


def test_duplicates_against_brute_force(written):
  draw = random.Random(5)
  rows = [
    {'question': f'{draw.choice(["What", "what "])} is  {a} + {b}', 'answer': c}
    for a, b, c in ([draw.randint(0, 4) for _ in range(3)] for _ in range(150))
  ]
  kept, answers, conflicting = [], {}, 0
  for row in rows:
    key = ' '.join(row['question'].lower().split())
    if key in answers:
      conflicting += answers[key] != row['answer']
    else:
      answers[key] = row['answer']
      kept.append(row)
  task = make(written(rows), heldout='none')
  found = everything(task, 'train')
  assert sorted((p.question, p.answer) for p in found) == sorted(
    (r['question'], str(r['answer'])) for r in kept
  )
  assert task.counts['seen'] == 150 - len(kept) > 100
  assert task.counts['conflicting'] == conflicting > 50
  every = make(written(rows), heldout='none', duplicates='keep')
  assert every.num_train == 150 and every.counts['seen'] == 0


def test_an_evaluation_set_keeps_the_order_of_its_file(written):
  rows = sums(50)
  task = make(written(rows), heldout='all')
  assert [p.question for p in everything(task, 'heldout')] == [
    r['question'] for r in rows
  ]
  assert (task.num_train, task.num_heldout) == (0, 50)
  with pytest.raises(errors.UserError, match='no training problems'):
    task.problem(0, 'train')
  with pytest.raises(errors.UserError, match='has 50 held-out problems'):
    task.problem(50, 'heldout')


def test_held_out_problems_of_another_file(written):
  rows = sums(60)
  train, heldout = written(rows[:50]), written(rows[45:], 'y.jsonl')
  task = make(train, heldout_path=heldout)
  assert [p.question for p in everything(task, 'heldout')] == [
    r['question'] for r in rows[45:]
  ]
  assert {p.question for p in everything(task, 'train')} == {
    r['question'] for r in rows[:45]
  }
  assert task.counts['seen'] == 5
  ids = [p.id for s in base.SPLITS for p in everything(task, s)]
  assert len(set(ids)) == 60
  with pytest.raises(errors.UserError, match='heldout_path: use one'):
    make(train, heldout_path=heldout, heldout='hash')
  named = [{**r, 'k': i} for i, r in enumerate(rows)]
  with pytest.raises(errors.UserError, match='same id .sums/0'):
    make(
      written(named[:5]),
      heldout_path=written([{**r, 'k': 0} for r in named[7:8]], 'z'),
      fields={'id': 'k'},
    )


def test_overlap_with_evaluation_sets(written, caplog):
  draw = random.Random(2)
  letters = 'abcdefghijklmnopqrst'
  words = [a + b for a in letters for b in letters]

  def text(length):
    return ' '.join(draw.choice(words) for _ in range(length))

  leaked = [text(30) for _ in range(20)]
  evaluation = written(
    [{'question': q, 'answer': 1} for q in leaked], 'evaluation.jsonl'
  )
  own = [text(40) for _ in range(80)]
  copies = [leaked[3].upper(), f'{text(5)} {" ".join(leaked[7].split()[4:17])}']
  near = [f'{text(5)} {" ".join(leaked[8].split()[4:16])}']  # twelve words
  rows = [{'question': q, 'answer': 1} for q in own + copies + near]
  path = written(rows)
  other = dict(
    task='leak', source='jsonl', path=evaluation, heldout='all', verifier=BOXED
  )
  with caplog.at_level(std_logging.WARNING):
    task = make(path, heldout='none', overlap_with=[other])
  assert {p.question for p in everything(task, 'train')} == {*own, *near}
  assert task.counts['overlapping'] == 2
  assert f'{path}:81 is leak/3' in caplog.text
  assert f'{path}:82 shares a passage with leak/7' in caplog.text
  with pytest.raises(errors.UserError, match='2 training rows overlap.*leak'):
    make(path, heldout='none', overlap_with=[other], overlap='stop')
  with pytest.raises(errors.UserError, match="'signs', whose problems have no"):
    make(path, overlap_with=['signs'])
  with pytest.raises(errors.UserError, match='must be a list'):
    make(path, overlap_with='aime24')
  with pytest.raises(errors.UserError, match="'aime24' needs its file"):
    make(path, overlap_with=['aime24'])


def test_pass_rates_against_brute_force(written, caplog):
  rows = sums(200)
  draw = random.Random(7)
  lines, measured = [], {}
  for i in range(200):
    for _ in range(draw.choice([0, 1, 1, 2])):
      line = {'pass_rate': draw.choice([0, 0.25, 0.5, 1]), 'samples': 4}
      if draw.random() < 0.3:
        line['samples'] = 12
      if i % 2:
        line |= {'id': f'sums/{i}', 'question': None}
      else:
        line |= {'id': 'another/1', 'question': rows[i]['question'].upper()}
      lines.append(line)
      measured.setdefault(i, []).append((line['pass_rate'], line['samples']))
  rates = {
    i: sum(r * s for r, s in m) / sum(s for _, s in m)
    for i, m in measured.items()
  }
  path, file = written(rows), written(lines, 'rates.jsonl')
  for low, high, unmeasured in (
    (0.25, 0.75, 'keep'),
    (0.25, 0.75, 'drop'),
    (0.0, 0.5, 'drop'),
    (0.3, 1.0, 'keep'),
  ):
    task = make(
      path,
      heldout='none',
      pass_rates=file,
      min_pass_rate=low,
      max_pass_rate=high,
      unmeasured=unmeasured,
    )
    expected = {
      f'sums/{i}'
      for i in range(200)
      if (low <= rates[i] <= high if i in rates else unmeasured == 'keep')
    }
    assert {p.id for p in everything(task, 'train')} == expected
    assert task.counts['filtered'] == 200 - len(expected) > 0
  # Held-out problems stay as they are.
  whole = make(path)
  task = make(path, pass_rates=file, min_pass_rate=0.5)
  assert everything(task, 'heldout') == everything(whole, 'heldout')
  assert 0 < task.num_train < whole.num_train


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ({'id': 'a'}, 'pass_rate=None'),
    ({'id': 'a', 'pass_rate': 1.5}, 'pass_rate=1.5'),
    ({'id': 'a', 'pass_rate': True}, 'pass_rate=True'),
    ({'id': 'a', 'pass_rate': 1, 'samples': 0}, 'samples=0'),
    ({'pass_rate': 1}, 'needs id or question'),
    ({'id': 3, 'pass_rate': 1}, 'needs id or question'),
    (b'{', 'is not JSON'),
  ],
)
def test_bad_pass_rates(line, message, written):
  good = {'id': 'sums/0', 'pass_rate': 0.5}
  with pytest.raises(errors.UserError, match=f'rates:2 .*{message}'):
    make(
      written(sums(20)),
      pass_rates=written([good, line], 'rates'),
      heldout='none',
    )


def test_pass_rates_lie_in_the_folder_of_the_rows(written, tmp_path):
  written(sums(20))
  written([{'id': f'sums/{i}', 'pass_rate': i / 20} for i in range(20)], 'r')
  options = dict(heldout='none', pass_rates='r', min_pass_rate=0.5)
  task = make('x.jsonl', folder=str(tmp_path), **options)
  assert task.num_train == 10
  with pytest.raises(errors.UserError, match='r does not exist'):
    make(str(tmp_path / 'x.jsonl'), **options)


def test_pass_rates_of_something_else(written):
  rates = written([{'id': 'other/0', 'pass_rate': 0.5}], 'rates')
  with pytest.raises(errors.UserError, match='none of its 20 training'):
    make(written(sums(20)), pass_rates=rates, heldout='none')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(source='csv'), "source='csv' is unknown; use one of array_record"),
    (dict(pth='x'), "no option 'pth'; known options.*path"),
    (dict(heldout='half'), "heldout must be one of hash, all, none.*'half'"),
    (dict(heldout='source'), "heldout='source' needs.* heldout_path"),
    (dict(bad_rows='ignore'), 'bad_rows must be one of'),
    (dict(min_pass_rate=0.5), 'need pass_rates'),
    (dict(min_pass_rate=2), r'min_pass_rate must be in \[0, 1\]'),
    (dict(pass_rates='x', min_pass_rate=0.6, max_pass_rate=0.5), 'is above'),
    (dict(fields='question'), 'must be a mapping'),
    (dict(fields=dict(answer=3)), 'fields names 3'),
    # Of a wrong type.
    (dict(fields=dict(id=3)), 'fields names 3'),
    (dict(fields=dict(id=['question', 3])), 'fields names 3'),
    (dict(source=['jsonl']), r"source=\['jsonl'\] is unknown"),
    (dict(path=3), 'path=3 must be text or a list of texts'),
    (dict(path=['x', 3]), r"path=\['x', 3\] must be text or a list"),
    (dict(folder=3), 'folder=3 must be text'),
    (dict(heldout_path=3), 'path=3 must be text'),
    (dict(question_prefix=3), 'question_prefix=3 must be text'),
    (dict(question_suffix=['x']), 'question_suffix=.* must be text'),
    (dict(verifier=['math']), r"verifier \['math'\] is unknown"),
    (dict(verifier=3), 'verifier 3 is unknown'),
    (dict(verifier_options=3), 'verifier_options=3 must be a mapping'),
    (dict(heldout=['all']), r"heldout=\['all'\] must be text"),
    (dict(pass_rates=3), 'pass_rates=3 must be text'),
    (dict(min_pass_rate='a', pass_rates='x'), "min_pass_rate='a' must be a n"),
    (dict(min_pass_rate=True, pass_rates='x'), 'min_pass_rate=True must be'),
    (dict(overlap_with=[3]), 'overlap_with has 3; give the name'),
    (dict(overlap_with=3), 'overlap_with=3 must be a list'),
    (dict(overlap_with=[{'task': 3}]), 'overlap_with has .*give the name'),
    (dict(seed='a'), "seed='a' must be a whole number"),
    (dict(fields=dict(question='prompt')), "20 of 20 rows.*no field 'prompt'"),
    (dict(question_suffix=' Box it.'), 'no question has question_suffix'),
    (dict(question_prefix='Q'), 'no question has question_prefix'),
  ],
)
def test_bad_options(options, message, written):
  with pytest.raises(errors.UserError, match=message) as error:
    make(**{'path': written(sums(20)), **options})
  assert '\n' not in str(error.value)


def test_a_source_without_a_path():
  with pytest.raises(errors.UserError, match="source='jsonl' needs.*path"):
    registry.get_task('x', source='jsonl', verifier=BOXED)


def test_nothing_left(written):
  rates = written([{'id': 'sums/0', 'pass_rate': 0.5}], 'rates')
  with pytest.raises(errors.UserError, match='no problem is left'):
    make(
      written(sums(20)),
      heldout='none',
      pass_rates=rates,
      min_pass_rate=0.6,
      unmeasured='drop',
    )
  one = next(
    [row]
    for row in sums(20)
    if base.split_of(overlap.normal_text(row['question'])) == 'train'
  )
  with pytest.raises(errors.UserError, match='no held-out problem'):
    make(written(one))
  assert make(written(one), heldout='none').num_train == 1


def test_report_is_one_line_of_json_free_text(written):
  task = make(written(sums(20)))
  assert json.dumps(dict(task.counts))
  assert task.report('sums').startswith("task 'sums': 20 rows read, 0 bad, ")
