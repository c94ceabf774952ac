"""LiveCodeBench: a file of our own in the benchmark's public layout."""

import base64
import datetime
import json
import os
import pickle
import zlib

import pytest

from metastone_jax import errors
from metastone_jax.tasks import get_task, livecodebench_rows


def _packed(value):
  text = value if isinstance(value, bytes) else pickle.dumps(value)
  return base64.b64encode(zlib.compress(text)).decode()


def _row(**changes):
  row = {
    'question_title': 'Sum',
    'question_content': 'Print the sum of two numbers. A set is {1, 2}.',
    'platform': 'atcoder',
    'question_id': 'abc1_a',
    'contest_id': 'abc1',
    'contest_date': '2024-08-10T00:00:00',
    'starter_code': '',
    'difficulty': 'easy',
    'public_test_cases': json.dumps(
      [{'input': '1 2\n', 'output': '3\n', 'testtype': 'stdin'}]
    ),
    'private_test_cases': _packed(
      json.dumps([{'input': '3 4', 'output': '7', 'testtype': 'stdin'}])
    ),
    'metadata': '{}',
  }
  return {**row, **changes}


def _functional(**changes):
  row = {
    'question_title': 'Shift',
    'platform': 'leetcode',
    'question_id': '3001',
    'contest_date': '2024-11-02T00:00:00',
    'starter_code': 'class Solution:\n  def shift(self, x: List[int]):\n    ',
    'difficulty': 'hard',
    'public_test_cases': json.dumps(
      [{'input': '[1, 2]\n1', 'output': '[2, 3]', 'testtype': 'functional'}]
    ),
    'private_test_cases': json.dumps(
      [{'input': '[]\n1', 'output': '[]', 'testtype': 'functional'}]
    ),
    'metadata': '{"func_name": "shift"}',
  }
  return _row(**{**row, **changes})


@pytest.fixture
def make(tmp_path):
  def write(*rows, name='test.jsonl', **options):
    path = tmp_path / name
    lines = (
      r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows
    )
    path.write_bytes(b''.join(line + b'\n' for line in lines))
    return get_task('livecodebench', path=str(path), **options)

  return write


def _answer(program):
  return f'Hm.\n</think>\nSo:\n```python\n{program}\n```'


def test_both_kinds_of_problem(make):
  task = make(_row(), _functional())
  assert task.num_heldout == 2
  run, call = (task.problem(i, 'heldout') for i in range(2))
  assert (run.id, call.id) == ('livecodebench/abc1_a', 'livecodebench/3001')
  assert '{1, 2}' in run.question and 'standard input' in run.question
  assert 'def shift' in call.question and 'standard input' not in call.question
  assert json.loads(json.dumps(run.data)) == run.data
  for program, right in (
    ('print(sum(map(int, input().split())))', 1.0),
    ('print(3)', 0.0),  # passes the public test alone
  ):
    assert task.verify(run, _answer(program)).reward == right
  for program, right in (
    # `List` and `deque` are defined, as the benchmark has it.
    (
      'class Solution:\n  def shift(self, x: List[int], y: int):\n'
      '    q = deque(v + y for v in x)\n    return list(q)',
      1.0,
    ),
    ('class Solution:\n  def shift(self, x, y): return [2, 3]', 0.0),
  ):
    assert task.verify(call, _answer(program)).reward == right


def test_star_imports_leave_modules_and_builtins_alone(make):
  task = make(_row())
  program = (
    'a, b = map(int, stdin.readline().split())\n'
    'd = datetime.datetime(2024, 1, 1); c = copy.copy([a, b])\n'
    'assert pow(2, 3, 5) == 3 and gcd(4, 6) == 2 and math.floor(1.5) == 1\n'
    'assert bisect.bisect([1, 2], 1) == 1 and bisect_left([1, 2], 1) == 0\n'
    'assert heapq and heappop and Counter and reduce and accumulate\n'
    'assert open and sorted and abs(-1) == 1 and inf and string.digits\n'
    'print(sum(c))'
  )
  verdict = task.verify(task.problem(0, 'heldout'), _answer(program))
  assert verdict.reward == 1.0


def test_windows_and_difficulties(make):
  rows = [
    _row(
      question_id=str(i), contest_date=f'2024-0{i}-15T12:00:00', difficulty=d
    )
    for i, d in enumerate(('easy', 'medium', 'hard', 'easy'), 1)
  ]

  def ids(**options):
    task = make(*rows, **options)
    found = (task.problem(i, 'heldout') for i in range(task.num_heldout))
    return [p.id.rpartition('/')[2] for p in found]

  assert ids() == ['1', '2', '3', '4']
  assert ids(date_from='2024-02-15') == ['2', '3', '4']
  assert ids(date_to='2024-02-15') == ['1', '2']
  assert ids(date_from='2024-02-16', date_to='2024-03-20') == ['3']
  assert ids(difficulty='easy') == ['1', '4']
  assert ids(difficulty=('hard', 'medium'), limit=1) == ['2']
  with pytest.raises(errors.UserError, match='no problem is left'):
    make(*rows, date_from='2025-01-01')
  with pytest.raises(errors.UserError, match="date_from='yesterday'"):
    make(*rows, date_from='yesterday')


def test_several_files(make, tmp_path):
  make(_row(), name='test.jsonl')
  make(_functional(), name='test2.jsonl')
  (tmp_path / 'other.jsonl').write_text('not json')
  task = get_task('livecodebench', folder=str(tmp_path))
  assert task.num_heldout == 2
  task = get_task('livecodebench', folder=str(tmp_path), path=['test2.jsonl'])
  assert task.problem(0, 'heldout').id == 'livecodebench/3001'
  for options, reason in (
    ({}, 'needs its files.*data.folder.*--data.*path'),
    ({'path': 'x.jsonl'}, 'is no file'),
    ({'folder': str(tmp_path / 'no')}, 'no file test'),
    ({'path': 3}, 'path=3 must be text or a list of texts'),
    ({'path': [3]}, r'path=\[3\] must be text or a list of texts'),
    ({'folder': 3}, 'folder=3 must be text'),
    ({'path': 'x', 'difficulty': 3}, 'difficulty=3 must be text or a list'),
    ({'path': 'x', 'limit': -1}, 'limit=-1 must be at least 1, or 0'),
    ({'path': 'x', 'limit': '3'}, "limit='3' must be a whole number"),
    ({'path': 'x', 'train': 'no'}, "train='no' must be True or False"),
    ({'path': 'x', 'date_from': 3}, 'date_from=3 must be text'),
    ({'path': 'x', 'verifier_options': 3}, 'verifier_options=3 must be a map'),
    (
      {'folder': str(tmp_path), 'verifier_options': {'cpu': 3}},
      "verifier 'code' has no option 'cpu'; known options: isolation",
    ),
  ):
    with pytest.raises(errors.UserError, match=reason):
      get_task('livecodebench', **options)


def test_it_is_trained_on_only_if_asked(make):
  with pytest.raises(errors.UserError, match='train=True'):
    make(_row()).problem(0, 'train')
  task = make(_row(), train=True)
  assert task.problem(5, 'train') == task.problem(0, 'heldout')
  with pytest.raises(errors.UserError, match='no solutions to imitate'):
    task.demonstration(task.problem(0, 'heldout'))


class _Hostile:
  def __reduce__(self):
    return os.system, ('touch /tmp/unpickled',)


class _Nested:
  def __reduce__(self):
    return str, (b'[]', 'utf-8')


HOSTILE = [
  (pickle.dumps(_Hostile(), protocol), rf'asks for ({os.system.__module__}|os)')
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
] + [
  (pickle.dumps(_Nested()), 'asks for builtins.str'),
  (pickle.dumps(datetime.date(2024, 1, 1)), 'asks for datetime.date'),
  (pickle.dumps(['[]']), 'opcode EMPTY_LIST'),
  (pickle.dumps(b'[]'), 'opcode SHORT_BINBYTES'),
  (pickle.dumps(7), 'opcode BININT1'),
  (pickle.dumps(('[]', '[]')), 'opcode BINGET|opcode TUPLE2'),
  (b'\x8c\x02[]\x8c\x02[].', '2 texts'),
  (b'\x80\x04.', '0 texts'),
  (pickle.dumps('[]')[:-1], 'damaged pickle'),
  (b'', 'damaged pickle'),
  (b'no pickle at all', 'damaged pickle|opcode'),
  # An attribute of a module by a name with a dot.
  (b'\x80\x04\x8c\x08builtins\x8c\x09eval.call\x93.', 'builtins.eval.call'),
  (b'cbuiltins\neval\n(V1\ntR.', 'asks for builtins.eval'),
  (b'(ios\nsystem\n.', 'asks for os.system|opcode MARK'),
  (b'\x82\x01.', 'opcode EXT1'),
  (b'Pid\n.', 'opcode PERSID'),
]


@pytest.mark.parametrize('data, reason', HOSTILE)
def test_hostile_pickles_are_refused_by_file_line_and_class(make, data, reason):
  bad = _row(question_id='bad', private_test_cases=_packed(data))
  with pytest.raises(errors.UserError, match=reason) as caught:
    make(_row(), bad)
  assert 'test.jsonl:2 ' in str(caught.value)
  assert not os.path.exists('/tmp/unpickled')


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_a_text_are_read(protocol):
  for text in ('[]', 'ä\n' * 70_000, '', "'\\ud800", 'x' * 300):
    data = pickle.dumps(text, protocol)
    assert livecodebench_rows.text_of_pickle(data) == text == pickle.loads(data)


@pytest.mark.parametrize(
  'bad, reason',
  [
    (b'', 'is empty'),
    (b'{"a": ', 'is not JSON'),
    (b'[1]', 'is no object'),
    (b'{"question_title": "\xff"}', 'is not UTF-8'),
    ({}, 'lacks the field question_title'),
    (_row(platform=3), 'has no text in the field platform'),
    (_row(question_id=' '), 'empty field question_id'),
    (_row(), 'question_id that came before'),
    (_row(contest_date='soon'), "contest_date 'soon'"),
    (_row(metadata='['), 'metadata that are no JSON object'),
    (_row(metadata='[]'), 'metadata that are no JSON object'),
    (_row(metadata='{"func_name": "a b"}'), "func_name 'a b'"),
    (_row(public_test_cases='{'), 'public_test_cases that are no JSON'),
    (_row(private_test_cases='[1'), 'private_test_cases that are no JSON'),
    (_row(private_test_cases='%%'), 'neither JSON nor base64'),
    (_row(private_test_cases='AAAA'), 'neither JSON nor base64'),
    (_row(private_test_cases=_packed('[')), 'no JSON inside'),
    (_row(private_test_cases=_packed('{}')), 'no list'),
    (
      _row(
        private_test_cases=base64.b64encode(
          zlib.compress(pickle.dumps('[]'))[:-6]
        ).decode()
      ),
      'cut off',
    ),
    (_row(private_test_cases='[]', public_test_cases='[]'), 'it has no tests'),
    (_functional(metadata='{}'), 'func_name is empty'),
  ],
)
def test_bad_rows_are_named_and_may_be_skipped(make, bad, reason):
  if isinstance(bad, dict) and 'came before' not in reason and bad:
    bad['question_id'] = bad['question_id'].replace('abc1_a', 'bad')
  with pytest.raises(errors.UserError, match=reason) as caught:
    make(_row(), bad)
  assert 'test.jsonl:2 ' in str(caught.value)
  assert '1 of 2 rows are bad' in str(caught.value)
  task = make(_row(), bad, bad_rows='skip')
  assert (task.num_heldout, task.num_bad) == (1, 1)


def test_a_bomb_of_zlib_is_refused(make, monkeypatch):
  monkeypatch.setattr(livecodebench_rows, '_MAX_TEST_BYTES', 1 << 16)
  with pytest.raises(errors.UserError, match='over 65536 bytes'):
    make(_row(private_test_cases=_packed(json.dumps(['x' * 100_000]))))
