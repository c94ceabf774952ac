"""Warm-up and joint training, start to report: the library's top room."""

from metastone_jax.training.loop.draws import Sampler as Sampler
from metastone_jax.training.loop.folder import config_dict as config_dict
from metastone_jax.training.loop.folder import differences as differences
from metastone_jax.training.loop.folder import load_params as load_params
from metastone_jax.training.loop.folder import (
  recipe_from_dict as recipe_from_dict,
)
from metastone_jax.training.loop.folder import versions as versions
from metastone_jax.training.loop.heldout import Evaluator as Evaluator
from metastone_jax.training.loop.heldout import Responses as Responses
from metastone_jax.training.loop.kept import Kept as Kept
from metastone_jax.training.loop.kept import KeptResponses as KeptResponses
from metastone_jax.training.loop.kept import Segments as Segments
from metastone_jax.training.loop.plan import describe as describe
from metastone_jax.training.loop.recipe import Recipe as Recipe
from metastone_jax.training.loop.recipe import parse_recipe as parse_recipe
from metastone_jax.training.loop.setup import Setup as Setup
from metastone_jax.training.loop.stages import Interrupted as Interrupted
from metastone_jax.training.loop.traced import (
  answer_from_traces as answer_from_traces,
)
from metastone_jax.training.loop.train_run import train as train
