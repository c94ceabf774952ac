"""Verifiers: what says whether a response is right."""

from metastone_jax.tasks.verifiers.base import Verifier

__all__ = ['Verifier']
