"""Checkpoints: saved whole, verified before use, restored on any sharding."""

from metastone_jax.checkpoints.manager import CheckpointManager
from metastone_jax.telemetry.files import write_json_atomic

__all__ = ['CheckpointManager', 'write_json_atomic']
