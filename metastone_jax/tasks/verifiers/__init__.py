"""Verifiers: what says whether a response is right."""

from metastone_jax.tasks.verifiers.base import Verifier
from metastone_jax.tasks.verifiers.registry import (
  get_verifier,
  verifier_names,
)

__all__ = ['Verifier', 'get_verifier', 'verifier_names']
