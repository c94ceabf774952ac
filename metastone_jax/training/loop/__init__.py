"""Warm-up and joint training, start to report: the library's top room."""

from metastone_jax.training.loop.heldout import Evaluator as Evaluator
from metastone_jax.training.loop.plan import describe as describe
from metastone_jax.training.loop.recipe import Recipe as Recipe
from metastone_jax.training.loop.recipe import parse_recipe as parse_recipe
from metastone_jax.training.loop.run import Interrupted as Interrupted
from metastone_jax.training.loop.run import train as train
from metastone_jax.training.loop.setup import Setup as Setup
