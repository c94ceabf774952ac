"""Options against constructors."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from metastone_jax import errors
from metastone_jax.tasks import arguments


class Made:
  def __init__(
    self,
    seed: int = 0,
    *,
    rate: float = 0.0,
    name: str = '',
    on: bool = False,
    path: str | Sequence[str] = (),
    table: Mapping[str, Any] | None = None,
    free=None,
  ):
    pass


class Free:
  def __init__(self, seed: int = 0, **options: Any):
    pass


class Bare:
  pass


@pytest.mark.parametrize(
  'options',
  [
    dict(seed=3, rate=1, name='x', on=True, path='x', table={}, free=object()),
    dict(seed=10**400, rate=0.5, path=['a', 'b'], table=None),
    dict(path=(), table={'a': 1}),
  ],
)
def test_what_fits(options):
  arguments.check('it', Made, options)


@pytest.mark.parametrize(
  ('option', 'value', 'words'),
  [
    ('seed', 1.0, 'a whole number'),
    ('seed', True, 'a whole number'),
    ('seed', '1', 'a whole number'),
    ('seed', None, 'a whole number'),
    ('rate', '1', 'a number'),
    ('rate', False, 'a number'),
    ('rate', float('inf'), 'a number'),
    ('rate', 1j, 'a number'),
    ('name', b'x', 'text'),
    ('name', ['x'], 'text'),
    ('on', 1, 'True or False'),
    ('on', 'no', 'True or False'),
    ('path', 3, 'text or a list of texts'),
    ('path', ['x', 3], 'text or a list of texts'),
    ('path', {'x': 1}, 'text or a list of texts'),
    ('table', [('a', 1)], 'a mapping of names to values'),
  ],
)
def test_what_does_not_fit(option, value, words):
  with pytest.raises(errors.UserError) as error:
    arguments.check('it', Made, {option: value})
  assert str(error.value) == f'it: {option}={value!r} must be {words}'


def test_names():
  with pytest.raises(errors.UserError, match="'sed'; known options: seed, r"):
    arguments.check('it', Made, {'sed': 1})
  arguments.check('it', Free, {'anything': 1, 'seed': 2})
  with pytest.raises(errors.UserError, match="seed='a'"):
    arguments.check('it', Free, {'anything': 1, 'seed': 'a'})
  with pytest.raises(errors.UserError, match="no option 'x'.*: none"):
    arguments.check('it', Bare, {'x': 1})
  with pytest.raises(errors.UserError, match='options=3 must be a mapping'):
    arguments.check('it', Made, 3)
