"""Verifiers by name for tests that only need some verifier."""

from unittest import mock

from metastone_jax.tasks import verifiers
from tests.tasks.sources import files


def any_verifier():
  """While this lasts, every name of a verifier means `files.Boxed`."""
  fake = mock.Mock()
  fake.get_verifier = lambda name, **options: files.Boxed()
  return mock.patch.object(verifiers, 'registry', fake, create=True)
