"""The key-value store that all processes of a job share.

It belongs to `jax.distributed` and lives in process 0. JAX has no public
interface to it, so everything private that this project uses is in this file.
"""

import json
from typing import Any

from jax._src import clusters
from jax._src import distributed as jax_distributed

# What a key-value call raises; jaxlib has no finer types.
Failure = RuntimeError


def _client():
  return jax_distributed.global_state.client


def detect(timeout_s: float) -> tuple[str | None, int | None, int | None, Any]:
  """(address, processes, process, local devices) of a TPU pod, GKE or SLURM.

  Elements are None where JAX finds no cluster.
  """
  return clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, int(timeout_s)
  )


def put(key: str, value: Any) -> None:
  """Sets a key to a JSON value; an old value is replaced."""
  _client().key_value_set(key, json.dumps(value), allow_overwrite=True)


def get(key: str, timeout_s: float) -> Any:
  """Waits for a key and returns its value; Failure after `timeout_s`."""
  return json.loads(
    _client().blocking_key_value_get(key, max(1, int(1000 * timeout_s)))
  )


def folder(prefix: str) -> dict[str, Any]:
  """All keys `prefix/NAME` as {NAME: value}; empty without any."""
  found = _client().key_value_dir_get(prefix + '/')
  return {key.rsplit('/', 1)[1]: json.loads(value) for key, value in found}


def delete(key: str) -> None:
  """Removes a key and all keys below it."""
  _client().key_value_delete(key)


def wait_at_barrier(name: str, timeout_s: float) -> None:
  """Waits for all processes; Failure after `timeout_s`."""
  _client().wait_at_barrier(name, max(1, int(1000 * timeout_s)))
