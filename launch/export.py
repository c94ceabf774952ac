r"""Exports a checkpoint to a Hugging Face folder: policy, score head, card.

  python -m launch.export --checkpoint=runs/tiny --out=exports/tiny

The folder loads in transformers and vLLM as it is; `score_module.pt` has the
released keys, for torch.nn.Sequential(Linear, ReLU, Dropout, Linear).
"""

from absl import flags
from etils import epath

from launch import cli, model_card
from metastone_jax.checkpoints import (
  CheckpointManager,
  Pretrained,
  check_free,
  export_folder,
  tensor_reader,
)
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.telemetry import ByteProgress, Progress

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'Folder of a run or of launch.ingest.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default: newest.')
_OUT = flags.DEFINE_string('out', None, 'Folder to make.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['float32', 'bfloat16'], 'Of the exported tensors.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace --out.')


def main() -> None:
  """Parses, restores, exports."""
  cli.refuse_several('launch.export')
  if _CHECKPOINT.value is None or _OUT.value is None:
    raise UserError(
      '--checkpoint and --out are needed; for example --checkpoint=runs/tiny '
      '--out=exports/tiny'
    )
  check_free(_OUT.value, overwrite=_OVERWRITE.value)
  sharder = Sharder.of(make_mesh({'fsdp': -1}))
  root = epath.Path(_CHECKPOINT.value)
  with Pretrained(root) as pretrained, Progress() as progress:
    if not pretrained.is_ours:
      raise UserError(
        f'{root} is no folder of ours (it has no model.json); give the folder '
        'of a run or of launch.ingest'
      )
    root = pretrained.path
    with CheckpointManager(root / 'checkpoints', read_only=True) as manager:
      step = manager.verified_step(_STEP.value)
      extra, _ = manager.read_extra(step, verified=True)
    progress.phase('read', 1)
    config = pretrained.config
    params = pretrained.load(
      config, sharder, step=step, verified=True, head_dtype='float32'
    )
    progress.update(1)
    written = ByteProgress(progress, 'write')
    out = export_folder(
      _OUT.value,
      config,
      tensor_reader(params),
      dtype=_DTYPE.value,
      files=pretrained.files,
      card=model_card.write(root, config, step, extra),
      overwrite=_OVERWRITE.value,
      progress=written,
    )
  print(f'{out}: step {step} ({extra["phase"]}), {_DTYPE.value}, {written}')


if __name__ == '__main__':
  cli.run(main, interrupted='nothing was exported')
