"""What every job builds from a recipe: tokenizer, tasks, model, mesh, sampler.

Shared by training and evaluation, so both read the same ids, lengths and
programs.
"""

import dataclasses
import functools

import jax

from metastone_jax.data import (
  Tokenizer,
  demonstration_dataset,
  problem_dataset,
)
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import SamplingConfig, sample
from metastone_jax.tasks import Mixture, build_mixture
from metastone_jax.training.loop.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts of a run that its recipe determines.

  Attributes:
    recipe: the recipe.
    tokenizer: ids of everything.
    mixture: tasks and shares.
    model_config: shapes, vocabulary filled in.
    sharder: mesh and rules; no mesh on a single device.
    train_sampling: draws of the rollouts.
    evaluation_sampling: held-out draws.
  """

  recipe: Recipe
  tokenizer: Tokenizer
  mixture: Mixture
  model_config: ModelConfig
  sharder: Sharder
  train_sampling: SamplingConfig
  evaluation_sampling: SamplingConfig

  @classmethod
  def build(cls, recipe: Recipe) -> 'Setup':
    """Builds everything; bad input is refused here, before any work.

    Raises:
      UserError: tokenizer, tasks, model or mesh do not fit.
    """
    data = recipe.data
    tokenizer = (
      Tokenizer.tiny()
      if data.tokenizer == 'tiny'
      else Tokenizer.from_folder(data.tokenizer)
    )
    step_ids = tokenizer.step_ids(data.step_marks)
    mixture = build_mixture(
      data.tasks, seed=data.seed, options=data.task_options
    )
    model_config = recipe.model_config(tokenizer.vocab_size)
    mesh = make_mesh(recipe.mesh)
    sharder = Sharder(None if mesh.size == 1 else mesh)
    rows = mesh.shape['data'] * mesh.shape['fsdp']
    for phase in recipe.phases:
      piece = phase.sequences_per_microbatch or phase.rows_per_update
      if piece % rows:
        raise UserError(
          f'phases.{phase.name}: {piece} sequences a micro-batch do not divide '
          f'over the {rows} devices of mesh axes data x fsdp; change '
          'sequences_per_microbatch or mesh'
        )
    draw = recipe.sampling
    common = dict(
      max_response_length=data.max_response_length,
      eos_id=tokenizer.eos_id,
      pad_id=tokenizer.pad_id,
      step_ids=step_ids,
      think_start_id=tokenizer.think_start_id,
      think_end_id=tokenizer.think_end_id,
      aggregator=draw.aggregator,
      released_selection=draw.released_selection,
    )
    return cls(
      recipe=recipe,
      tokenizer=tokenizer,
      mixture=mixture,
      model_config=model_config,
      sharder=sharder,
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

  def sampler(self, sampling: SamplingConfig):
    """The jitted draw: (params, prompts, lengths, seed, draws, candidates)."""
    return jax.jit(
      functools.partial(
        sample,
        model_config=self.model_config,
        config=sampling,
        sharder=self.sharder,
      )
    )

  def demonstrations(self):
    """The fixed set of demonstrations, in this run's order."""
    data = self.recipe.data
    return demonstration_dataset(
      self.mixture,
      self.tokenizer,
      size=data.num_demonstrations,
      seed=self.recipe.seed,
      max_length=self.total_length,
    )

  def problems(self, split: str = 'train', mixture: Mixture | None = None):
    """The endless stream of problems of a split."""
    data = self.recipe.data
    return problem_dataset(
      mixture or self.mixture,
      self.tokenizer,
      seed=self.recipe.seed,
      split=split,
      max_prompt_length=data.max_prompt_length,
      num_demonstrations=data.num_demonstrations if split == 'train' else 0,
    )

  @property
  def total_length(self) -> int:
    """T: tokens of a training row."""
    data = self.recipe.data
    return data.max_prompt_length + data.max_response_length
