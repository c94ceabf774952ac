"""Checkpoints: saved whole, verified before use, restored on any sharding.

Models of others in and out: `Pretrained` opens one, `export_folder` writes one.
"""

from metastone_jax.checkpoints.huggingface.export import (
  check_free as check_free,
)
from metastone_jax.checkpoints.huggingface.export import (
  export_folder as export_folder,
)
from metastone_jax.checkpoints.huggingface.export import (
  tensor_reader as tensor_reader,
)
from metastone_jax.checkpoints.huggingface.source import CARRIED as CARRIED
from metastone_jax.checkpoints.manager import (
  CheckpointManager as CheckpointManager,
)
from metastone_jax.checkpoints.model_folder import is_ours as is_ours
from metastone_jax.checkpoints.model_folder import write_folder as write_folder
from metastone_jax.checkpoints.pretrained import Pretrained as Pretrained
from metastone_jax.telemetry.files import write_json_atomic as write_json_atomic
