"""Verifiers by name."""

import pickle
import sys
from unittest import mock

import pytest

from metastone_jax import errors
from metastone_jax.tasks import verifiers


@pytest.mark.parametrize('name', verifiers.verifier_names())
def test_by_name(name):
  verifier = verifiers.get_verifier(name)
  assert verifier.name == name
  assert isinstance(verifier, verifiers.Verifier)
  # They travel to other processes.
  assert pickle.loads(pickle.dumps(verifier)).name == name


def test_options():
  assert verifiers.get_verifier('choice', letters='AB').letters == 'AB'
  assert verifiers.get_verifier('math', tolerance=1e-3).tolerance == 1e-3


def test_bad_requests():
  with pytest.raises(errors.UserError, match="'maths' is unknown.*math"):
    verifiers.get_verifier('maths')
  with pytest.raises(errors.UserError, match="no option 'case'.*ignore_case"):
    verifiers.get_verifier('exact', case=False)
  with pytest.raises(errors.UserError, match='tolerance=0.5 is relative'):
    verifiers.get_verifier('math', tolerance=0.5)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('math', dict(tolerance='a'), "tolerance='a' must be a number"),
    ('math', dict(tolerance=float('nan')), 'tolerance=nan must be a number'),
    ('math', dict(boxed_only=1), 'boxed_only=1 must be True or False'),
    ('choice', dict(letters=3), 'letters=3 must be text'),
    ('exact', dict(ignore_case='no'), "ignore_case='no' must be True or"),
    ('code', dict(cpu_seconds='a'), "cpu_seconds='a' must be a number"),
    ('code', dict(cpu_seconds=True), 'cpu_seconds=True must be a number'),
    ('code', dict(total_seconds='a'), "total_seconds='a' must be a number"),
    ('code', dict(memory_mb=1.5), 'memory_mb=1.5 must be a whole number'),
    ('code', dict(memory_mb=-1), 'memory_mb=-1 .*at least 1'),
    ('code', dict(isolation=['limits']), 'isolation=.* must be text'),
    ('code', dict(packages=3), 'packages=3 must be a list of texts'),
    ('code', dict(packages='numpy'), "packages='numpy' must be a list"),
    ('code', dict(packages=[3]), r'packages=\[3\] must be a list of texts'),
    ('code', dict(seconds=3), "no option 'seconds'; known.*cpu_seconds"),
  ],
)
def test_options_of_a_wrong_type_are_named(name, options, message):
  with pytest.raises(errors.UserError, match=message) as error:
    verifiers.get_verifier(name, **options)
  assert f'verifier {name!r}' in str(error.value)


def test_a_missing_package_is_named():
  with mock.patch.dict(sys.modules):
    sys.modules.pop('math_verify', None)
    with mock.patch('importlib.util.find_spec', return_value=None):
      with pytest.raises(errors.UserError, match=r'metastone_jax\[math\]'):
        verifiers.get_verifier('math')
