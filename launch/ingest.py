r"""Turns a published model into a checkpoint of ours, sharded, both heads.

  python -m launch.ingest --source=FOLDER --out=models/r1-distill-7b

FOLDER is a Hugging Face folder (config.json, safetensors; qwen2, qwen3 or
llama), with or without the released score_module.pt, or a .gguf file. Train
from it with --config.model.source=models/r1-distill-7b. (Training also takes
FOLDER itself; ingesting once saves the conversion at each start.)
"""

from absl import flags
from etils import epath
from ml_collections import config_flags

from launch import cli
from metastone_jax.checkpoints import (
  CheckpointManager,
  Pretrained,
  write_folder,
)
from metastone_jax.data import has_tokenizer
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.telemetry import ByteProgress, Progress
from metastone_jax.telemetry.files import whole_folder
from metastone_jax.telemetry.progress import format_count
from metastone_jax.training import loop

_SOURCE = flags.DEFINE_string(
  'source', None, 'Hugging Face folder or .gguf file.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder to make; must not exist.')
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A recipe, for its mesh and model options such as vocab_multiple.',
  lock_config=True,
)
_SCORE = flags.DEFINE_string(
  'score_module',
  None,
  'score_module.pt or .safetensors; default: the one in the folder, else a '
  'fresh head.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  'Of the stored parameters; default: as in the source.',
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of a fresh score head.')


def main() -> None:
  """Parses, loads, saves."""
  cli.refuse_several('launch.ingest')
  if _SOURCE.value is None or _OUT.value is None:
    raise UserError(
      '--source and --out are needed; for example --source=Qwen3-32B '
      '--out=models/qwen3-32b'
    )
  out = epath.Path(_OUT.value)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'{out} exists already; remove it or give another --out')
  choices, mesh = {}, {'fsdp': -1}
  if _CONFIG.value is not None:
    recipe = loop.parse_recipe(_CONFIG.value)
    mesh, choices = recipe.mesh, recipe.model_choices
  sharder = Sharder.of(make_mesh(mesh))
  with (
    Pretrained(_SOURCE.value, score_module_path=_SCORE.value) as pretrained,
    Progress() as progress,
  ):
    dtype = _DTYPE.value or pretrained.source_dtype
    config = pretrained.configure(**{**choices, 'param_dtype': dtype})
    if not has_tokenizer(pretrained.files):
      progress.note(
        f'warning: {pretrained.where} has no tokenizer.json or '
        'tokenizer.model; give data.tokenizer=FOLDER when you train'
      )
    read = ByteProgress(progress, 'read')
    params = pretrained.load(
      config,
      sharder,
      seed=_SEED.value,
      # Small, and published in float32 beside bfloat16 backbones.
      head_dtype='float32',
      progress=read,
    )
    has_head = pretrained.has_score_head()
    progress.phase('write', 1)
    extra = {
      'phase': 'ingested',
      'source': pretrained.where,
      'config': {'model': dict(choices)},
      'versions': loop.versions(),
    }
    with whole_folder(out, 'nothing was ingested') as folder:
      with CheckpointManager(folder / 'checkpoints') as manager:
        manager.save(0, {'train': {'params': params}}, extra)
      # Last: without model.json the folder counts for nothing.
      write_folder(
        folder, config, pretrained.files, trained_score_head=has_head
      )
    progress.update(1)
  count = config.num_backbone_parameters
  head = 'its score head' if has_head else 'a fresh score head'
  print(
    f'{out}: {format_count(count)} parameters ({dtype}) and {head}, read '
    f'{read}; train with --config.model.source={out}'
  )


if __name__ == '__main__':
  cli.run(main, interrupted='nothing was ingested')
