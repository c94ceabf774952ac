"""The engine: a queue of problems through a fixed set of slots."""

from metastone_jax.sampling.engine.best_of import Answer as Answer
from metastone_jax.sampling.engine.best_of import best_of as best_of
from metastone_jax.sampling.engine.candidates import Candidate as Candidate
from metastone_jax.sampling.engine.candidates import Draft as Draft
from metastone_jax.sampling.engine.candidates import Request as Request
from metastone_jax.sampling.engine.engine import Engine as Engine
from metastone_jax.sampling.engine.pruning import Rejection as Rejection
from metastone_jax.sampling.engine.shape import EngineConfig as EngineConfig
from metastone_jax.sampling.engine.stop_strings import (
  StopStrings as StopStrings,
)
from metastone_jax.sampling.engine.vote import Election as Election
from metastone_jax.sampling.engine.vote import vote as vote
