"""Programs in answers: which is taken, what it is tested with, what is said."""

import json
import os
import pickle

import pytest

from metastone_jax import errors
from metastone_jax.tasks import base, sandbox
from metastone_jax.tasks.verifiers import code, code_tests, registry
from tests.tasks.sandbox import attacks

# What shall end by itself has time to, on a busy machine too.
OPTIONS = dict(cpu_seconds=10.0, wall_seconds=20.0, memory_mb=256)
HURRIED = dict(cpu_seconds=0.5, wall_seconds=2.0, memory_mb=256)

DOUBLE = 'for line in open(0):\n  print(2 * int(line))'
TESTS = [
  {'input': '1\n2\n', 'output': '2\n4\n', 'testtype': 'stdin'},
  {'input': '-3\n', 'output': '-6', 'testtype': 'stdin'},
]
CALLS = [
  {'input': '[1, 2]\n3', 'output': '[4, 5]', 'testtype': 'functional'},
  {'input': '[]\n1', 'output': '[]', 'testtype': 'functional'},
]
SHIFT = (
  'class Solution:\n'
  '  def shift(self, values: List[int], by: int) -> List[int]:\n'
  '    return [v + by for v in values]'
)


@pytest.fixture(scope='module')
def verifier():
  return code.Code(**OPTIONS)


def _answer(program, language='python'):
  return (
    f'First I think.\n\n</think>\n\n```{language}\n{program}\n```<|im_end|>'
  )


def _problem(tests=TESTS, **data):
  return base.Problem('t', 't/0', 'q', '', {'tests': tests, **data})


def _shift(**more):
  return _problem(CALLS, func_name='shift', star_imports=['typing'], **more)


@pytest.mark.parametrize(
  'text, expected',
  [
    ('```python\na\n```', 'a'),
    ('```\na\nb\n```', 'a\nb'),
    ('``` Python3 title=x\na\n```', 'a'),
    ('```py\na\n```\n```python\nb\n```\nend', 'b'),
    ('```python\na\n```\n```cpp\nb\n```', 'a'),
    ('```python\na\n```\n```bash\n$ python a', 'a'),
    ('```python\na\n```\n```python\nb', None),
    ('````python\na\n```\nb\n````', 'a\n```\nb'),
    ('1. so\n   ```python\n   if x:\n     y\n   ```', 'if x:\n  y'),
    ('```python\n```', ''),
    ('```not a fence``` a\n```python\nb\n```', 'b'),
    ('print(1)', None),
    ('', None),
    ('~~~\na\n~~~', None),
    ('```js\na\n```', None),
  ],
)
def test_last_code_block(text, expected):
  assert code.last_code_block(text) == expected


@pytest.mark.parametrize(
  'printed, expected, same',
  [
    ('1\n', '1', True),
    ('\n 1 \n 2\n\n', '1\n2', True),
    ('1 2', '1  2', True),  # the same numbers
    ('a b', 'a  b', False),
    ('1.0', '1.00', True),
    ('1e2', '100', True),
    ('0.1', '0.10000001', False),
    ('1', '1\n1', False),
    ('1\n2', '2\n1', False),
    ('', '', True),
    ('', '0', False),
    ('1_0', '10', True),  # as Python's decimals read it
    ('nan', 'NaN', False),
    ('snan', 'sNaN', False),
    ('inf', 'Infinity', False),
    ('nan', 'nan', True),  # the same text
    ('9' * 5000, '9' * 5000 + '.0', True),
    ('1e999999999', '1e999999998', False),
    ('YES', 'yes', False),
  ],
)
def test_text_is_expected(printed, expected, same):
  assert code_tests.text_is_expected(printed, expected) is same


def test_value_is_expected():
  same = code_tests.value_is_expected
  assert same((1, 2), [1, 2]) and same([1.0], [1]) and same(True, 1)
  assert not same([(1,)], [[1]]) and not same('1', 1) and not same(None, 0)
  assert not same(float('nan'), 1)


@pytest.mark.parametrize(
  'program, reward',
  [
    (DOUBLE, 1.0),
    (f'{DOUBLE}\nexit()', 1.0),
    ('import sys\nprint(*[2 * int(x) for x in sys.stdin], sep="\\n")', 1.0),
    ('print(2); print(4)', 0.0),  # the first test alone
    ('print(-6)', 0.0),
    (f'{DOUBLE}\n1 / 0', 0.0),
    (f'{DOUBLE}\nexit(1)', 0.0),
    ('import os\nos._exit(0)', 0.0),
    ('exit()', 0.0),
    # Deeper than a dump may be, not deeper than newer Pythons compile.
    ('x = 1 ' + '+ 1 ' * 2_500 + '\n' + DOUBLE, 1.0),
    ('', 0.0),
  ],
)
def test_programs(verifier, program, reward):
  verdict = verifier.verify(_problem(), _answer(program))
  assert (verdict.reward, verdict.parsed, verdict.failure) == (reward, True, '')


@pytest.mark.parametrize(
  'program, reward',
  [
    (SHIFT, 1.0),
    (SHIFT.replace('[v', '[1 + v'), 0.0),
    ('def shift(values, by):\n  return tuple(v + by for v in values)', 1.0),
    ('def shift(values, by):\n  return [v + by for v in values] or None', 0.0),
    ('def other(values, by): return values', 0.0),
    ('class Solution: pass', 0.0),
    ('def shift(values, by): raise SystemExit(0)', 0.0),
    ('def shift(values): return values', 0.0),
    # Attempts at being equal to anything.
    (
      'class Any(list):\n  __eq__ = lambda s, o: True\n'
      'def shift(values, by): return Any()',
      0.0,
    ),
    (
      'class Any:\n  __eq__ = lambda s, o: True\n  __hash__ = None\n'
      'def shift(values, by): return Any()',
      0.0,
    ),
    # At the harness around it.
    (
      'import builtins, json, sys, gc\n'
      'for m in list(sys.modules.values()):\n'
      '  for n in ("encode", "decode", "value_is_expected", "dumps"):\n'
      '    if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\n'
      'def shift(values, by): return True',
      0.0,
    ),
    (
      'import sys\n'
      'def shift(values, by):\n'
      '  f = sys._getframe()\n'
      '  while f:\n'
      '    for v in f.f_locals.values():\n'
      '      if isinstance(v, dict) and "output" in v: return v["output"]\n'
      '    f = f.f_back\n',
      0.0,
    ),
    ('import os\nos.write(4, b"\\x02\\0\\0\\0V1")\nos._exit(0)', 0.0),
  ],
)
def test_functions(verifier, program, reward):
  verdict = verifier.verify(_shift(), _answer(program))
  assert (verdict.reward, verdict.parsed, verdict.failure) == (reward, True, '')


@pytest.mark.parametrize(
  'name, reason',
  [
    ('fork bomb', 'processes'),
    ('memory bomb', 'memory'),
    ('endless loop', 'timeout'),
    ('write outside', 'files'),
    ('connect', 'network'),
    ('flood', 'output'),
    ('segmentation fault', 'crash'),
  ],
)
@pytest.mark.parametrize('problem', [_problem(), _shift()], ids=['run', 'call'])
def test_walls_and_limits_have_their_name(verifier, problem, name, reason):
  source, _ = attacks.ATTACKS[name]
  if reason == 'program/timeout':
    verifier = code.Code(**HURRIED)
  if 'func_name' in problem.data:
    lines = '\n'.join(f'  {line}' for line in source.split('\n'))
    source = f'def shift(values, by):\n{lines}'
  verdict = verifier.verify(problem, _answer(source))
  assert (verdict.reward, verdict.parsed, verdict.failure) == (0, True, '')
  assert verdict.reason == f'program/{reason}'


@pytest.mark.parametrize(
  'response',
  [
    'no end of thinking ```python\nprint(1)\n```',
    '```python\nprint(1)\n```\n</think>\nno block',
    _answer('print('),
    _answer('return 1'),
    _answer('x = "\0"'),
    _answer('(' * 1000),
    _answer('-' * 100_000 + '1'),
    _answer('#' * 200_000),
    _answer('<html>', 'html'),
  ],
)
def test_no_program(verifier, response):
  assert verifier.verify(_problem(), response) == base.UNPARSED


def test_answer_keys_know_a_program_by_what_it_does(verifier):
  def key(program):
    return verifier.verify(_problem(), _answer(program)).answer_key

  plain = key('def f(x):\n  return x\nprint(f(1))')
  assert plain == key(
    '"""Doc."""\n\ndef f( x ):  # comment\n    "doc"\n    return (x)\n\n'
    'print( f(1) )'
  )
  assert plain != key('def f(x):\n  return x\nprint(f(2))')
  assert plain != key('def f(y):\n  return y\nprint(f(1))')


def test_tests_in_the_answer_field(verifier):
  problem = base.Problem('t', 't/0', 'q', json.dumps(TESTS), {})
  assert verifier.check(problem) is None
  assert verifier.verify(problem, _answer(DOUBLE)).reward == 1.0
  assert verifier.verify(problem, _answer('print(2)')).reward == 0.0


@pytest.mark.parametrize(
  'problem, reason',
  [
    (base.Problem('t', 'i', 'q', '', {}), 'no JSON list of tests'),
    (base.Problem('t', 'i', 'q', '{}', {}), 'no list'),
    (_problem([]), 'no tests'),
    (_problem([1]), 'test 0 is no object'),
    (_problem([*TESTS, {'input': ''}]), 'test 2 lacks'),
    (_problem([{'input': '', 'output': 1}]), 'test 0 lacks'),
    (_problem([{**TESTS[0], 'testtype': 'x'}]), "testtype 'x'"),
    (_problem(CALLS), 'func_name is empty'),
    (_problem(check={'test': 'x'}), "data named 'check'"),
    (_problem([{**CALLS[0], 'output': '['}], func_name='f'), 'no JSON'),
  ],
)
def test_problems_that_cannot_be_verified(verifier, problem, reason):
  assert reason in verifier.check(problem)


def test_a_field_named_check_is_never_run(verifier, tmp_path):
  made = tmp_path / 'made'
  run = f'import os; os.mkdir({str(made)!r})\ndef check(candidate): pass'
  check = dict(prompt='', reference=run, test=run, entry_point='double')
  problem = _problem(check=check)
  assert verifier.verify(problem, _answer(DOUBLE)).reward == 1.0
  assert verifier.verify(problem, _answer('x = 1')).reward == 0.0
  assert not made.exists()
  assert code.CheckedCode not in registry._VERIFIERS.values()


def test_time_of_all_tests_is_limited():
  verifier = code.Code(cpu_seconds=5.0, wall_seconds=5.0, total_seconds=5.0)
  slow = f'import time; time.sleep(0.4)\n{DOUBLE}'
  verdict = verifier.verify(_problem(TESTS[:1] * 100), _answer(slow))
  assert (verdict.reward, verdict.reason) == (0.0, 'program/timeout')
  assert verifier.verify(_problem(TESTS[:1]), _answer(slow)).reward == 1.0
  assert verifier.deadline_s > 5.0 + 5.0


def test_output_longer_than_the_limit_where_it_is_expected(verifier):
  tests = [{'input': '', 'output': 'x' * 3_000_000}]
  program = 'print("x" * 3_000_000)'
  assert verifier.verify(_problem(tests), _answer(program)).reward == 1.0
  verdict = verifier.verify(_problem(), _answer(program))
  assert (verdict.reward, verdict.reason) == (0.0, 'program/output')


def test_making_a_verifier_leaves_no_sandbox_behind(monkeypatch):
  made = []

  class Recorded(sandbox.Sandbox):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      made.append(self)

  monkeypatch.setattr(sandbox, 'Sandbox', Recorded)
  verifier = code.Code(**{**OPTIONS, 'memory_mb': 257})
  assert [box.closed for box in made] == [True]
  assert not code._IDLE.get(verifier._kind)
  verifier.prepare()
  assert [box.closed for box in made] == [True, False]
  assert code._IDLE[verifier._kind] == made[1:]


def test_sandboxes_are_kept_and_lost_ones_replaced(verifier):
  kind = verifier._kind
  verifier.prepare()
  (box,) = code._IDLE[kind]
  copied = pickle.loads(pickle.dumps(verifier))
  assert copied.verify(_problem(), _answer(DOUBLE)).reward == 1.0
  assert code._IDLE[kind] == [box]
  box._process.kill()
  assert verifier.verify(_problem(), _answer(DOUBLE)).reward == 1.0
  (other,) = code._IDLE[kind]
  assert other is not box and box.closed


def test_a_sandbox_that_is_lost_twice_is_an_error(verifier, monkeypatch):
  def lost(*_, **__):
    raise sandbox.SandboxError('lost')

  monkeypatch.setattr(sandbox.Sandbox, 'load', lost)
  with pytest.raises(sandbox.SandboxError):
    verifier.verify(_problem(), _answer(DOUBLE))


def test_a_forked_process_leaves_its_parents_sandboxes_alone(verifier):
  verifier.verify(_problem(), _answer(DOUBLE))
  child = os.fork()
  if not child:
    os._exit(0 if not code._IDLE else 1)
  assert os.waitpid(child, 0)[1] == 0
  assert verifier.verify(_problem(), _answer(DOUBLE)).reward == 1.0


def test_bad_options_are_named():
  with pytest.raises(errors.UserError, match='wall_seconds'):
    code.Code(wall_seconds=-1)
  with pytest.raises(errors.UserError, match='total_seconds=1'):
    code.Code(total_seconds=1)
  with pytest.raises(errors.UserError, match="'docker' is unknown"):
    code.Code(isolation='docker')


def test_the_other_level():
  verifier = code.Code(**OPTIONS, isolation='limits')
  assert verifier.verify(_problem(), _answer(DOUBLE)).reward == 1.0
  assert verifier.verify(_shift(), _answer(SHIFT)).reward == 1.0
