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


def test_a_missing_package_is_named():
  with mock.patch.dict(sys.modules):
    sys.modules.pop('math_verify', None)
    with mock.patch('importlib.util.find_spec', return_value=None):
      with pytest.raises(errors.UserError, match=r'metastone_jax\[math\]'):
        verifiers.get_verifier('math')
