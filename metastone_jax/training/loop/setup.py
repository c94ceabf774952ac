"""What every job builds from a recipe: tokenizer, tasks, model, mesh, draws.

Shared by training and evaluation, so both read the same ids, lengths and
programs.
"""

import dataclasses
import functools
from collections.abc import Mapping

from etils import epath

from metastone_jax.checkpoints import CARRIED, Pretrained, is_ours
from metastone_jax.data import (
  ChatFormat,
  Tokenizer,
  demonstration_dataset,
  problem_dataset,
  tokenizer_from_files,
  without_long_prompts,
)
from metastone_jax.errors import UserError
from metastone_jax.model import (
  ModelConfig,
  Params,
  param_axes,
  unstack_params,
)
from metastone_jax.parallel import Hosts, Sharder, make_mesh
from metastone_jax.sampling import SamplingConfig
from metastone_jax.tasks import Mixture, VerifierPool, build_mixture
from metastone_jax.training.loop.recipe import PhaseConfig, Recipe
from metastone_jax.training.loop.row_plan import RowPlan


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts of a run that its recipe determines.

  Attributes:
    recipe: the recipe.
    tokenizer: ids of everything.
    chat: how prompts and responses look for this model.
    files: small files (tokenizer, config.json) that an export carries on.
    mixture: tasks and shares.
    verifiers: processes that check responses, of this host; none before the
      first response that needs one.
    model_config: shapes, vocabulary filled in.
    sharder: mesh and rules; no mesh on a single device.
    hosts: the processes of the job, and the mesh each draws on.
    train_sampling: draws of the rollouts.
    evaluation_sampling: held-out draws.
  """

  recipe: Recipe
  tokenizer: Tokenizer
  chat: ChatFormat
  files: Mapping[str, bytes]
  mixture: Mixture
  verifiers: VerifierPool
  model_config: ModelConfig
  sharder: Sharder
  hosts: Hosts
  train_sampling: SamplingConfig
  evaluation_sampling: SamplingConfig

  @classmethod
  def build(
    cls,
    recipe: Recipe,
    folder: epath.PathLike | None = None,
    *,
    phases: bool = True,
  ) -> 'Setup':
    """Builds everything; bad input is refused here, before any work.

    Args:
      recipe: the recipe.
      folder: of a run that was started before: it knows its model and
        tokenizer by itself, wherever they once came from.
      phases: whether they will be run here; an evaluation may have other
        devices than they would need.

    Raises:
      UserError: tokenizer, tasks, prompts, model or mesh do not fit.
    """
    recipe.check_complete()
    data = recipe.data
    if folder is not None and not is_ours(folder):
      folder = None
    model_config, files = _model(recipe, folder)
    tokenizer, chat, files = _tokenizer(recipe, files, folder)
    if model_config is None:
      model_config = recipe.model_config(tokenizer.vocab_size)
    if model_config.vocab_size < tokenizer.vocab_size:
      raise UserError(
        f'the model has vocab_size={model_config.vocab_size}, fewer than the '
        f'{tokenizer.vocab_size} tokens of tokenizer {tokenizer.name}; they do '
        'not belong together'
      )
    step_ids = tokenizer.step_ids(data.step_marks)
    mixture = without_long_prompts(
      build_mixture(data.tasks, seed=data.seed, options=data.task_options),
      tokenizer,
      max_prompt_length=data.max_prompt_length,
      template=chat,
    )
    mesh = make_mesh(recipe.mesh)
    sharder = Sharder.of(mesh)
    hosts = Hosts.build(sharder, recipe.rollout_mesh)
    if phases:
      _check_phases(recipe, mesh, sharder, hosts)
    draw = recipe.sampling
    common = dict(
      max_response_length=data.max_response_length,
      step_ids=step_ids,
      **tokenizer.sampling_ids(),
      aggregator=draw.aggregator,
      released_selection=draw.released_selection,
    )
    return cls(
      recipe=recipe,
      tokenizer=tokenizer,
      chat=chat,
      files=files,
      mixture=mixture,
      verifiers=recipe.verify.pool(),
      model_config=model_config,
      sharder=sharder,
      hosts=hosts,
      train_sampling=SamplingConfig(
        temperature=draw.temperature,
        top_k=draw.top_k,
        top_p=draw.top_p,
        **common,
      ),
      evaluation_sampling=SamplingConfig(
        temperature=draw.evaluation_temperature,
        top_p=draw.evaluation_top_p,
        **common,
      ),
    )

  def decode_params(self, params: Params) -> Params:
    """Parameters as an engine on this host's devices reads them.

    Of the compute dtype, a tree a layer; made once a rollout.
    """
    config = self.model_config
    axes, unstack = _decode_form(config)
    return self.hosts.local_copy(params, axes, config.dtype, unstack)

  def demonstrations(self):
    """The fixed set of demonstrations, in this run's order."""
    data = self.recipe.data
    return demonstration_dataset(
      self.mixture,
      self.tokenizer,
      size=data.num_demonstrations,
      seed=self.recipe.seed,
      max_length=self.total_length,
      template=self.chat,
    )

  def problems(
    self,
    split: str = 'train',
    mixture: Mixture | None = None,
    num_demonstrations: int | None = None,
  ):
    """The endless stream of problems of a split.

    Args:
      split: 'train' or 'heldout'.
      mixture: other than the recipe's.
      num_demonstrations: other than the recipe's; their problems are left out
        of the training split.
    """
    data = self.recipe.data
    if num_demonstrations is None:
      num_demonstrations = data.num_demonstrations if split == 'train' else 0
    return problem_dataset(
      mixture or self.mixture,
      self.tokenizer,
      seed=self.recipe.seed,
      split=split,
      max_prompt_length=data.max_prompt_length,
      num_demonstrations=num_demonstrations,
      template=self.chat,
    )

  def row_plan(self, phase: PhaseConfig) -> RowPlan:
    """How a phase lays trajectories into rows."""
    return RowPlan.of(phase, self.recipe.data, self.sharder)

  @property
  def total_length(self) -> int:
    """T: tokens of a training row."""
    data = self.recipe.data
    return data.max_prompt_length + data.max_response_length


@functools.cache
def _decode_form(config: ModelConfig):
  """(logical axes, rearrangement) of decode weights, made once a model.

  One function object, so that its program is compiled once; and the axes come
  of an abstract model, which is no work for every rollout.
  """
  return (
    param_axes(config, unstacked=True),
    functools.partial(unstack_params, config),
  )


def _check_phases(recipe: Recipe, mesh, sharder: Sharder, hosts: Hosts):
  """Refuses batches that these devices cannot share."""
  rows = mesh.shape['data'] * mesh.shape['fsdp']
  for phase in recipe.phases:
    hosts.share(phase.prompts_per_step, f'phases.{phase.name}.prompts_per_step')
    hosts.share(phase.partial_rollouts, f'phases.{phase.name}.partial_rollouts')
    plan = RowPlan.of(phase, recipe.data, sharder)
    piece = plan.rows_per_microbatch
    if piece % rows:
      raise UserError(
        f'phases.{phase.name}: {piece} {plan.what} a micro-batch do not '
        f'divide over the {rows} devices of mesh axes data x fsdp; change '
        'sequences_per_microbatch or mesh'
      )


def _model(recipe: Recipe, folder: epath.PathLike | None):
  """(ModelConfig or None for a preset, files of the folder or the source)."""
  if folder is None and recipe.source is None:
    return None, {}
  with Pretrained(folder or recipe.source) as pretrained:
    if recipe.source is None:
      return None, pretrained.files
    if not (pretrained.has_score_head() or recipe.start_from):
      recipe.check_zero_head()
    # Masters are float32 whatever was published, unless the recipe says else.
    choices = {'param_dtype': 'float32', **recipe.model_choices}
    return pretrained.configure(**choices), pretrained.files


def _tokenizer(
  recipe: Recipe, files: Mapping[str, bytes], folder: epath.PathLike | None
):
  """(Tokenizer, ChatFormat, all files that an export carries on)."""
  data = recipe.data
  form = dict(instruction=data.instruction, system=data.system)
  if folder is not None or data.tokenizer == 'source':
    where = folder or recipe.source
    if where is None:
      raise UserError(
        "data.tokenizer='source' needs model.source; give a tokenizer folder, "
        "or 'tiny'"
      )
    tokenizer, chat = tokenizer_from_files(
      files, str(where), think_tags=data.think_tags, **form
    )
    return tokenizer, chat, files
  path = data.tokenizer
  if path == 'tiny':
    path = Tokenizer.tiny().folder
  tokenizer = Tokenizer.from_folder(path, think_tags=data.think_tags)
  chat = ChatFormat.from_tokenizer(tokenizer, **form)
  # Of the model's own files only those that are not about tokens: two
  # tokenizers must not mix.
  kept = {k: v for k, v in files.items() if k in ('config.json', 'LICENSE')}
  carried = {
    name: (tokenizer.folder / name).read_bytes()
    for name in CARRIED
    if name not in kept and (tokenizer.folder / name).exists()
  }
  carried.pop('config.json', None)  # of whatever model lies there
  return tokenizer, chat, {**kept, **carried}
